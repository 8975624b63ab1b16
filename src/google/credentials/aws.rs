//! An AWS identity, from environment variables or EC2's metadata server. Its subject token is a request of AWS' `GetCallerIdentity` that is
//! signed and not sent: Google sends it, and AWS tells Google who signed it
//! (<https://cloud.google.com/iam/docs/workload-identity-federation-with-other-clouds>).

use reqwest::header::HeaderValue;
use serde::{Deserialize, Serialize};
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use super::allowed_hosts::{checked_ec2_url, is_aws_host};
use super::aws_signature::{AwsCredentials, UnsignedRequest, sign};
use super::file_error::CredentialFileError;
use super::source::no_subject_token;
use crate::google::transport::endpoint_client::EndpointClient;
use crate::google::transport::response::Response;
use crate::google::vocabulary::{CallPriority, Error, GoogleConfig, Reason};

/// The one request that is signed.
const QUERY: &str = "Action=GetCallerIdentity&Version=2011-06-15";

/// How long a session of the metadata server lasts, in seconds. It is used at once.
const SESSION_SECONDS: &str = "300";

/// The fields of a `credential_source` that are AWS', unchecked.
pub(super) struct RawAws {
    pub(super) environment_id: String,
    pub(super) verification_url: Option<String>,
    pub(super) region_url: Option<String>,
    pub(super) credentials_url: Option<String>,
    pub(super) session_url: Option<String>,
}

/// Where AWS' credentials are.
pub(super) struct AwsSource {
    /// With `{region}` in it.
    verification_url: String,
    region_url: Option<Url>,
    credentials_url: Option<Url>,
    /// Version 2 of the metadata server, which answers only within a session.
    session_url: Option<Url>,
}

/// What EC2's metadata server answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RoleCredentials {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    token: Option<Zeroizing<String>>,
}

/// A signed request, as the Security Token Service takes it.
#[derive(Serialize)]
struct SignedRequest<'a> {
    url: &'a str,
    method: &'a str,
    headers: Vec<Header<'a>>,
}

#[derive(Serialize)]
struct Header<'a> {
    key: &'a str,
    value: &'a str,
}

impl AwsSource {
    /// Checks the file's fields.
    pub(super) fn new(raw: RawAws, config: &GoogleConfig) -> Result<Self, CredentialFileError> {
        if raw.environment_id != "aws1" {
            return Err(CredentialFileError::Unsupported(
                "a credential_source.environment_id other than aws1",
            ));
        }
        let url = |field, value: Option<String>| checked_ec2_url(field, value.as_deref(), config);
        let source = Self {
            verification_url: raw.verification_url.ok_or(CredentialFileError::Missing(
                "credential_source.regional_cred_verification_url",
            ))?,
            region_url: url("credential_source.region_url", raw.region_url)?,
            credentials_url: url("credential_source.url", raw.credentials_url)?,
            session_url: url("credential_source.imdsv2_session_token_url", raw.session_url)?,
        };
        source
            .request_url("us-east-1")
            .ok_or(CredentialFileError::NotCallerIdentity)?;
        Ok(source)
    }

    /// A signed request for the provider named `audience`.
    pub(super) async fn subject_token(
        &self,
        client: &EndpointClient,
        audience: &str,
    ) -> Result<Zeroizing<String>, Error> {
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        let credentials = credentials_of_environment()?;
        let session = match (&region, &credentials) {
            (Some(_), Some(_)) => None,
            _ => self.session(client).await?,
        };
        let region = match region {
            Some(region) => region,
            None => self.region(client, session.as_ref()).await?,
        };
        let credentials = match credentials {
            Some(credentials) => credentials,
            None => self.role_credentials(client, session.as_ref()).await?,
        };
        let (url, host) = self
            .request_url(&region)
            .ok_or_else(|| no_subject_token("the region of AWS is not the name of one"))?;
        let request = UnsignedRequest {
            region: &region,
            host: &host,
            query: QUERY,
            headers: vec![("x-goog-cloud-target-resource", audience)],
        };
        let headers = sign(request, &credentials, client.clock().now());
        let headers = headers.iter().map(|(key, value)| Header { key, value });
        let request = SignedRequest {
            url: &url,
            method: "POST",
            headers: headers.collect(),
        };
        Ok(encoded(&request))
    }

