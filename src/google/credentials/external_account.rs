//! An identity of a workload or workforce pool: the subject token that another identity provider issued, from a file or a URL,
//! an AWS identity, or an X.509 certificate (<https://google.aip.dev/auth/4117>). No executable is ever run for it.

use std::path::PathBuf;

use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

use super::allowed_hosts::checked_url;
use super::aws::{AwsSource, RawAws};
use super::certificate::{CertificateSource, ClientCertificate, RawCertificate};
use super::file_error::CredentialFileError;
use super::source::{no_subject_token, read_bounded, sha256};
use crate::google::transport::endpoint_client::EndpointClient;
use crate::google::vocabulary::{CallPriority, Error, GoogleConfig};
use crate::token::unverified_claims;

/// Credentials that exchange a subject token at the Security Token Service.
pub(crate) struct ExternalAccount {
    /// The provider's full resource name.
    pub(crate) audience: String,
    pub(crate) subject_token_type: String,
    pub(crate) token_url: Url,
    /// The project that is billed, for a workforce pool.
    pub(crate) user_project: Option<String>,
    source: SubjectSource,
}

/// Where the subject token is.
enum SubjectSource {
    File {
        path: PathBuf,
        format: Format,
    },
    Url {
        url: Url,
        headers: HeaderMap,
        format: Format,
    },
    Aws(AwsSource),
    Certificate(CertificateSource),
}

/// The format of the subject token.
enum Format {
    Text,
    /// A JSON object with the token in this field.
    Json(String),
}

/// An `external_account`, unchecked.
pub(crate) struct RawExternalAccount {
    pub(crate) audience: String,
    pub(crate) subject_token_type: String,
    pub(crate) token_url: Option<String>,
    pub(crate) user_project: Option<String>,
    pub(crate) source: RawSource,
}

/// Its `credential_source`.
#[derive(Deserialize)]
pub(crate) struct RawSource {
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    executable: Option<IgnoredAny>,
    environment_id: Option<String>,
    regional_cred_verification_url: Option<String>,
    region_url: Option<String>,
    imdsv2_session_token_url: Option<String>,
    certificate: Option<RawCertificate>,
    format: Option<RawFormat>,
}

#[derive(Deserialize)]
struct RawFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
    subject_token_field_name: Option<String>,
}

impl ExternalAccount {
    /// Checks the file's fields.
    pub(crate) fn new(raw: RawExternalAccount, config: &GoogleConfig) -> Result<Self, CredentialFileError> {
        Ok(Self {
            audience: raw.audience,
            subject_token_type: raw.subject_token_type,
            token_url: checked_url("token_url", raw.token_url.as_deref(), config)?
                .ok_or(CredentialFileError::Missing("token_url"))?,
            user_project: raw.user_project,
            source: subject_source(raw.source, config)?,
        })
    }

    /// The certificate by which the workload is known; `None` if it has a subject token of another kind.
    pub(super) async fn certificate(&self, now: Timestamp) -> Result<Option<ClientCertificate>, Error> {
        match &self.source {
            SubjectSource::Certificate(source) => source.read(now).await.map(Some),
            _ => Ok(None),
        }
    }

    /// Gets the subject token. It is not cached, because its issuer rotates it.
    pub(super) async fn subject_token(&self, client: &EndpointClient) -> Result<Zeroizing<String>, Error> {
        let token = match &self.source {
            SubjectSource::File { path, format } => {
                let content = read_bounded(path).await.map_err(|error| {
                    no_subject_token(&format!("the file {} cannot be read: {error}", path.display()))
                })?;
                format.read(&content)
            }
            SubjectSource::Url { url, headers, format } => {
                let request = client.http_for(url).get(url.clone()).headers(headers.clone());
                let response = client
                    .call_with(
                        CallPriority::OPERATOR,
                        || Ok(request),
                        |endpoint, response| {
                            response.error_from_text(endpoint, "the subject token comes from there")
                        },
                    )
                    .await?;
                format.read(&response.body)
            }
            SubjectSource::Aws(source) => return source.subject_token(client, &self.audience).await,
            SubjectSource::Certificate(source) => {
                let certificate = source.read(client.clock().now()).await?;
                return Ok(certificate.subject_token.into());
            }
        };
        token.map_err(no_subject_token)
    }

