use super::*;

/// Google's plain page, as several public notes have it:
/// <https://github.com/GoogleCloudPlatform/cloud-code-intellij/issues/3133>, and the tutorials of Cloud Run.
fn page(title: &str, heading: &str, text: &str) -> String {
    format!(
        "\n<html><head>\n<meta http-equiv=\"content-type\" content=\"text/html;charset=utf-8\">\n<title>{title}</title>\n</head>\n\
         <body text=#000000 bgcolor=#ffffff>\n<h1>Error: {heading}</h1>\n<h2>{text}</h2>\n<h2></h2>\n</body></html>\n"
    )
}

const FRONT_END: &[(&str, &str)] = &[
    ("server", "Google Frontend"),
    ("content-type", "text/html; charset=UTF-8"),
];
/// <https://github.com/google/oauth2l/issues/123>
const INVALID_TOKEN: &[(&str, &str)] = &[
    (
        "www-authenticate",
        "Bearer error=\"invalid_token\" error_description=\"The access token could not be verified\"",
    ),
    ("server", "Google Frontend"),
];
const IAP: &[(&str, &str)] = &[("x-goog-iap-generated-response", "true")];
const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const NONE: &[(&str, &str)] = &[];

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
    Answer {
        status,
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        body: body.to_owned(),
    }
}

struct Case {
    /// Where this answer is documented or was seen.
    source: &'static str,
    kind: TargetKind,
    answer: Answer,
    by: Answerer,
    row: Option<Row>,
}

fn case(
    source: &'static str,
    kind: TargetKind,
    answer: Answer,
    by: Answerer,
    row: impl Into<Option<Row>>,
) -> Case {
    Case {
        source,
        kind,
        answer,
        by,
        row: row.into(),
    }
}

