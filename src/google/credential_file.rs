//! The operator's credential file: read, and checked before a byte of it is used.
//!
//! A credential file says where secrets are sent. One from an untrusted hand could send them anywhere, so every address in
//! it must be in the universe, on loopback, or allowed by the operator's flags:
//! <https://cloud.google.com/docs/authentication/client-libraries#external-credentials>.

use serde_json::Value;
use url::{Host, Url};

use super::config::{DEFAULT_UNIVERSE, GoogleConfig, is_link_local, is_loopback};
use super::principal::Principal;
use super::text;

/// The longest credential file, in bytes; Google's are about 2.5 KiB.
pub(crate) const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The kinds of credential file that can act as the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ServiceAccount,
    AuthorizedUser,
    ImpersonatedServiceAccount,
    ExternalAccount,
}

/// A checked credential file. It holds secrets, hence no `Debug`.
pub(crate) struct CredentialFile {
    pub(crate) kind: Kind,
    pub(crate) json: Value,
    pub(crate) principal: Option<Principal>,
}

/// What is wrong with a credential file. No message holds a value of it but hosts and type names.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialFileError {
    #[error("it is not a JSON object (line {line}, column {column})")]
    NotJson { line: usize, column: usize },
    #[error("it is longer than 64 KiB")]
    TooLong,
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error(
        "its type is {0:?}; the types that work are service_account, authorized_user, external_account and \
         impersonated_service_account"
    )]
    UnknownType(String),
    #[error("it is for the universe {file:?}, but the operator is set to {operator:?}")]
    OtherUniverse { file: String, operator: String },
    #[error("its {field} is not a URL")]
    NotUrl { field: &'static str },
    #[error("its {field} leads to {host:?} without https")]
    NotHttps { field: &'static str, host: String },
    #[error(
        "its {field} leads to {host:?}, which is not in the universe {universe}; if that is intended, allow that host with \
         the operator's flag --allowed-credential-host"
    )]
    ForeignHost {
        field: &'static str,
        host: String,
        universe: String,
    },
    #[error(
        "it runs an executable; if that is intended, start the operator with --allow-executable-credentials"
    )]
    Executable,
}

impl CredentialFile {
    /// Reads and checks a file's content.
    pub(crate) fn parse(content: &[u8], config: &GoogleConfig) -> Result<Self, CredentialFileError> {
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(CredentialFileError::TooLong);
        }
        let json: Value = serde_json::from_slice(content).map_err(|error| CredentialFileError::NotJson {
            line: error.line(),
            column: error.column(),
        })?;
        let (kind, principal) = check(&json, config)?;
        Ok(Self {
            kind,
            json,
            principal,
        })
    }
}

fn check(json: &Value, config: &GoogleConfig) -> Result<(Kind, Option<Principal>), CredentialFileError> {
    let name = json["type"]
        .as_str()
        .ok_or(CredentialFileError::Missing("type"))?;
    check_universe(json, config)?;
    for field in [
        "token_uri",
        "token_url",
        "token_info_url",
        "revoke_url",
        "service_account_impersonation_url",
    ] {
        check_url(field, &json[field], config)?;
    }
    match name {
        "service_account" => {
            let email = json["client_email"]
                .as_str()
                .ok_or(CredentialFileError::Missing("client_email"))?;
            let unique_id = json["client_id"].as_str().map(str::to_owned);
            Ok((
                Kind::ServiceAccount,
                Some(Principal::ServiceAccount {
                    email: email.to_owned(),
                    unique_id,
                }),
            ))
        }
        "authorized_user" => {
            let email = json["account"].as_str().filter(|account| account.contains('@'));
            Ok((
                Kind::AuthorizedUser,
                email.map(|email| Principal::User {
                    email: email.to_owned(),
                }),
            ))
        }
        "impersonated_service_account" => {
            let source = &json["source_credentials"];
            if !source.is_object() {
                return Err(CredentialFileError::Missing("source_credentials"));
            }
            if source["type"] == "impersonated_service_account" {
                return Err(CredentialFileError::UnknownType(
                    "impersonated_service_account twice".to_owned(),
                ));
            }
            check(source, config)?;
            let url = "service_account_impersonation_url";
            let principal = impersonated(&json[url]).ok_or(CredentialFileError::Missing(url))?;
            Ok((Kind::ImpersonatedServiceAccount, Some(principal)))
        }
        "external_account" => {
            check_source(&json["credential_source"], config)?;
            let principal = impersonated(&json["service_account_impersonation_url"])
                .or_else(|| json["audience"].as_str().and_then(Principal::from_audience));
            Ok((Kind::ExternalAccount, principal))
        }
        other => Err(CredentialFileError::UnknownType(text::redacted(other, 64))),
    }
}

