//! Pure: the answer of a target → who answered, and the row of docs/targets.md that fits.

use serde_json::Value;
use url::Url;

use crate::decisions::target_rows::Row;

/// Most bytes of a body that are read.
pub(crate) const MAX_BODY: usize = 64 * 1024;

/// What a target answered. Anyone may have written it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case, with the values that are text.
    pub(crate) headers: Vec<(String, String)>,
    /// At most [`MAX_BODY`] bytes.
    pub(crate) body: String,
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answerer {
    FrontEnd,
    Iap,
    Gateway,
    GoogleApi,
    LoadBalancer,
    Application,
}

/// The kind of target, as its host or the audience of the token tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetKind {
    CloudRun,
    Function,
    Other,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recognized {
    pub(crate) by: Answerer,
    /// None if the page has no row for it, or there is nothing to fix.
    pub(crate) row: Option<Row>,
}

impl Answerer {
    /// As it is shown.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::FrontEnd => "Google's front end, before the application",
            Self::Iap => "Identity-Aware Proxy, before the application",
            Self::Gateway => "API Gateway, Cloud Endpoints or an Envoy, before the application",
            Self::GoogleApi => "an API of Google",
            Self::LoadBalancer => "the load balancer, before the application",
            Self::Application => "the application",
        }
    }

    /// As JSON has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FrontEnd => "FrontEnd",
            Self::Iap => "IdentityAwareProxy",
            Self::Gateway => "Gateway",
            Self::GoogleApi => "GoogleApi",
            Self::LoadBalancer => "LoadBalancer",
            Self::Application => "Application",
        }
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether it is one of the pages that Google's front ends write: both their plain and their illustrated ones.
    fn is_google_page(&self) -> bool {
        let plain = self.body.contains("<h1>Error: ") && self.body.contains("bgcolor=#ffffff");
        let illustrated = self.body.contains("!!1</title>") && self.body.contains("www.google.com");
        plain || illustrated
    }

    /// `message` of a body `{"code": …, "message": …}`, or a body of one line.
    fn message(&self) -> Option<String> {
        match serde_json::from_str::<Value>(&self.body) {
            Ok(json) => json["message"].as_str().map(str::to_owned),
            Err(_) => {
                let line = self.body.trim();
                (!line.contains('\n')).then(|| line.to_owned())
            }
        }
    }
}

/// The kind of a target, by the called host or else by the audience, since a service may be called by another name.
pub(crate) fn target_kind(url: &Url, audience: &str) -> TargetKind {
    let of = |host: Option<&str>| match host {
        Some(host) if host.ends_with(".run.app") => TargetKind::CloudRun,
        Some(host) if host.ends_with(".cloudfunctions.net") => TargetKind::Function,
        _ => TargetKind::Other,
    };
    match of(url.host_str()) {
        TargetKind::Other => {
            let audience = Url::parse(audience).ok();
            of(audience.as_ref().and_then(Url::host_str))
        }
        kind => kind,
    }
}

/// What an answer of a target of this kind means.
pub(crate) fn recognize(answer: &Answer, kind: TargetKind) -> Recognized {
    let found = |by, row| Recognized { by, row };
    if let Some(row) = iap(answer) {
        return found(Answerer::Iap, row);
    }
    if (200..300).contains(&answer.status) {
        return found(Answerer::Application, None);
    }
    if let Some(row) = gateway(answer) {
        return found(Answerer::Gateway, Some(row));
    }
    if answer.body.contains("vpcServiceControlsUniqueIdentifier")
        || answer.body.contains("VPC_SERVICE_CONTROLS")
    {
        return found(Answerer::FrontEnd, Some(Row::CloudRunPerimeter));
    }
    if answer.body.contains("ACCESS_TOKEN_TYPE_UNSUPPORTED")
        || answer.body.contains("Expected OAuth 2 access token")
    {
        return found(Answerer::GoogleApi, Some(Row::GoogleApi));
    }
    if let Some(recognized) = front_end(answer, kind) {
        return recognized;
    }
    let row = match (answer.status, kind) {
        (300..=399, _) => Some(Row::OwnRedirect),
        (401, TargetKind::CloudRun) => Some(Row::CloudRunApplication),
        (401 | 403, _) => Some(Row::OwnRefusal),
        _ => None,
    };
    found(Answerer::Application, row)
}