#[allow(clippy::too_many_lines)]
fn cases() -> Vec<Case> {
    use Answerer::{Application, FrontEnd, Gateway, GoogleApi, Iap, LoadBalancer};
    use TargetKind::{CloudRun, Function, Other};
    let unauthorized = page(
        "401 Unauthorized",
        "Unauthorized",
        "Your client does not have permission to the requested URL <code>/</code>.",
    );
    let forbidden = page(
        "403 Forbidden",
        "Forbidden",
        "Your client does not have permission to get URL <code>/</code> from this server.",
    );
    let not_found = page(
        "404 Page not found",
        "Page not found",
        "The requested URL was not found on this server.",
    );
    let server_error = page(
        "502 Server Error",
        "Server Error",
        "The server encountered a temporary error and could not complete your request.<p>Please try again in 30 seconds.",
    );
    let illustrated = "<!DOCTYPE html>\n<html lang=en>\n<title>Error 404 (Not Found)!!1</title>\n<a href=//www.google.com/><span id=logo \
                       aria-label=Google></span></a>\n<p><b>404.</b> <ins>That\u{2019}s an error.</ins>\n<p>The requested URL <code>/</code> was \
                       not found on this server. <ins>That\u{2019}s all we know.</ins>";
    let sign_in = [(
        "location",
        "https://accounts.google.com/o/oauth2/v2/auth?client_id=1-a.apps.googleusercontent.com&redirect_uri=https://iap.googleapis.com/v1/oauth/\
         clientIds/1-a.apps.googleusercontent.com:handleRedirect",
    )];
    vec![
        case(
            "https://github.com/google/adk-python/issues/3814",
            CloudRun,
            answer(401, INVALID_TOKEN, &unauthorized),
            FrontEnd,
            Row::CloudRunAudience,
        ),
        case(
            "https://github.com/google/oauth2l/issues/123: the header alone",
            CloudRun,
            answer(401, INVALID_TOKEN, ""),
            FrontEnd,
            Row::CloudRunAudience,
        ),
        case(
            "https://github.com/pomerium/pomerium/issues/1623: a load balancer in front",
            Other,
            answer(401, NONE, &unauthorized),
            FrontEnd,
            Row::CloudRunAudience,
        ),
        case(
            "https://github.com/googlecodelabs/feedback/issues/1587",
            CloudRun,
            answer(403, FRONT_END, &forbidden),
            FrontEnd,
            Row::CloudRunInvoker,
        ),
        case(
            "https://github.com/datacommonsorg/docsite/pull/463: a custom domain",
            Other,
            answer(403, FRONT_END, &forbidden),
            FrontEnd,
            Row::CloudRunInvoker,
        ),
        case(
            "https://cloud.google.com/run/docs/securing/ingress",
            CloudRun,
            answer(404, FRONT_END, &not_found),
            FrontEnd,
            Row::CloudRunIngress,
        ),
        case(
            "https://github.com/hashicorp/terraform-provider-google/issues/10872: the illustrated page",
            CloudRun,
            answer(404, FRONT_END, illustrated),
            FrontEnd,
            Row::CloudRunIngress,
        ),
        case(
            "https://github.com/GoogleCloudPlatform/terraform-google-cloud-functions/issues/109",
            CloudRun,
            answer(
                403,
                JSON,
                "{\"error\": {\"code\": 403, \"message\": \"Request is prohibited by organization's policy. \
                 vpcServiceControlsUniqueIdentifier: VQQ\", \"status\": \"PERMISSION_DENIED\"}}",
            ),
            FrontEnd,
            Row::CloudRunPerimeter,
        ),
        case(
            "https://github.com/ahmetb/cloud-run-faq/issues/54",
            CloudRun,
            answer(429, FRONT_END, "Rate exceeded."),
            FrontEnd,
            Row::CloudRunUnavailable,
        ),
        case(
            "https://github.com/googleapis/repo-automation-bots/issues/4039",
            CloudRun,
            answer(
                500,
                NONE,
                "The request was aborted because there was no available instance.",
            ),
            FrontEnd,
            Row::CloudRunUnavailable,
        ),
        case(
            "https://cloud.google.com/run/docs/troubleshooting",
            CloudRun,
            answer(503, FRONT_END, &server_error),
            FrontEnd,
            Row::CloudRunUnavailable,
        ),
        case(
            "https://cloud.google.com/run/docs/troubleshooting#signature-removed: the application verifies too",
            CloudRun,
            answer(401, FRONT_END, "{\"detail\": \"no session\"}"),
            Application,
            Row::CloudRunApplication,
        ),
        case(
            "https://github.com/googleapis/google-auth-library-nodejs/issues/1208",
            Function,
            answer(401, INVALID_TOKEN, &unauthorized),
            FrontEnd,
            Row::FunctionAudience,
        ),
        case(
            "https://cloud.google.com/functions/1stgendocs/securing/authenticating",
            Function,
            answer(403, FRONT_END, &forbidden),
            FrontEnd,
            Row::FunctionInvoker,
        ),
        case(
            "https://cloud.google.com/iap/docs/authentication-howto",
            Other,
            answer(302, &[IAP[0], sign_in[0]], "Invalid IAP credentials: empty token"),
            Iap,
            Row::IapNoToken,
        ),
        case(
            "https://cloud.google.com/iap/docs/authentication-howto: a proxy removed IAP's header",
            Other,
            answer(302, &sign_in, ""),
            Iap,
            Row::IapNoToken,
        ),
        case(
            "https://github.com/flyteorg/flyte/issues/6089",
            Other,
            answer(401, IAP, "Invalid IAP credentials: empty token"),
            Iap,
            Row::IapNoToken,
        ),
        case(
            "https://github.com/GoogleCloudPlatform/professional-services/issues/603",
            Other,
            answer(
                401,
                IAP,
                "Invalid IAP credentials: JWT audience doesn't match this application ('aud' claim (https://a) doesn't match expected value \
                 (453921602732-v6268n7a.apps.googleusercontent.com))",
            ),
            Iap,
            Row::IapAudience,
        ),
        case(
            "docs/targets.md: notes of several repositories",
            Other,
            answer(401, IAP, "Invalid IAP credentials: Unable to parse JWT"),
            Iap,
            Row::IapNotGoogles,
        ),
        case(
            "docs/targets.md: notes of several repositories, without the header",
            Other,
            answer(401, NONE, "Invalid IAP credentials: JWT signature is invalid"),
            Iap,
            Row::IapNotGoogles,
        ),
        case(
            "https://github.com/googleapis/google-auth-library-nodejs/issues/792",
            Other,
            answer(
                401,
                IAP,
                "Invalid IAP credentials: JWT 'email' claim isn't a string",
            ),
            Iap,
            Row::IapEmail,
        ),
        case(
            "https://cloud.google.com/iap/docs/managing-access",
            Other,
            answer(
                403,
                IAP,
                "<html><body>caller@p.iam.gserviceaccount.com does not have access</body></html>",
            ),
            Iap,
            Row::IapRole,
        ),
        case(
            "docs/targets.md: notes of several repositories; IAP at a Cloud Run service",
            CloudRun,
            answer(
                401,
                IAP,
                "Invalid IAP credentials: Invalid bearer token. Invalid JWT audience.",
            ),
            Iap,
            Row::IapAllowList,
        ),
        case(
            "https://github.com/google/jwt_verify_lib/blob/master/src/status.cc, in the JSON of ESPv2",
            Other,
            answer(401, JSON, "{\"code\":401,\"message\":\"Jwt is missing\"}"),
            Gateway,
            Row::GatewayNoToken,
        ),
        case(
            "https://cloud.google.com/endpoints/docs/openapi/troubleshoot-jwt",
            Other,
            answer(
                401,
                JSON,
                "{\"message\":\"Jwt issuer is not configured\",\"code\":401}",
            ),
            Gateway,
            Row::GatewayIssuer,
        ),
        case(
            "https://github.com/envoyproxy/envoy/pull/7679",
            Other,
            answer(
                403,
                JSON,
                "{\"code\":403,\"message\":\"Audiences in Jwt are not allowed\"}",
            ),
            Gateway,
            Row::GatewayAudience,
        ),
        case(
            "https://github.com/envoyproxy/envoy/pull/7679: an Envoy without ESPv2 answers in text",
            Other,
            answer(403, NONE, "Audiences in Jwt are not allowed"),
            Gateway,
            Row::GatewayAudience,
        ),
        case(
            "https://github.com/google/jwt_verify_lib/blob/master/src/status.cc",
            Other,
            answer(401, JSON, "{\"code\":401,\"message\":\"Jwt is expired\"}"),
            Gateway,
            Row::GatewayExpired,
        ),
        case(
            "https://github.com/GoogleCloudPlatform/esp-v2/issues/671",
            Other,
            answer(
                401,
                JSON,
                "{\"code\":401,\"message\":\"Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections\"}",
            ),
            Gateway,
            Row::GatewaySignature,
        ),
        case(
            "https://cloud.google.com/endpoints/docs/openapi/troubleshoot-response-errors",
            Other,
            answer(
                401,
                JSON,
                "{\"code\":401,\"message\":\"UNAUTHENTICATED: Method doesn't allow unregistered callers (callers without established identity). \
                 Please use API Key or other form of API consumer identity to call this API.\"}",
            ),
            Gateway,
            Row::GatewayKey,
        ),
        case(
            "https://cloud.google.com/endpoints/docs/openapi/troubleshoot-response-errors",
            Other,
            answer(
                404,
                JSON,
                "{\"code\":404,\"message\":\"The current request is not defined by this API.\"}",
            ),
            Gateway,
            Row::GatewayPath,
        ),
        case(
            "https://cloud.google.com/load-balancing/docs/https/troubleshooting-ext-https-lbs",
            Other,
            answer(502, NONE, &server_error),
            LoadBalancer,
            Row::BalancerBackend,
        ),
        case(
            "https://cloud.google.com/load-balancing/docs/https/troubleshooting-ext-https-lbs",
            Other,
            answer(503, NONE, "no healthy upstream"),
            LoadBalancer,
            Row::BalancerBackend,
        ),
        case(
            "https://github.com/GoogleCloudPlatform/esp-v2/issues/238",
            Other,
            answer(
                401,
                JSON,
                "{\"error\": {\"code\": 401, \"message\": \"Request had invalid authentication credentials. Expected OAuth 2 access token, \
                 login cookie or other valid authentication credential.\", \"status\": \"UNAUTHENTICATED\"}}",
            ),
            GoogleApi,
            Row::GoogleApi,
        ),
        case(
            "an application",
            CloudRun,
            answer(200, FRONT_END, "hello"),
            Application,
            None,
        ),
        case(
            "an application that shows its user a page of Google's",
            Other,
            answer(200, NONE, &forbidden),
            Application,
            None,
        ),
        case(
            "an application",
            CloudRun,
            answer(404, FRONT_END, "no such page"),
            Application,
            None,
        ),
        case(
            "an application",
            Other,
            answer(403, JSON, "{\"error\": \"not you\"}"),
            Application,
            Row::OwnRefusal,
        ),
        case(
            "an application that signs in by Google itself",
            Other,
            answer(
                302,
                &[(
                    "location",
                    "https://accounts.google.com/o/oauth2/v2/auth?client_id=1",
                )],
                "",
            ),
            Application,
            Row::OwnRedirect,
        ),
        case(
            "an application",
            CloudRun,
            answer(500, FRONT_END, "Internal Server Error"),
            Application,
            None,
        ),
        case("an application", Other, answer(418, NONE, ""), Application, None),
    ]
}