    /// The URL to sign a request for, as the file has it, and its host; `None` if that is no endpoint of AWS' for `GetCallerIdentity`.
    fn request_url(&self, region: &str) -> Option<(String, String)> {
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if region.is_empty() || region.len() > 32 || !region.bytes().all(is_name) {
            return None;
        }
        let text = self.verification_url.replacen("{region}", region, 1);
        let url = Url::parse(&text).ok()?;
        let is_plain = url.scheme() == "https"
            && url.path() == "/"
            && url.query() == Some(QUERY)
            && url.fragment().is_none()
            && url.port().is_none()
            && url.username().is_empty();
        let host = url.host_str().filter(|host| is_plain && is_aws_host(host))?;
        Some((text, host.to_owned()))
    }

    async fn session(&self, client: &EndpointClient) -> Result<Option<HeaderValue>, Error> {
        let Some(url) = &self.session_url else {
            return Ok(None);
        };
        let request = client
            .http_for(url)
            .put(url.clone())
            .header("X-aws-ec2-metadata-token-ttl-seconds", SESSION_SECONDS);
        let response = self.call(client, request).await?;
        let mut session =
            HeaderValue::from_bytes(&response.body).map_err(|_| unexpected("no token of a session"))?;
        session.set_sensitive(true);
        Ok(Some(session))
    }

    async fn region(&self, client: &EndpointClient, session: Option<&HeaderValue>) -> Result<String, Error> {
        let url = self.region_url.as_ref().ok_or_else(|| {
            no_subject_token("AWS_REGION is not set, and the file has no credential_source.region_url")
        })?;
        let zone = self.get(client, url.clone(), session).await?;
        std::str::from_utf8(&zone.body)
            .ok()
            .and_then(|zone| region_of_zone(zone.trim()))
            .ok_or_else(|| unexpected("no availability zone"))
    }

    async fn role_credentials(
        &self,
        client: &EndpointClient,
        session: Option<&HeaderValue>,
    ) -> Result<AwsCredentials, Error> {
        let url = self.credentials_url.as_ref().ok_or_else(|| {
            no_subject_token(
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set, and the file has no credential_source.url",
            )
        })?;
        let role = self.get(client, url.clone(), session).await?;
        let role = std::str::from_utf8(&role.body).map_or("", str::trim);
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b);
        if role.is_empty() || role.len() > 64 || !role.bytes().all(is_name) {
            return Err(unexpected("no role: the instance has none, or several"));
        }
        let mut url = url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(role);
        }
        let response = self.get(client, url, session).await?;
        // The parser's message could quote a secret.
        let role: RoleCredentials =
            serde_json::from_slice(&response.body).map_err(|_| unexpected("no credentials of the role"))?;
        checked(AwsCredentials {
            access_key_id: role.access_key_id,
            secret_access_key: role.secret_access_key,
            session_token: role.token.filter(|token| !token.is_empty()),
        })
        .ok_or_else(|| unexpected("no valid credentials"))
    }

    async fn get(
        &self,
        client: &EndpointClient,
        url: Url,
        session: Option<&HeaderValue>,
    ) -> Result<Response, Error> {
        let mut request = client.http_for(&url).get(url);
        if let Some(session) = session {
            request = request.header("X-aws-ec2-metadata-token", session);
        }
        self.call(client, request).await
    }

    async fn call(
        &self,
        client: &EndpointClient,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, Error> {
        let call = client.call_with(
            CallPriority::OPERATOR,
            || Ok(request),
            |endpoint, response| {
                response.error_from_text(endpoint, "it is EC2's metadata server, for the subject token")
            },
        );
        call.await.map_err(|error| match (error.status(), error.reason()) {
            (Some(401), _) if self.session_url.is_none() => error.with_remediation(
                "The instance needs version 2 of the metadata server: create the credential file again with --enable-imdsv2.",
            ),
            (None, Reason::UpstreamTimeout | Reason::UpstreamUnreachable) => error.with_remediation(
                "A pod reaches EC2's metadata server only if the instance's hop limit is 2 or more (aws ec2 \
                 modify-instance-metadata-options --http-put-response-hop-limit 2) and no NetworkPolicy forbids it. On EKS, \
                 rather take the projected ServiceAccount token as a file.",
            ),
            _ => error,
        })
    }
}

