//! Pure: the row of an answer and what is known of the call → the command that fixes it.

use idtoken_operator::shell::quote;
use url::Url;

use crate::decisions::target_rows::Row;

/// What is known of a call. The parts are those of the request and of the URL that the caller named, not of the answer, but for
/// `expected_audience`.
pub(crate) struct Call<'a> {
    pub(crate) url: &'a Url,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) audience: &'a str,
    /// The account's e-mail address, if it is known.
    pub(crate) account: Option<&'a str>,
    /// The audience that IAP says it expects.
    pub(crate) expected_audience: Option<&'a str>,
    /// The header that had the token.
    pub(crate) authorization_header: &'a str,
}

/// The command that mends what `row` is about, or shows its cause; an error says why there is none. Words in capitals are to be filled in.
pub(crate) fn command(row: Row, call: &Call<'_>) -> Result<String, &'static str> {
    let url = call.url;
    let origin = format!("https://{}", url.host_str().unwrap_or_default());
    let run = RunService::of(url);
    // A service that has let the token's audience pass is the audience's, by whatever name it was called.
    let audience = Url::parse(call.audience).ok();
    let passed = match (&run.service, &audience) {
        (None, Some(audience)) => RunService::of(audience),
        _ => RunService::of(url),
    };
    let member = format!(
        "--member=serviceAccount:{}",
        word(call.account.unwrap_or("ACCOUNT"))
    );
    Ok(match row {
        Row::CloudRunAudience if run.service.is_some() && call.audience != origin => {
            call.patch("audience", &origin)
        }
        Row::CloudRunAudience => format!("gcloud run services describe {run} --format='value(status.url)'"),
        Row::CloudRunInvoker => {
            format!("gcloud run services add-iam-policy-binding {passed} {member} --role=roles/run.invoker")
        }
        Row::CloudRunIngress => {
            format!("gcloud run services describe {passed} --format='yaml(metadata.annotations)'")
        }
        Row::CloudRunUnavailable | Row::CloudRunApplication => {
            format!("gcloud run services logs read {passed} --limit=20")
        }
        Row::CloudRunPerimeter => {
            // Of an audit log, and so without what the answer says.
            let metadata = "type.googleapis.com/google.cloud.audit.VpcServiceControlAuditMetadata";
            let filter = format!("protoPayload.metadata.\"@type\"=\"{metadata}\"");
            format!(
                "gcloud logging read {} --project=PROJECT --freshness=1h --limit=5",
                quote(&filter)
            )
        }
        // The generation decides, and neither the URL nor the answer tells it.
        Row::FunctionAudience => {
            let (region, project, function) = function(url);
            format!(
                "gcloud functions describe {} --v2 --region={} --project={} --format='value(environment,serviceConfig.uri)'",
                word(function),
                word(region),
                word(project)
            )
        }
        Row::FunctionInvoker => {
            let called = url
                .host_str()
                .is_some_and(|host| host.ends_with(".cloudfunctions.net"));
            let place = audience.as_ref().filter(|_| !called).unwrap_or(url);
            let (region, project, function) = function(place);
            format!(
                "gcloud functions add-invoker-policy-binding {} --region={} --project={} {member}",
                word(function),
                word(region),
                word(project)
            )
        }
        Row::IapAudience | Row::IapAllowList => {
            call.patch("audience", call.expected_audience.unwrap_or("CLIENT_ID"))
        }
        Row::IapEmail => call.patch_json("{\"spec\":{\"includeEmail\":true}}"),
        Row::IapRole => format!(
            "gcloud iap web add-iam-policy-binding --resource-type=backend-services --service=BACKEND --project=PROJECT {member} \
             --role=roles/iap.httpsResourceAccessor"
        ),
        Row::GatewayAudience => call.patch("audience", "AUDIENCE"),
        Row::GatewayExpired => format!(
            "kubectl idtoken renew {} -n {} --wait",
            word(call.name),
            word(call.namespace)
        ),
        Row::IapNotGoogles | Row::GatewaySignature => {
            format!(
                "kubectl idtoken explain {} -n {}",
                word(call.name),
                word(call.namespace)
            )
        }
        Row::IapNoToken => match call.authorization_header.eq_ignore_ascii_case("authorization") {
            // What is between may keep this one for itself.
            true => call.again("--authorization-header=Proxy-Authorization"),
            false => call.again("--authorization-header=Authorization"),
        },
        Row::GatewayNoToken if !call.authorization_header.eq_ignore_ascii_case("authorization") => {
            call.again("--authorization-header=Authorization")
        }
        Row::GatewayNoToken | Row::GatewayIssuer | Row::GatewayPath => {
            "gcloud api-gateway api-configs describe CONFIG --api=API --project=PROJECT --view=FULL"
                .to_owned()
        }
        Row::GatewayKey => call.again("--header='x-api-key: KEY'"),
        Row::BalancerBackend => {
            "gcloud compute backend-services get-health BACKEND --global --project=PROJECT".to_owned()
        }
        Row::OwnRefusal => {
            return Err("the service decides by rules of its own, which only its log and its owner know");
        }
        Row::OwnRedirect => {
            return Err(
                "the token is for the service that you named, and is not sent where an answer points to",
            );
        }
        Row::GoogleApi => {
            return Err(
                "no ID token is taken there, so no command makes this one work: docs/alternatives.md",
            );
        }
    })
}

impl Call<'_> {
    fn patch(&self, field: &str, value: &str) -> String {
        self.patch_json(&serde_json::json!({"spec": {field: value}}).to_string())
    }

    /// The same call once more, with another flag.
    fn again(&self, flag: &str) -> String {
        let host = |text: &str| Url::parse(text).ok()?.host_str().map(str::to_owned);
        let any_host = match host(self.audience) == host(self.url.as_str()) {
            true => "",
            false => " --any-host",
        };
        format!(
            "kubectl idtoken try {} {} -n {}{any_host} {flag}",
            word(self.name),
            word(self.url.as_str()),
            word(self.namespace)
        )
    }

    fn patch_json(&self, patch: &str) -> String {
        format!(
            "kubectl patch idtokenrequest {} -n {} --type=merge -p {}",
            word(self.name),
            word(self.namespace),
            quote(patch)
        )
    }
}