fn check_universe(json: &Value, config: &GoogleConfig) -> Result<(), CredentialFileError> {
    let file = match &json["universe_domain"] {
        Value::String(universe) if !universe.is_empty() => universe.as_str(),
        _ => DEFAULT_UNIVERSE,
    };
    if file == config.universe_domain {
        return Ok(());
    }
    Err(CredentialFileError::OtherUniverse {
        file: text::redacted(file, 128),
        operator: config.universe_domain.clone(),
    })
}

/// Where an external account gets the subject token from.
fn check_source(source: &Value, config: &GoogleConfig) -> Result<(), CredentialFileError> {
    if !source["executable"].is_null() && !config.allow_executable {
        return Err(CredentialFileError::Executable);
    }
    for field in [
        "url",
        "region_url",
        "regional_cred_verification_url",
        "imdsv2_session_token_url",
    ] {
        check_url(field, &source[field], config)?;
    }
    Ok(())
}

fn check_url(field: &'static str, value: &Value, config: &GoogleConfig) -> Result<(), CredentialFileError> {
    let url = match value {
        Value::Null => return Ok(()),
        Value::String(url) if url.is_empty() => return Ok(()),
        Value::String(url) => Url::parse(url).map_err(|_| CredentialFileError::NotUrl { field })?,
        _ => return Err(CredentialFileError::NotUrl { field }),
    };
    if is_loopback(&url) && matches!(url.scheme(), "http" | "https") {
        return Ok(());
    }
    let host = url
        .host_str()
        .ok_or(CredentialFileError::NotUrl { field })?
        .to_ascii_lowercase();
    let shown = || text::redacted(&host, 253);
    let allowed_by_flag = config
        .allowed_credential_hosts
        .iter()
        .any(|allowed| matches_host(allowed, &host));
    let in_universe = matches!(url.host(), Some(Host::Domain(_)))
        && (is_within(&host, &config.universe_domain)
            || is_within(&host, DEFAULT_UNIVERSE)
            // The token_uri of service account keys made before 2018.
            || host == "accounts.google.com");
    if !in_universe && !allowed_by_flag {
        return Err(CredentialFileError::ForeignHost {
            field,
            host: shown(),
            universe: config.universe_domain.clone(),
        });
    }
    // Metadata servers of other clouds, once allowed, speak plain http and cannot be reached from another machine.
    let plain_is_local = url.scheme() == "http" && is_link_local(&url);
    if url.scheme() != "https" && !plain_is_local {
        return Err(CredentialFileError::NotHttps { field, host: shown() });
    }
    Ok(())
}