/// The percent-encoded JSON of a request. No buffer grows, because that would leave a copy of its content in freed memory.
fn encoded(request: &SignedRequest<'_>) -> Zeroizing<String> {
    let values = request.headers.iter().map(|header| header.value.len());
    // Names, keys and punctuation take a few hundred bytes, and no value has a character that JSON escapes.
    let bytes = 2048 + request.url.len() + values.sum::<usize>();
    let mut json = Zeroizing::new(Vec::with_capacity(bytes));
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(&mut *json, request);
    let mut encoded = Zeroizing::new(String::with_capacity(3 * bytes));
    for part in form_urlencoded::byte_serialize(&json) {
        encoded.push_str(if part == "+" { "%20" } else { part });
    }
    encoded
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// None if the variables are not both set. If they are set and cannot be used, no other identity takes their place.
fn credentials_of_environment() -> Result<Option<AwsCredentials>, Error> {
    let (Some(access_key_id), Some(secret)) =
        (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
    else {
        return Ok(None);
    };
    let credentials = checked(AwsCredentials {
        access_key_id,
        secret_access_key: secret.into(),
        session_token: variable("AWS_SESSION_TOKEN").map(Zeroizing::new),
    });
    credentials.map(Some).ok_or_else(|| {
        no_subject_token(
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_SESSION_TOKEN has a character that a header cannot have, such as a line break",
        )
    })
}

/// The credentials, if headers can contain them.
fn checked(credentials: AwsCredentials) -> Option<AwsCredentials> {
    let is_text = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let token = credentials.session_token.as_ref().map(|token| token.as_str());
    let all = [
        Some(credentials.access_key_id.as_str()),
        Some(credentials.secret_access_key.as_str()),
        token,
    ];
    let is_usable = all.into_iter().flatten().all(is_text);
    is_usable.then_some(credentials)
}

/// `us-east-2` of `us-east-2b`, and `us-west-2` of the local zone `us-west-2-lax-1a`.
fn region_of_zone(zone: &str) -> Option<String> {
    let end = zone.find(|c: char| c.is_ascii_digit())?;
    let digits = zone.get(end..)?.bytes().take_while(u8::is_ascii_digit).count();
    zone.get(..end + digits).map(str::to_owned)
}

fn unexpected(what: &str) -> Error {
    no_subject_token(&format!("EC2's metadata server answered with {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions() {
        for (zone, region) in [
            ("us-east-2b", Some("us-east-2")),
            ("us-east-2", Some("us-east-2")),
            ("us-gov-west-1a", Some("us-gov-west-1")),
            ("us-west-2-lax-1a", Some("us-west-2")),
            ("eu-central-1-wl1-ber-wlz1", Some("eu-central-1")),
            ("", None),
            ("<html>", None),
        ] {
            assert_eq!(region_of_zone(zone).as_deref(), region, "{zone}");
        }
    }

    #[test]
    fn only_the_identity_is_asked_for_at_aws_only() {
        let source = |url: &str| AwsSource {
            verification_url: url.to_owned(),
            region_url: None,
            credentials_url: None,
            session_url: None,
        };
        let host = |url: &str, region: &str| source(url).request_url(region).map(|(_, host)| host);
        let at = |host: &str| format!("https://{host}?{QUERY}");
        for (given, found) in [
            ("sts.{region}.amazonaws.com", "sts.us-east-2.amazonaws.com"),
            (
                "sts-fips.{region}.amazonaws.com",
                "sts-fips.us-east-2.amazonaws.com",
            ),
            ("sts.{region}.amazonaws.com.cn", "sts.us-east-2.amazonaws.com.cn"),
            ("sts.{region}.api.aws", "sts.us-east-2.api.aws"),
        ] {
            assert_eq!(host(&at(given), "us-east-2").as_deref(), Some(found));
        }
        for bad in [
            at("sts.evil.example"),
            at("sts.amazonaws.com.evil.example"),
            at("iam.amazonaws.com"),
            at("sts.us-east-2.amazonaws.com:444"),
            at("user@sts.us-east-2.amazonaws.com"),
            format!("http://sts.us-east-2.amazonaws.com?{QUERY}"),
            format!("https://sts.us-east-2.amazonaws.com/x?{QUERY}"),
            format!("https://sts.us-east-2.amazonaws.com?{QUERY}&a=b"),
            "https://sts.us-east-2.amazonaws.com?Action=AssumeRole&Version=2011-06-15".to_owned(),
        ] {
            assert_eq!(host(&bad, "us-east-2"), None, "{bad}");
        }
        for region in ["", "evil.example#", "US", "a/b"] {
            assert_eq!(host(&at("sts.{region}.amazonaws.com"), region), None, "{region}");
        }
    }
}
