//! AWS, as far as Google asks it: who signed a request for `GetCallerIdentity`. And EC2's metadata server, which has the keys to sign with.

use std::collections::BTreeMap;

use aws_lc_rs::{constant_time, hmac};
use axum::http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::aws_keys::{Aws, AwsAccessKey};
use crate::call::Call;
use crate::clock::now;
use crate::keys::{hex, sha256};
use crate::provider::WorkloadIdentityProvider;
use crate::response::{self, Failure, HandlerResult, Request};
use crate::subject_token::{Bearer, ExchangeError, invalid_grant, mapped};

/// How old or how early a signature may be, in seconds.
const MAX_CLOCK_SKEW: i64 = 15 * 60;
/// How long Google's access token for an AWS identity is valid, in seconds.
const LIFETIME: i64 = 3600;

/// A signed request, as Google's libraries write it.
#[derive(Deserialize)]
struct SignedRequest {
    url: String,
    method: String,
    headers: Vec<Header>,
}

#[derive(Deserialize)]
struct Header {
    key: String,
    value: String,
}

/// Verifies a signed request for a provider of an AWS account.
pub(crate) fn bearer(
    aws: &Aws,
    provider: &WorkloadIdentityProvider,
    account_id: &str,
    token: &str,
) -> Result<Bearer, ExchangeError> {
    // Percent-encoded JSON; a space may be a plus sign.
    let json = url::form_urlencoded::parse(token.as_bytes()).next();
    let request: SignedRequest = json
        .and_then(|(json, _)| serde_json::from_str(&json).ok())
        .ok_or_else(|| ExchangeError {
            error: "invalid_request",
            description: "Unable to parse the AWS request.".into(),
        })?;
    let headers: BTreeMap<String, &str> = request
        .headers
        .iter()
        .map(|header| (header.key.to_ascii_lowercase(), header.value.as_str()))
        .collect();
    let header = |name: &str| headers.get(name).copied().unwrap_or_default();
    let target = header("x-goog-cloud-target-resource");
    if target.strip_prefix("https:").unwrap_or(target) != provider.name {
        return Err(invalid_grant(
            "The header x-goog-cloud-target-resource does not match the audience.",
        ));
    }
    let signer = signer(aws, &request, &headers).ok_or_else(|| {
        invalid_grant(
            "Received invalid AWS response of type SignatureDoesNotMatch with error message: denied.",
        )
    })?;
    if signer.account() != account_id {
        return Err(invalid_grant(
            "The AWS account does not match that of the provider.",
        ));
    }
    let claims: Map<String, Value> = [
        ("arn", &*signer.arn),
        ("account", signer.account()),
        ("userid", &*signer.id),
    ]
    .map(|(name, value)| (name.to_owned(), json!(value)))
    .into_iter()
    .collect();
    Ok(Bearer {
        principal: mapped(provider, &claims)?,
        expires: now() + LIFETIME,
    })
}

