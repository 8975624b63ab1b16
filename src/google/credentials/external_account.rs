//! An identity of a workload or workforce pool: the subject token that another identity provider gave, from a file, an address or an
//! executable (<https://google.aip.dev/auth/4117>).

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::timeout;
use url::Url;
use zeroize::Zeroizing;

use super::allowed_hosts::address;
use super::file_error::CredentialFileError;
use crate::google::transport::endpoint_client::Upstream;
use crate::google::transport::http::MAX_ANSWER_BYTES;
use crate::google::vocabulary::{Caller, Endpoint, Error, ErrorClass, GoogleConfig, Reason};
use crate::text;

/// How long an executable may run where the file does not say, and at most.
const EXECUTABLE_TIMEOUT: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(60));

/// What is exchanged at the Security Token Service, and for what.
pub(crate) struct ExternalAccount {
    /// The provider's full resource name.
    pub(crate) audience: String,
    pub(crate) subject_token_type: String,
    pub(crate) token_url: Url,
    /// The project that pays, for a workforce pool.
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
    Executable {
        command: String,
        timeout: Duration,
        output_file: Option<PathBuf>,
        account: Option<String>,
    },
}

/// How the subject token is written.
enum Format {
    Text,
    /// A JSON object with the token in this field.
    Json(String),
}

/// An `external_account` as the file has it.
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
    executable: Option<RawExecutable>,
    environment_id: Option<String>,
    certificate: Option<Value>,
    format: Option<RawFormat>,
}

#[derive(Deserialize)]
struct RawFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
    subject_token_field_name: Option<String>,
}

#[derive(Deserialize)]
struct RawExecutable {
    command: String,
    timeout_millis: Option<u64>,
    output_file: Option<PathBuf>,
}

impl ExternalAccount {
    /// Checks what the file says. `account` is the service account to be impersonated, which an executable is told.
    pub(crate) fn new(
        raw: RawExternalAccount,
        account: Option<String>,
        config: &GoogleConfig,
    ) -> Result<Self, CredentialFileError> {
        Ok(Self {
            audience: raw.audience,
            subject_token_type: raw.subject_token_type,
            token_url: address("token_url", raw.token_url.as_deref(), config)?
                .ok_or(CredentialFileError::Missing("token_url"))?,
            user_project: raw.user_project,
            source: subject_source(raw.source, account, config)?,
        })
    }

    /// Gets the subject token, anew each time: who issues it rotates it.
    pub(crate) async fn subject_token(&self, upstream: &Upstream) -> Result<Zeroizing<String>, Error> {
        let token = match &self.source {
            SubjectSource::File { path, format } => {
                let content = read(path).await.map_err(|error| {
                    no_subject_token(
                        &format!("the file {} cannot be read: {error}", path.display()),
                        ErrorClass::Rejected,
                    )
                })?;
                format.read(&content)
            }
            SubjectSource::Url { url, headers, format } => {
                let request = upstream.client_for(url).get(url.clone()).headers(headers.clone());
                let answer = upstream
                    .call_with(Caller::OPERATOR, request, |endpoint, answer| {
                        answer.error_from_text(endpoint, "it is where the subject token was to come from")
                    })
                    .await?;
                format.read(&answer.body)
            }
            SubjectSource::Executable {
                command,
                timeout,
                output_file,
                account,
            } => {
                return self
                    .run(command, *timeout, output_file.as_ref(), account.as_deref())
                    .await;
            }
        };
        token.map_err(|problem| no_subject_token(problem, ErrorClass::Rejected))
    }