/// A positional argument or a value. Without a dash at the start, which even in quotes makes it an option.
fn word(text: &str) -> String {
    quote(text.trim_start_matches('-')).into_owned()
}

/// A Cloud Run service, as far as its URL tells: `SERVICE-NUMBER.REGION.run.app` or `SERVICE-HASH-CODE.a.run.app`, perhaps with `TAG---`.
struct RunService<'a> {
    service: Option<&'a str>,
    region: Option<&'a str>,
}

impl<'a> RunService<'a> {
    fn of(url: &'a Url) -> Self {
        let none = Self {
            service: None,
            region: None,
        };
        let Some(host) = url.host_str().and_then(|host| host.strip_suffix(".run.app")) else {
            return none;
        };
        let Some((name, region)) = host.rsplit_once('.') else {
            return none;
        };
        let name = name.rsplit_once("---").map_or(name, |(_, name)| name);
        let service = match region {
            "a" => name.rsplit_once('-').and_then(|(rest, _)| rest.rsplit_once('-')),
            _ => name.rsplit_once('-'),
        };
        Self {
            service: service.map(|(service, _)| service),
            region: (region != "a").then_some(region),
        }
    }
}

impl std::fmt::Display for RunService<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let service = word(self.service.unwrap_or("SERVICE"));
        let region = word(self.region.unwrap_or("REGION"));
        write!(f, "{service} --region={region} --project=PROJECT")
    }
}