    /// A digest of whom the subject token is for. A JWT that is rotated stays the same workload's; of another format, each token counts as
    /// another's, as does each certificate. `None` if it is in no file, or cannot be used at `now`.
    pub(crate) async fn subject_identity(&self, now: Timestamp) -> Option<[u8; 32]> {
        #[derive(Deserialize)]
        struct Claims {
            iss: String,
            sub: String,
        }
        let (path, format) = match &self.source {
            SubjectSource::File { path, format } => (path, format),
            SubjectSource::Certificate(source) => {
                return source.read(now).await.ok().map(|read| sha256(&read.leaf));
            }
            SubjectSource::Url { .. } | SubjectSource::Aws(_) => return None,
        };
        let token = format.read(&read_bounded(path).await.ok()?).ok()?;
        Some(match unverified_claims::<Claims>(&token) {
            Some(Claims { iss, sub }) => sha256(format!("{iss} {sub}").as_bytes()),
            None => sha256(token.as_bytes()),
        })
    }
}

fn subject_source(source: RawSource, config: &GoogleConfig) -> Result<SubjectSource, CredentialFileError> {
    if source.executable.is_some() {
        return Err(CredentialFileError::Executable);
    }
    if let Some(certificate) = source.certificate {
        if source.file.is_some() || source.url.is_some() || source.environment_id.is_some() {
            return Err(CredentialFileError::Unsupported(
                "a certificate and another subject token in its credential_source",
            ));
        }
        return CertificateSource::new(certificate).map(SubjectSource::Certificate);
    }
    if let Some(environment_id) = source.environment_id {
        let raw = RawAws {
            environment_id,
            verification_url: source.regional_cred_verification_url,
            region_url: source.region_url,
            credentials_url: source.url,
            session_url: source.imdsv2_session_token_url,
        };
        return AwsSource::new(raw, config).map(SubjectSource::Aws);
    }
    let format = format(source.format)?;
    if let Some(path) = source.file {
        return Ok(SubjectSource::File { path, format });
    }
    let url = checked_url("credential_source.url", source.url.as_deref(), config)?;
    let url = url.ok_or(CredentialFileError::Missing(
        "credential_source that the operator supports",
    ))?;
    let mut headers = HeaderMap::new();
    for (name, value) in source.headers {
        let wrong = CredentialFileError::Unsupported("a header that no request can have");
        let (Ok(name), Ok(mut value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(&value),
        ) else {
            return Err(wrong);
        };
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(SubjectSource::Url { url, headers, format })
}

fn format(raw: Option<RawFormat>) -> Result<Format, CredentialFileError> {
    let Some(raw) = raw else { return Ok(Format::Text) };
    match (raw.kind.as_deref(), raw.subject_token_field_name) {
        (None | Some("text"), _) => Ok(Format::Text),
        (Some("json"), Some(field)) => Ok(Format::Json(field)),
        (Some("json"), None) => Err(CredentialFileError::Missing(
            "credential_source.format.subject_token_field_name",
        )),
        (Some(_), _) => Err(CredentialFileError::Unsupported(
            "a credential_source.format other than text and json",
        )),
    }
}

impl Format {
    fn read(&self, content: &[u8]) -> Result<Zeroizing<String>, &'static str> {
        let token = match self {
            Self::Text => std::str::from_utf8(content)
                .ok()
                .map(|text| Zeroizing::new(text.trim().to_owned())),
            Self::Json(field) => serde_json::from_slice::<std::collections::HashMap<String, Value>>(content)
                .ok()
                .and_then(|mut fields| match fields.remove(field) {
                    Some(Value::String(token)) => Some(Zeroizing::new(token)),
                    _ => None,
                }),
        };
        token
            .filter(|token| !token.is_empty())
            .ok_or("what came does not have the format in credential_source")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let json = Format::Json("token".to_owned());
        assert_eq!(
            json.read(br#"{"token":"a","b":1}"#)
                .map(|token| token.to_string()),
            Ok("a".to_owned())
        );
        assert!(json.read(b"a").is_err() && json.read(br#"{"token":1}"#).is_err());
        assert_eq!(
            Format::Text.read(b" a\n").map(|token| token.to_string()),
            Ok("a".to_owned())
        );
        assert!(Format::Text.read(b" \n").is_err());
    }
}