fn is_within(host: &str, domain: &str) -> bool {
    host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// `example.com` is that host; `.example.com` is everything below it.
fn matches_host(allowed: &str, host: &str) -> bool {
    let allowed = allowed.trim().to_ascii_lowercase();
    match allowed.strip_prefix('.') {
        Some(domain) => host.len() > allowed.len() && is_within(host, domain),
        None => host == allowed || host.trim_matches(['[', ']']) == allowed,
    }
}

/// The account in `…/serviceAccounts/EMAIL:generateAccessToken`.
fn impersonated(url: &Value) -> Option<Principal> {
    let (_, rest) = url.as_str()?.rsplit_once("/serviceAccounts/")?;
    let email = rest
        .strip_suffix(":generateAccessToken")
        .unwrap_or(rest)
        .replace("%40", "@");
    (!email.is_empty()).then_some(Principal::ServiceAccount {
        email,
        unique_id: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(json: &Value, config: &GoogleConfig) -> Result<CredentialFile, CredentialFileError> {
        CredentialFile::parse(json.to_string().as_bytes(), config)
    }

    fn external(changes: &[(&str, Value)]) -> Value {
        let mut json = json!({
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": "https://sts.googleapis.com/v1/token",
            "credential_source": {"file": "/var/run/token"},
        });
        for (key, value) in changes {
            json[*key] = value.clone();
        }
        json
    }

    #[test]
    fn knows_the_principal() {
        let config = GoogleConfig::default();
        let of = |json: &Value| {
            parse(json, &config)
                .ok()
                .and_then(|file| file.principal)
                .map(|p| p.to_string())
        };
        let key = json!({"type": "service_account", "client_email": "op@p.iam.gserviceaccount.com",
            "token_uri": "https://oauth2.googleapis.com/token"});
        assert_eq!(of(&key).as_deref(), Some("op@p.iam.gserviceaccount.com"));
        let url = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/x@p.iam.gserviceaccount.com:generateAccessToken";
        let chained = json!({"type": "impersonated_service_account", "service_account_impersonation_url": url,
            "source_credentials": {"type": "authorized_user"}});
        assert_eq!(of(&chained).as_deref(), Some("x@p.iam.gserviceaccount.com"));
        let external_url = external(&[("service_account_impersonation_url", json!(url))]);
        assert_eq!(of(&external_url).as_deref(), Some("x@p.iam.gserviceaccount.com"));
        assert!(of(&external(&[])).is_some_and(|name| name.contains("workloadIdentityPools/p")));
    }

    #[test]
    fn secrets_go_to_google_only() {
        let config = GoogleConfig::default();
        for (field, url) in [
            ("token_url", "https://sts.evil.example/v1/token"),
            ("token_url", "https://googleapis.com.evil.example/"),
            ("token_url", "https://evilgoogleapis.com/"),
            ("token_url", "https://sts.googleapis.com@evil.example/"),
            ("token_url", "https://10.0.0.1/"),
            (
                "service_account_impersonation_url",
                "https://evil.example/v1/projects/-/serviceAccounts/x:generateAccessToken",
            ),
        ] {
            let result = parse(&external(&[(field, json!(url))]), &config);
            assert!(
                matches!(result.err(), Some(CredentialFileError::ForeignHost { .. })),
                "{url}"
            );
        }
        let plain = external(&[("token_url", json!("http://sts.googleapis.com/"))]);
        assert!(matches!(
            parse(&plain, &config).err(),
            Some(CredentialFileError::NotHttps { .. })
        ));
        for url in ["not a url", "https://", "file:///etc/passwd"] {
            let result = parse(&external(&[("token_url", json!(url))]), &config);
            assert!(result.is_err(), "{url}");
        }
        let nested = json!({"type": "impersonated_service_account",
            "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/x:generateAccessToken",
            "source_credentials": {"type": "authorized_user", "token_uri": "https://evil.example/"}});
        assert!(parse(&nested, &config).is_err());
        assert!(
            parse(
                &external(&[("token_url", json!("http://127.0.0.1:1/v1/token"))]),
                &config
            )
            .is_ok()
        );
    }

    #[test]
    fn allowed_hosts() {
        let source = |url: &str| external(&[("credential_source", json!({"url": url}))]);
        let allowing = |hosts: &[&str]| GoogleConfig {
            allowed_credential_hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            ..GoogleConfig::default()
        };
        assert!(
            parse(
                &source("https://tokens.corp.example/t"),
                &allowing(&["tokens.corp.example"])
            )
            .is_ok()
        );
        assert!(
            parse(
                &source("https://tokens.corp.example/t"),
                &allowing(&[".corp.example"])
            )
            .is_ok()
        );
        assert!(parse(&source("https://corp.example/t"), &allowing(&[".corp.example"])).is_err());
        assert!(
            parse(
                &source("https://evilcorp.example/t"),
                &allowing(&[".corp.example"])
            )
            .is_err()
        );
        assert!(
            parse(
                &source("http://tokens.corp.example/t"),
                &allowing(&["tokens.corp.example"])
            )
            .is_err()
        );
        let azure = source("http://169.254.169.254/metadata/identity/oauth2/token");
        assert!(parse(&azure, &allowing(&[])).is_err());
        assert!(parse(&azure, &allowing(&["169.254.169.254"])).is_ok());
        let aws = external(&[(
            "credential_source",
            json!({"environment_id": "aws1", "region_url": "http://[fd00:ec2::254]/region",
                "regional_cred_verification_url": "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity"}),
        )]);
        assert!(parse(&aws, &allowing(&["fd00:ec2::254", ".amazonaws.com"])).is_ok());
        assert!(parse(&aws, &allowing(&["fd00:ec2::254"])).is_err());
    }

    #[test]
    fn executables_need_a_flag_and_universes_must_agree() {
        let executable = external(&[("credential_source", json!({"executable": {"command": "/bin/x"}}))]);
        let config = GoogleConfig::default();
        assert_eq!(
            parse(&executable, &config).err(),
            Some(CredentialFileError::Executable)
        );
        assert!(
            parse(
                &executable,
                &GoogleConfig {
                    allow_executable: true,
                    ..config.clone()
                }
            )
            .is_ok()
        );
        let elsewhere = external(&[("universe_domain", json!("evil.example"))]);
        assert!(matches!(
            parse(&elsewhere, &config).err(),
            Some(CredentialFileError::OtherUniverse { .. })
        ));
        let config = GoogleConfig {
            universe_domain: "cloud.example".to_owned(),
            ..config
        };
        let json = external(&[
            ("universe_domain", json!("cloud.example")),
            ("token_url", json!("https://sts.cloud.example/v1/token")),
        ]);
        assert!(parse(&json, &config).is_ok());
    }

    #[test]
    fn errors_hold_no_secret() {
        let config = GoogleConfig::default();
        let broken = br#"{"type": "service_account", "private_key": "SECRET" "#;
        let error = CredentialFile::parse(broken, &config).err().expect("broken");
        assert!(!format!("{error} {error:?}").contains("SECRET"));
        for bad in [
            &b"[]"[..],
            b"{}",
            b"null",
            b"{\"type\": 1}",
            b"{\"type\":\"gdch_service_account\"}",
        ] {
            assert!(CredentialFile::parse(bad, &config).is_err());
        }
    }
}