#[test]
fn each_answer_has_its_row() {
    let cases = cases();
    for case in &cases {
        let found = recognize(&case.answer, case.kind);
        let wanted = Recognized {
            by: case.by,
            row: case.row,
        };
        assert_eq!(found, wanted, "{}: {:?}", case.source, case.answer);
    }
    let of_front_ends = cases.iter().filter(|case| case.by != Answerer::Application);
    assert!(of_front_ends.count() >= 20);
}

#[test]
fn the_kind_is_that_of_the_host_or_else_of_the_audience() {
    let kind = |url: &str, audience: &str| target_kind(&Url::parse(url).unwrap(), audience);
    assert_eq!(kind("https://a-x.run.app/", "any"), TargetKind::CloudRun);
    assert_eq!(
        kind("https://a.example/", "https://a-x.run.app"),
        TargetKind::CloudRun
    );
    assert_eq!(
        kind(
            "https://europe-west1-p.cloudfunctions.net/f",
            "https://a-x.run.app"
        ),
        TargetKind::Function
    );
    assert_eq!(
        kind("https://a.example/", "1-a.apps.googleusercontent.com"),
        TargetKind::Other
    );
    assert_eq!(kind("https://run.app.evil.example/", "a"), TargetKind::Other);
}

#[test]
fn only_the_id_of_a_client_is_taken_from_a_body() {
    let expected = |value: &str| {
        let body = format!("x doesn't match expected value ({value})) y");
        expected_audience(&answer(401, IAP, &body)).map(str::to_owned)
    };
    let client = "453921602732-v6268n7ass0luckjm21gjgh0so99hrrd.apps.googleusercontent.com";
    assert_eq!(expected(client).as_deref(), Some(client));
    for other in [
        "https://evil.example",
        "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2lnbmF0dXJl",
        "453921602732-EYJ.apps.googleusercontent.com",
        "453921602732-a b.apps.googleusercontent.com",
        "'; rm -rf ~; '.apps.googleusercontent.com",
        "1-a.apps.googleusercontent.com.evil.example",
        "",
    ] {
        assert_eq!(expected(other), None, "{other}");
    }
    let long = format!("453921602732-{}.apps.googleusercontent.com", "a".repeat(600));
    assert_eq!(expected(&long), None);
}

#[test]
fn what_curl_prints_is_parsed() {
    let parsed =
        parse("HTTP/1.1 100 Continue\n\nHTTP/2 403 \nServer: Google Frontend\nX-Y:  z\n\n<html>\n\nmore")
            .unwrap();
    assert_eq!(parsed.status, 403);
    assert_eq!(parsed.header("server"), Some("Google Frontend"));
    assert_eq!(parsed.header("x-y"), Some("z"));
    assert_eq!(parsed.body, "<html>\n\nmore");
    assert_eq!(parse("HTTP/1.1 204 No Content\n").unwrap().status, 204);
    for none in [
        "",
        "\n\n",
        "curl: (6) x",
        "HTTP/1.1",
        "HTTP/1.1 abc\n\n",
        "HTTP/1.1 99999\n\n",
    ] {
        assert!(parse(none).is_none(), "{none:?}");
    }
}