/// Who has signed the request; none if the signature is wrong or old.
fn signer<'a>(
    aws: &'a Aws,
    request: &SignedRequest,
    headers: &BTreeMap<String, &str>,
) -> Option<&'a AwsAccessKey> {
    let url = url::Url::parse(&request.url).ok()?;
    let host = url.host_str()?;
    let mut query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    query.sort();
    let is_asked = query
        == [
            ("Action".to_owned(), "GetCallerIdentity".to_owned()),
            ("Version".to_owned(), "2011-06-15".to_owned()),
        ];
    // Whose host it is shows with the region that was signed, below.
    let is_at_host = url.scheme() == "https" && url.path() == "/" && headers.get("host") == Some(&host);
    if request.method != "POST" || !is_asked || !is_at_host {
        return None;
    }

    let authorization = headers.get("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
    let part = |name: &str| authorization.split(", ").find_map(|part| part.strip_prefix(name));
    let (id, scope) = part("Credential=")?.split_once('/')?;
    let names: Vec<&str> = part("SignedHeaders=")?.split(';').collect();
    let key = aws.access_keys.iter().find(|key| key.id == id)?;
    let session = headers.get("x-amz-security-token").copied();
    if session != key.session_token.as_ref().map(|token| token.0.as_str()) {
        return None;
    }
    let is_signed = |name: &str| names.contains(&name);
    if !names.is_sorted()
        || !is_signed("host")
        || !is_signed("x-amz-date")
        || (session.is_some() && !is_signed("x-amz-security-token"))
    {
        return None;
    }
    let time = *headers.get("x-amz-date")?;
    let signed_at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
    let signed_at = signed_at
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()?
        .timestamp()
        .as_second();
    if (now() - signed_at).abs() > MAX_CLOCK_SKEW {
        return None;
    }

    let mut canonical = "POST\n/\nAction=GetCallerIdentity&Version=2011-06-15\n".to_owned();
    for name in &names {
        canonical += &format!("{name}:{}\n", headers.get(*name)?.trim());
    }
    canonical += &format!("\n{}\n{}", names.join(";"), hex(&sha256(b"")));
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
        hex(&sha256(canonical.as_bytes()))
    );
    let mut signature = format!("AWS4{}", key.secret.0).into_bytes();
    let parts: Vec<&str> = scope.split('/').collect();
    let [date, region, "sts", "aws4_request"] = parts[..] else {
        return None;
    };
    if !time.starts_with(date) || host != format!("sts.{region}.amazonaws.com") {
        return None;
    }
    for message in parts.into_iter().chain([to_sign.as_str()]) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &signature);
        signature = hmac::sign(&key, message.as_bytes()).as_ref().to_vec();
    }
    let given = part("Signature=")?;
    constant_time::verify_slices_are_equal(hex(&signature).as_bytes(), given.as_bytes())
        .is_ok()
        .then_some(key)
}

/// Handles the paths of EC2's metadata server, below `/latest/`.
pub(crate) async fn metadata(call: &mut Call, request: &Request) -> HandlerResult {
    call.record_account(&request.path);
    call.apply_faults().await?;
    let policy = call.state.policy();
    let aws = &policy.aws;
    let failure = |status| Failure::from(response::text(status, ""));
    let session = &call.state.ec2_session;
    if request.path == "/latest/api/token" {
        let is_valid = request
            .header("x-aws-ec2-metadata-token-ttl-seconds")
            .and_then(|seconds| seconds.parse::<u32>().ok())
            .is_some_and(|seconds| (1..=21_600).contains(&seconds));
        if request.method != Method::PUT || !is_valid {
            return Err(failure(StatusCode::BAD_REQUEST));
        }
        return Ok(response::text(StatusCode::OK, session.clone()));
    }
    match request.header("x-aws-ec2-metadata-token") {
        None if aws.requires_session => return Err(failure(StatusCode::UNAUTHORIZED)),
        Some(given) if given != session => return Err(failure(StatusCode::UNAUTHORIZED)),
        _ => {}
    }
    let key = aws.instance_access_key.as_ref();
    let key = key.and_then(|id| aws.access_keys.iter().find(|key| key.id == *id));
    let path = request
        .path
        .strip_prefix("/latest/meta-data/")
        .unwrap_or_default();
    if path == "placement/availability-zone" {
        return Ok(response::text(StatusCode::OK, aws.zone.clone()));
    }
    let (Some(name), Some(key)) = (path.strip_prefix("iam/security-credentials"), key) else {
        return Err(failure(StatusCode::NOT_FOUND));
    };
    match name.trim_start_matches('/') {
        "" => Ok(response::text(StatusCode::OK, key.role().to_owned())),
        name if name == key.role() => {
            let now = jiff::Timestamp::from_second(now()).unwrap_or_default();
            let expiration = now + jiff::SignedDuration::from_hours(6);
            let answer = json!({
                "Code": "Success",
                "LastUpdated": now.to_string(),
                "Expiration": expiration.to_string(),
                "Type": "AWS-HMAC",
                "AccessKeyId": key.id,
                "SecretAccessKey": key.secret.0,
                "Token": key.session_token.as_ref().map(|token| &token.0),
            });
            Ok(response::json(StatusCode::OK, &answer))
        }
        _ => Err(failure(StatusCode::NOT_FOUND)),
    }
}
