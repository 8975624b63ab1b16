//! Services behind Google's front ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{CALLER, start};
use idtoken_emulator::{Application, FrontEnd, Target, Trouble};

const AUDIENCE: &str = "https://metadata-x.run.app";

fn target(name: &str, front_end: FrontEnd, audience: &str, members: &[&str]) -> Target {
    Target {
        name: name.to_owned(),
        front_end,
        audience: audience.to_owned(),
        members: members.iter().map(|member| (*member).to_owned()).collect(),
        internal: name == "internal",
        trouble: match name {
            "run-perimeter" => Some(Trouble::Perimeter),
            "function-busy" => Some(Trouble::NoInstance),
            "gateway-issuer" => Some(Trouble::OtherIssuer),
            "gateway-key" => Some(Trouble::NoApiKey),
            "gateway-path" => Some(Trouble::UnknownPath),
            _ => None,
        },
        application: Application {
            status: 200,
            body: "it is {token}".to_owned(),
        },
    }
}

#[tokio::test]
async fn each_front_end_refuses_in_its_own_words() {
    let world = start().await;
    let mut policy = world.google.policy();
    policy.metadata_server.service_account = Some(CALLER.to_owned());
    policy.targets = vec![
        target("run", FrontEnd::CloudRun, AUDIENCE, &[CALLER]),
        target("run-other", FrontEnd::CloudRun, "https://other", &[CALLER]),
        target("run-role", FrontEnd::CloudRun, AUDIENCE, &[]),
        target("internal", FrontEnd::CloudRun, AUDIENCE, &[CALLER]),
        target("run-perimeter", FrontEnd::CloudRun, AUDIENCE, &[CALLER]),
        target("function", FrontEnd::CloudFunctions, AUDIENCE, &[CALLER]),
        target(
            "function-other",
            FrontEnd::CloudFunctions,
            "https://other",
            &[CALLER],
        ),
        target("function-role", FrontEnd::CloudFunctions, AUDIENCE, &[]),
        target("function-busy", FrontEnd::CloudFunctions, AUDIENCE, &[CALLER]),
        target("gateway-issuer", FrontEnd::Gateway, AUDIENCE, &[]),
        target("gateway-key", FrontEnd::Gateway, AUDIENCE, &[]),
        target("gateway-path", FrontEnd::Gateway, AUDIENCE, &[]),
        target("iap", FrontEnd::Iap, AUDIENCE, &[CALLER]),
        target(
            "iap-other",
            FrontEnd::Iap,
            "1-a.apps.googleusercontent.com",
            &[CALLER],
        ),
        target("iap-role", FrontEnd::Iap, AUDIENCE, &[]),
        target("gateway", FrontEnd::Gateway, AUDIENCE, &[]),
        target("gateway-other", FrontEnd::Gateway, "https://other", &[]),
        target("api", FrontEnd::GoogleApi, AUDIENCE, &[]),
        target("balancer", FrontEnd::LoadBalancer, AUDIENCE, &[]),
        target("open", FrontEnd::None, AUDIENCE, &[]),
    ];
    world.google.set_policy(policy).unwrap();
    // Redirects are answers here.
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let identity = format!(
        "/computeMetadata/v1/instance/service-accounts/default/identity?audience={AUDIENCE}&format=full"
    );
    let token = client
        .get(world.url(&identity))
        .header("Metadata-Flavor", "Google")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let call = async |name: &str, header: &str, token: Option<&str>| {
        let mut request = client.get(world.url(&format!("/targets/{name}/any/path")));
        if let Some(token) = token {
            request = request.header(header, format!("Bearer {token}"));
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let iap = response.headers().contains_key("x-goog-iap-generated-response");
        assert_eq!(iap, name.starts_with("iap") && status != 200, "{name}: {status}");
        (status, response.text().await.unwrap())
    };
    for (name, header, with, status, text) in [
        ("run", "authorization", true, 200, "it is eyJ"),
        ("run", "x-serverless-authorization", true, 200, "it is eyJ"),
        ("run", "proxy-authorization", true, 403, "permission to get URL"),
        ("run", "", false, 403, "permission to get URL"),
        (
            "run-other",
            "authorization",
            true,
            401,
            "permission to the requested URL",
        ),
        ("run-role", "authorization", true, 403, "permission to get URL"),
        ("internal", "authorization", true, 404, "Error: Page not found"),
        (
            "run-perimeter",
            "authorization",
            true,
            403,
            "vpcServiceControlsUniqueIdentifier",
        ),
        ("function", "authorization", true, 200, "it is eyJ"),
        (
            "function-other",
            "authorization",
            true,
            401,
            "permission to the requested URL",
        ),
        (
            "function-role",
            "authorization",
            true,
            403,
            "permission to get URL",
        ),
        ("function-busy", "authorization", true, 429, "Rate exceeded"),
        (
            "gateway-issuer",
            "authorization",
            true,
            401,
            "Jwt issuer is not configured",
        ),
        ("gateway-key", "authorization", true, 401, "unregistered callers"),
        (
            "gateway-path",
            "authorization",
            true,
            404,
            "is not defined by this API",
        ),
        ("iap", "authorization", true, 200, "it is eyJ"),
        ("iap", "proxy-authorization", true, 200, "it is eyJ"),
        ("iap", "", false, 302, "empty token"),
        (
            "iap-other",
            "authorization",
            true,
            401,
            "doesn't match expected value (1-a.apps.googleusercontent.com)",
        ),
        ("iap-role", "authorization", true, 403, CALLER),
        ("gateway", "authorization", true, 200, "it is eyJ"),
        ("gateway", "", false, 401, "Jwt is missing"),
        (
            "gateway-other",
            "authorization",
            true,
            403,
            "Audiences in Jwt are not allowed",
        ),
        ("api", "authorization", true, 401, "Expected OAuth 2 access token"),
        ("balancer", "authorization", true, 502, "Error: Server Error"),
        ("open", "", false, 200, "it is "),
        ("absent", "", false, 404, "no such target"),
    ] {
        let (found, body) = call(name, header, with.then_some(token.as_str())).await;
        assert_eq!(found, status, "{name} {header}: {body}");
        assert!(body.contains(text), "{name} {header}: {body}");
    }
    for (name, text) in [
        ("run", "permission to the requested URL"),
        ("iap", "Unable to parse JWT"),
        ("gateway", "Jwt verification fails"),
    ] {
        let (status, body) = call(name, "authorization", Some("no.token")).await;
        assert_eq!(status, 401, "{name}");
        assert!(body.contains(text), "{name}: {body}");
    }
}