/// Whether IAP answered, and with which row.
fn iap(answer: &Answer) -> Option<Option<Row>> {
    let body = answer.body.trim_start();
    let location = answer.header("location").unwrap_or_default();
    let signs_in =
        location.starts_with("https://accounts.google.com/") && location.contains("iap.googleapis.com");
    let is_iap = answer.header("x-goog-iap-generated-response").is_some()
        || body.starts_with("Invalid IAP credentials")
        || signs_in;
    if !is_iap {
        return None;
    }
    let says = |text: &str| body.contains(text);
    Some(if answer.status == 302 || says("empty token") {
        Some(Row::IapNoToken)
    } else if says("Invalid JWT audience") {
        Some(Row::IapAllowList)
    } else if says("JWT audience doesn't match") {
        Some(Row::IapAudience)
    } else if says("Unable to parse JWT") || says("JWT signature is invalid") {
        Some(Row::IapNotGoogles)
    } else if says("'email' claim") {
        Some(Row::IapEmail)
    } else if answer.status == 403 {
        Some(Row::IapRole)
    } else {
        None
    })
}

fn gateway(answer: &Answer) -> Option<Row> {
    let message = answer.message()?;
    let begins = |text: &str| message.starts_with(text);
    if begins("Jwt is missing") {
        Some(Row::GatewayNoToken)
    } else if begins("Jwt issuer is not configured") {
        Some(Row::GatewayIssuer)
    } else if begins("Audiences in Jwt are not allowed") {
        Some(Row::GatewayAudience)
    } else if begins("Jwt is expired") {
        Some(Row::GatewayExpired)
    } else if begins("Jwt ") || begins("Jwks ") {
        Some(Row::GatewaySignature)
    } else if message.contains("doesn't allow unregistered callers") {
        Some(Row::GatewayKey)
    } else if begins("The current request is not defined by this API") {
        Some(Row::GatewayPath)
    } else {
        None
    }
}

fn front_end(answer: &Answer, kind: TargetKind) -> Option<Recognized> {
    let says = |text: &str| answer.body.contains(text);
    // Cloud Run sets it on the answers of applications too: alone, it tells nothing.
    let through_front_end = answer.header("server") == Some("Google Frontend");
    let page = answer.is_google_page();
    let is_function = kind == TargetKind::Function;
    let row = match answer.status {
        401 if says("Your client does not have permission to the requested URL")
            || (page || answer.body.trim().is_empty())
                && answer
                    .header("www-authenticate")
                    .is_some_and(|value| value.contains("The access token could not be verified")) =>
        {
            match is_function {
                true => Row::FunctionAudience,
                false => Row::CloudRunAudience,
            }
        }
        403 if says("Your client does not have permission to get URL") => match is_function {
            true => Row::FunctionInvoker,
            false => Row::CloudRunInvoker,
        },
        404 if page && kind != TargetKind::Function => Row::CloudRunIngress,
        429 | 500 | 503 if (says("Rate exceeded") && through_front_end) || says("no available instance") => {
            Row::CloudRunUnavailable
        }
        500 | 502 | 503 | 504 if page && kind != TargetKind::Other => Row::CloudRunUnavailable,
        500 | 502 | 503 | 504 if page || says("no healthy upstream") => {
            return Some(Recognized {
                by: Answerer::LoadBalancer,
                row: Some(Row::BalancerBackend),
            });
        }
        _ if page => {
            return Some(Recognized {
                by: Answerer::FrontEnd,
                row: None,
            });
        }
        _ => return None,
    };
    Some(Recognized {
        by: Answerer::FrontEnd,
        row: Some(row),
    })
}

/// The audience that IAP says it expects: the ID of an OAuth client, and nothing else that a server may write there.
pub(crate) fn expected_audience(answer: &Answer) -> Option<&str> {
    let (_, rest) = answer.body.split_once("doesn't match expected value (")?;
    let (client, _) = rest.split_once(')')?;
    let (number, random) = client
        .strip_suffix(".apps.googleusercontent.com")?
        .split_once('-')?;
    let is_number = (6..=14).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    let is_random = (1..=40).contains(&random.len())
        && random
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (is_number && is_random).then_some(client)
}

/// Parses the head and the body of an answer as `curl --include` prints them. Interim answers (100) are skipped.
pub(crate) fn parse(text: &str) -> Option<Answer> {
    let mut rest = text.trim_start_matches(['\r', '\n']);
    loop {
        let (head, body) = match rest.split_once("\n\n") {
            Some((head, body)) => (head, body),
            None => (rest.trim_end_matches('\n'), ""),
        };
        let mut lines = head.lines();
        let mut words = lines.next()?.strip_prefix("HTTP/")?.split_whitespace();
        let status: u16 = words.nth(1)?.parse().ok()?;
        if (100..200).contains(&status) && !body.is_empty() {
            rest = body;
            continue;
        }
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        return Some(Answer {
            status,
            headers,
            body: body.to_owned(),
        });
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