    async fn run(
        &self,
        command: &str,
        limit: Duration,
        output_file: Option<&PathBuf>,
        account: Option<&str>,
    ) -> Result<Zeroizing<String>, Error> {
        if let Some(path) = output_file
            && let Ok(content) = read(path).await
            && let Ok(token) = executable_answer(&content, SystemTime::now())
        {
            return Ok(token);
        }
        let refused = |problem: &str| no_subject_token(problem, ErrorClass::Rejected);
        let mut words = command.split_whitespace();
        let mut process = Command::new(words.next().unwrap_or_default());
        process
            .args(words)
            .env("GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE", &self.audience)
            .env("GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE", &self.subject_token_type)
            .env("GOOGLE_EXTERNAL_ACCOUNT_INTERACTIVE", "0")
            .env("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
            .envs(account.map(|account| ("GOOGLE_EXTERNAL_ACCOUNT_IMPERSONATED_EMAIL", account)))
            .envs(output_file.map(|path| ("GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE", path)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // It may hold the token.
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = process
            .spawn()
            .map_err(|error| refused(&format!("the executable cannot be started: {error}")))?;
        let mut content = Zeroizing::new(Vec::with_capacity(MAX_ANSWER_BYTES));
        let work = async {
            if let Some(stdout) = child.stdout.take() {
                let mut stdout = stdout.take(MAX_ANSWER_BYTES as u64);
                stdout.read_to_end(&mut content).await?;
            }
            child.wait().await
        };
        let status = timeout(limit, work).await.map_err(|_| {
            let problem = format!("the executable did not end within {} s", limit.as_secs_f64());
            no_subject_token(&problem, ErrorClass::Transient)
        })?;
        let status = status.map_err(|error| refused(&format!("the executable failed: {error}")))?;
        if !status.success() {
            return Err(refused(&format!("the executable ended with {status}")));
        }
        executable_answer(&content, SystemTime::now()).map_err(|problem| refused(&problem))
    }
}

fn subject_source(
    source: RawSource,
    account: Option<String>,
    config: &GoogleConfig,
) -> Result<SubjectSource, CredentialFileError> {
    if source.environment_id.is_some() {
        return Err(CredentialFileError::Unsupported(
            "an AWS identity; give the workload an OIDC token in a file instead, such as that of an IAM role for service accounts",
        ));
    }
    if source.certificate.is_some() {
        return Err(CredentialFileError::Unsupported("an X.509 certificate"));
    }
    if let Some(executable) = source.executable {
        if !config.allow_executable {
            return Err(CredentialFileError::Executable);
        }
        if executable.command.trim().is_empty() {
            return Err(CredentialFileError::Missing(
                "credential_source.executable.command",
            ));
        }
        let asked = executable.timeout_millis.map(Duration::from_millis);
        return Ok(SubjectSource::Executable {
            command: executable.command,
            timeout: asked.unwrap_or(EXECUTABLE_TIMEOUT.0).min(EXECUTABLE_TIMEOUT.1),
            output_file: executable.output_file,
            account,
        });
    }
    let format = format(source.format)?;
    if let Some(path) = source.file {
        return Ok(SubjectSource::File { path, format });
    }
    let url = address("credential_source.url", source.url.as_deref(), config)?;
    let url = url.ok_or(CredentialFileError::Missing("credential_source that works here"))?;
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
            .ok_or("what came is not of the format in credential_source")
    }
}

/// What an executable prints.
#[derive(Deserialize)]
struct Printed {
    success: bool,
    expiration_time: Option<i64>,
    id_token: Option<Zeroizing<String>>,
    saml_response: Option<Zeroizing<String>>,
    code: Option<String>,
    message: Option<String>,
}

fn executable_answer(content: &[u8], now: SystemTime) -> Result<Zeroizing<String>, String> {
    let printed: Printed = serde_json::from_slice(content)
        .map_err(|_| "the executable's output is not the JSON that AIP-4117 describes".to_owned())?;
    if !printed.success {
        let shown = |text: Option<String>| text::redacted(&text.unwrap_or_default(), 200);
        return Err(format!(
            "the executable said {}: {}",
            shown(printed.code),
            shown(printed.message)
        ));
    }
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    if printed
        .expiration_time
        .is_some_and(|end| u64::try_from(end).is_ok_and(|end| end <= now))
    {
        return Err("the executable's token has ended".to_owned());
    }
    let token = printed.id_token.or(printed.saml_response);
    token
        .filter(|token| !token.is_empty())
        .ok_or_else(|| "the executable gave no token".to_owned())
}

async fn read(path: &PathBuf) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let file = tokio::fs::File::open(path).await?;
    let mut content = Zeroizing::new(Vec::with_capacity(8 * 1024));
    file.take(MAX_ANSWER_BYTES as u64)
        .read_to_end(&mut content)
        .await?;
    Ok(content)
}

fn no_subject_token(problem: &str, class: ErrorClass) -> Error {
    let message = format!("there is no subject token: {problem}");
    Error::new(Endpoint::Credentials, Reason::CredentialsUnavailable, &message).with_class(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_executable_prints() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let read = |json: &str| {
            executable_answer(json.as_bytes(), now)
                .map(|token| token.to_string())
                .map_err(|problem| problem.to_string())
        };
        assert_eq!(
            read(r#"{"version":1,"success":true,"token_type":"t","id_token":"abc"}"#).as_deref(),
            Ok("abc")
        );
        assert_eq!(
            read(r#"{"success":true,"expiration_time":1001,"saml_response":"abc"}"#).as_deref(),
            Ok("abc")
        );
        for (json, problem) in [
            (
                r#"{"success":true,"expiration_time":999,"id_token":"abc"}"#,
                "ended",
            ),
            (
                r#"{"success":false,"code":"1","message":"no Bearer SECRETSECRET"}"#,
                "said 1: no Bearer [redacted]",
            ),
            (r#"{"success":true}"#, "no token"),
            ("SECRET", "AIP-4117"),
        ] {
            let said = read(json).expect_err(json);
            assert!(
                said.contains(problem) && !said.contains("SECRET"),
                "{json} gave {said}"
            );
        }
    }

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
