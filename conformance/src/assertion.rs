//! The assertions: what is asked, what the answer is, and how that is known. They stand in `assertions/`, a file for each service.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use idtoken_emulator::Fault;
use serde::Deserialize;
use serde_json::Value;

use crate::source::Source;

const FILES: [(Service, &str); 6] = [
    (
        Service::Iamcredentials,
        include_str!("../assertions/iam_credentials.yaml"),
    ),
    (Service::Sts, include_str!("../assertions/sts.yaml")),
    (Service::Oauth2, include_str!("../assertions/oauth2.yaml")),
    (
        Service::Metadata,
        include_str!("../assertions/metadata_server.yaml"),
    ),
    (Service::Www, include_str!("../assertions/keys.yaml")),
    (
        Service::Ec2,
        include_str!("../assertions/ec2_metadata_server.yaml"),
    ),
];

/// What serves a request: a host of Google's, `SERVICE.googleapis.com`, or the metadata server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// The IAM Service Account Credentials API.
    Iamcredentials,
    /// The Security Token Service.
    Sts,
    /// The token service of GKE's own pools.
    Securetoken,
    /// The OAuth 2.0 token endpoint.
    Oauth2,
    /// The metadata server.
    Metadata,
    /// The published keys.
    Www,
    /// EC2's metadata server, which has the AWS identity that Google is shown.
    Ec2,
}

impl Service {
    /// The first label of its host.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Iamcredentials => "iamcredentials",
            Self::Sts => "sts",
            Self::Securetoken => "securetoken",
            Self::Oauth2 => "oauth2",
            Self::Metadata => "metadata",
            Self::Www => "www",
            Self::Ec2 => "ec2",
        }
    }

    /// Its name in headings.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Iamcredentials => "IAM Service Account Credentials",
            Self::Sts => "Security Token Service",
            Self::Securetoken => "GKE's token service",
            Self::Oauth2 => "OAuth 2.0 token endpoint",
            Self::Metadata => "Metadata server",
            Self::Www => "Published keys",
            Self::Ec2 => "EC2's metadata server",
        }
    }

    /// The file of a section, in `assertions/`.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Iamcredentials => "iam_credentials.yaml",
            Self::Sts | Self::Securetoken => "sts.yaml",
            Self::Oauth2 => "oauth2.yaml",
            Self::Metadata => "metadata_server.yaml",
            Self::Www => "keys.yaml",
            Self::Ec2 => "ec2_metadata_server.yaml",
        }
    }
}

/// One assertion.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assertion {
    /// Its name, which no other has.
    pub name: String,
    /// The behaviour, in one sentence.
    pub says: String,
    /// How that is known.
    pub source: Source,
    /// Why Google itself cannot be asked for it. Absent: it can.
    #[serde(default)]
    pub only_emulated: Option<String>,
    /// What the emulator must do wrong.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// What is different in the emulator's policy: a JSON merge patch (RFC 7396).
    #[serde(default)]
    pub policy: Option<Value>,
    /// What is asked.
    pub request: Request,
    /// The answer.
    pub answer: Answer,
    /// The section that the assertion is in: that of its file.
    #[serde(skip)]
    pub section: Option<Service>,
}

/// A request. Its texts may have variables, which `world.rs` gives values.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// Who is asked. Absent: the service of the file.
    #[serde(default)]
    pub service: Option<Service>,
    /// Method and path, such as `POST /v1/token`.
    pub call: String,
    /// The bearer token.
    #[serde(default)]
    pub bearer: Option<String>,
    /// Other headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// A body of JSON.
    #[serde(default)]
    pub json: Option<Value>,
    /// A body of a form. A value is a text, or `{signer, claims}`, which is signed to a subject token.
    #[serde(default)]
    pub form: Option<BTreeMap<String, Value>>,
    /// Whether the client shows the certificate of a workload, at the host for that.
    #[serde(default)]
    pub certificate: bool,
    /// Whether it is asked twice, for the answers to be compared with each other.
    #[serde(default)]
    pub twice: bool,
}

/// An answer in its normal form, as `normal.rs` makes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Headers that it has.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The whole body. `<any>` stands for any value.
    pub body: Value,
}

/// What the emulator does besides.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Behaviour {
    /// What of the emulator's code does it, such as `fault delay`.
    pub covers: Vec<String>,
    /// The behaviour, in one sentence.
    pub says: String,
    /// How it is known that Google does so too; none if only the emulator does.
    pub source: Source,
}

/// All of what the emulator does besides what assertions state.
///
/// # Errors
/// When the file is malformed.
pub fn behaviours() -> Result<Vec<Behaviour>> {
    serde_saphyr::from_str(include_str!("../assertions/behaviours.yaml")).context("the behaviours")
}

impl Assertion {
    /// Who is asked.
    #[must_use]
    pub fn service(&self) -> Service {
        let section = self.section.unwrap_or(Service::Sts);
        self.request.service.unwrap_or(section)
    }

    /// Method and path.
    #[must_use]
    pub fn call(&self) -> (&str, &str) {
        self.request
            .call
            .split_once(' ')
            .unwrap_or(("GET", &self.request.call))
    }

    /// Why Google itself is not asked, if it is not.
    #[must_use]
    pub fn why_only_emulated(&self) -> Option<&str> {
        let usual = match (&self.fault, &self.policy) {
            (Some(_), _) => Some("a failure cannot be ordered there"),
            (None, Some(_)) => Some("it needs another project or instance"),
            (None, None) => None,
        };
        self.only_emulated.as_deref().or(usual)
    }
}

/// All assertions, in the order of the pages.
///
/// # Errors
/// When a file is malformed, or a name occurs twice.
pub fn all() -> Result<Vec<Assertion>> {
    let (mut all, mut names) = (Vec::new(), BTreeSet::new());
    for (service, text) in FILES {
        let file: Vec<Assertion> =
            serde_saphyr::from_str(text).with_context(|| format!("the assertions of {}", service.label()))?;
        for mut assertion in file {
            ensure!(
                names.insert(assertion.name.clone()),
                "{} is there twice",
                assertion.name
            );
            assertion.section = Some(service);
            all.push(assertion);
        }
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_says_one_sentence_and_calls_a_method() {
        let all = all().unwrap();
        assert!(all.len() > 90, "{} assertions", all.len());
        for assertion in all {
            let (method, path) = assertion.call();
            assert!(
                matches!(method, "GET" | "POST" | "PUT") && path.starts_with('/'),
                "{}",
                assertion.name
            );
            assert!(
                assertion.says.ends_with('.') && !assertion.says.contains('\n'),
                "{}",
                assertion.name
            );
            assert!(
                assertion
                    .name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            );
        }
    }
}
