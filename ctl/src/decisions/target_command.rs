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
}

/// The command that mends what `row` is about, or shows its cause. Words in capitals are to be filled in.
pub(crate) fn command(row: Row, call: &Call<'_>) -> Option<String> {
    let url = call.url;
    let origin = format!("https://{}", url.host_str().unwrap_or_default());
    let run = RunService::of(url);
    let member = format!(
        "--member=serviceAccount:{}",
        word(call.account.unwrap_or("ACCOUNT"))
    );
    Some(match row {
        Row::CloudRunAudience if run.service.is_some() && call.audience != origin => {
            call.patch("audience", &origin)
        }
        Row::CloudRunAudience => format!("gcloud run services describe {run} --format='value(status.url)'"),
        Row::CloudRunInvoker => {
            format!("gcloud run services add-iam-policy-binding {run} {member} --role=roles/run.invoker")
        }
        Row::CloudRunIngress => {
            format!("gcloud run services describe {run} --format='yaml(metadata.annotations)'")
        }
        Row::CloudRunUnavailable | Row::CloudRunApplication => {
            format!("gcloud run services logs read {run} --limit=20")
        }
        Row::FunctionAudience => call.patch(
            "audience",
            &format!("{origin}{}", url.path().trim_end_matches('/')),
        ),
        Row::FunctionInvoker => {
            let (region, project, function) = function(url);
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
        Row::CloudRunPerimeter
        | Row::IapNoToken
        | Row::GatewayNoToken
        | Row::GatewayIssuer
        | Row::GatewayKey
        | Row::GatewayPath
        | Row::BalancerBackend
        | Row::OwnRefusal
        | Row::OwnRedirect
        | Row::GoogleApi => return None,
    })
}

impl Call<'_> {
    fn patch(&self, field: &str, value: &str) -> String {
        self.patch_json(&serde_json::json!({"spec": {field: value}}).to_string())
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
        assert_eq!(
            told(
                Row::FunctionAudience,
                "https://europe-west1-p.cloudfunctions.net/f/?q",
                "a",
                None
            )
            .unwrap(),
            patch("https://europe-west1-p.cloudfunctions.net/f")
        );
        let client = "1-a.apps.googleusercontent.com";
        assert_eq!(
            told(Row::IapAudience, "https://a.example", "a", Some(client)).unwrap(),
            patch(client)
        );
        assert_eq!(told(Row::OwnRefusal, url, "a", None), None);
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