/// Region, project and name of `https://REGION-PROJECT.cloudfunctions.net/NAME`. A region has one dash.
fn function(url: &Url) -> (&str, &str, &str) {
    let host = url
        .host_str()
        .and_then(|host| host.strip_suffix(".cloudfunctions.net"));
    let place = host.and_then(|host| {
        let (continent, rest) = host.split_once('-')?;
        let (direction, project) = rest.split_once('-')?;
        Some((&host[..continent.len() + 1 + direction.len()], project))
    });
    let (region, project) = place.unwrap_or(("REGION", "PROJECT"));
    let name = url.path().split('/').find(|part| !part.is_empty());
    (region, project, name.unwrap_or("FUNCTION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(row: Row, url: &str, audience: &str, expected: Option<&str>) -> Option<String> {
        by_header(row, url, audience, expected, "Authorization").ok()
    }

    fn by_header(
        row: Row,
        url: &str,
        audience: &str,
        expected: Option<&str>,
        authorization_header: &str,
    ) -> Result<String, &'static str> {
        let url = Url::parse(url).unwrap();
        command(
            row,
            &Call {
                url: &url,
                namespace: "shop",
                name: "billing",
                audience,
                account: Some("caller@p.iam.gserviceaccount.com"),
                expected_audience: expected,
                authorization_header,
            },
        )
    }

    #[test]
    fn a_command_names_what_the_url_tells() {
        let invoker = |url| told(Row::CloudRunInvoker, url, "a", None).unwrap();
        let rest = "--project=PROJECT --member=serviceAccount:caller@p.iam.gserviceaccount.com --role=roles/run.invoker";
        for (url, named) in [
            (
                "https://my-billing-123456789012.europe-west1.run.app/x",
                "my-billing --region=europe-west1",
            ),
            (
                "https://my-billing-abcdefghij-ew.a.run.app",
                "my-billing --region=REGION",
            ),
            (
                "https://canary---my-billing-abcdefghij-ew.a.run.app",
                "my-billing --region=REGION",
            ),
            ("https://billing.example.com", "SERVICE --region=REGION"),
        ] {
            assert_eq!(
                invoker(url),
                format!("gcloud run services add-iam-policy-binding {named} {rest}"),
                "{url}"
            );
        }
        // By another name, it is the service of the audience.
        let audience = "https://my-billing-123456789012.europe-west1.run.app";
        let named = told(
            Row::CloudRunInvoker,
            "https://billing.example.com",
            audience,
            None,
        )
        .unwrap();
        assert!(named.contains(" my-billing --region=europe-west1 "), "{named}");
        let audience = "https://europe-west1-p.cloudfunctions.net/invoices";
        let named = told(
            Row::FunctionInvoker,
            "https://invoices.example.com",
            audience,
            None,
        )
        .unwrap();
        assert!(
            named.contains(" invoices --region=europe-west1 --project=p "),
            "{named}"
        );
        assert_eq!(
            told(
                Row::FunctionInvoker,
                "https://europe-west1-my-project.cloudfunctions.net/invoices?a=b",
                "a",
                None
            )
            .unwrap(),
            "gcloud functions add-invoker-policy-binding invoices --region=europe-west1 --project=my-project \
             --member=serviceAccount:caller@p.iam.gserviceaccount.com"
        );
    }

    #[test]
    fn the_audience_is_patched_where_it_is_known() {
        let patch = |audience: &str| {
            format!(
                "kubectl patch idtokenrequest billing -n shop --type=merge -p '{{\"spec\":{{\"audience\":\"{audience}\"}}}}'"
            )
        };
        let url = "https://billing-x-ew.a.run.app/v1/";
        assert_eq!(
            told(Row::CloudRunAudience, url, "https://other", None).unwrap(),
            patch("https://billing-x-ew.a.run.app")
        );
        // It is right already.
        assert!(
            told(Row::CloudRunAudience, url, "https://billing-x-ew.a.run.app", None)
                .unwrap()
                .starts_with("gcloud run services describe billing")
        );
        // Either generation may answer there.
        assert_eq!(
            told(
                Row::FunctionAudience,
                "https://europe-west1-p.cloudfunctions.net/f/?q",
                "a",
                None
            )
            .unwrap(),
            "gcloud functions describe f --v2 --region=europe-west1 --project=p --format='value(environment,serviceConfig.uri)'"
        );
        let client = "1-a.apps.googleusercontent.com";
        assert_eq!(
            told(Row::IapAudience, "https://a.example", "a", Some(client)).unwrap(),
            patch(client)
        );
        assert_eq!(told(Row::OwnRefusal, url, "a", None), None);
    }

    #[test]
    fn each_row_has_a_command_or_a_reason_why_there_is_none() {
        let url = "https://a.example/x?b=c&d";
        let mut without = Vec::new();
        for row in Row::ALL {
            match by_header(row, url, "1-a.apps.googleusercontent.com", None, "Authorization") {
                Ok(command) => {
                    let program = command.split(' ').next().unwrap();
                    assert!(["gcloud", "kubectl"].contains(&program), "{row:?}: {command}");
                    // What is known is filled in.
                    if program == "kubectl" {
                        assert!(
                            command.contains("billing") && command.contains("shop"),
                            "{row:?}: {command}"
                        );
                    }
                }
                Err(why) => {
                    assert!(why.len() > 20, "{row:?}: {why}");
                    without.push(row);
                }
            }
        }
        assert_eq!(without, [Row::OwnRefusal, Row::OwnRedirect, Row::GoogleApi]);
    }

    #[test]
    fn a_call_without_a_token_is_repeated_with_another_header() {
        let again = |row, audience, header| {
            by_header(row, "https://a.example/x?b=c&d", audience, None, header).unwrap()
        };
        assert_eq!(
            again(Row::IapNoToken, "1-a", "Authorization"),
            "kubectl idtoken try billing 'https://a.example/x?b=c&d' -n shop --any-host --authorization-header=Proxy-Authorization"
        );
        assert!(again(Row::IapNoToken, "1-a", "X-Mine").ends_with(" --authorization-header=Authorization"));
        assert_eq!(
            again(Row::GatewayKey, "https://a.example", "Authorization"),
            "kubectl idtoken try billing 'https://a.example/x?b=c&d' -n shop --header='x-api-key: KEY'"
        );
        // The gateway expects it elsewhere, as its configuration says.
        assert!(again(Row::GatewayNoToken, "1-a", "authorization").starts_with("gcloud api-gateway"));
        assert!(again(Row::GatewayNoToken, "1-a", "X-Mine").ends_with("=Authorization"));
    }

    #[test]
    fn no_word_of_a_url_is_an_option_or_leaves_its_quotes() {
        let told = told(
            Row::FunctionInvoker,
            "https://-p.cloudfunctions.net/--impersonate-service-account=x;'$(reboot)'",
            "a",
            None,
        )
        .unwrap();
        assert!(!told.contains(" --impersonate"), "{told}");
        assert!(!told.contains(" $(reboot)") && told.contains('\''), "{told}");
    }
}
