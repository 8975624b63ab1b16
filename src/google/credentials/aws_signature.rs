//! AWS Signature Version 4 of one request, `GetCallerIdentity`, which has no body:
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>.
//!
//! Written here, on the HMAC of aws-lc-rs: the crates of the AWS SDK that sign bring a runtime of their own, for requests of every shape.

use aws_lc_rs::hmac;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::source::sha256;
use crate::text::hex;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What AWS knows a caller by. No `Debug`, because it is secret.
pub(super) struct AwsCredentials {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: Zeroizing<String>,
    /// Temporary credentials have one.
    pub(super) session_token: Option<Zeroizing<String>>,
}

/// A POST to the root of a host.
pub(super) struct UnsignedRequest<'a> {
    pub(super) region: &'a str,
    pub(super) host: &'a str,
    /// Encoded, and sorted by name.
    pub(super) query: &'a str,
    /// Of the headers to sign, those that AWS does not define: names in lower case.
    pub(super) headers: Vec<(&'static str, &'a str)>,
}

/// Signs `request` at `now`. Returns all its headers, `Authorization` last.
pub(super) fn sign(
    request: UnsignedRequest<'_>,
    credentials: &AwsCredentials,
    now: Timestamp,
) -> Vec<(&'static str, Zeroizing<String>)> {
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let date = now.strftime("%Y%m%d").to_string();
    let mut headers: Vec<(&str, Zeroizing<String>)> = vec![
        ("host", request.host.to_owned().into()),
        ("x-amz-date", time.clone().into()),
    ];
    headers.extend(
        request
            .headers
            .into_iter()
            .map(|(name, value)| (name, value.to_owned().into())),
    );
    if let Some(token) = &credentials.session_token {
        headers.push(("x-amz-security-token", token.clone()));
    }
    headers.sort_by_key(|(name, _)| *name);

    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    // As long as it becomes: a text that grows leaves a copy of its content in freed memory.
    let lines = headers.iter().map(|(name, value)| name.len() + value.len() + 2);
    let length = request.query.len() + names.len() + lines.sum::<usize>() + 128;
    let mut canonical = Zeroizing::new(String::with_capacity(length));
    canonical.extend(["POST\n/\n", request.query, "\n"]);
    for (name, value) in &headers {
        canonical.extend([name, ":", value.as_str(), "\n"]);
    }
    canonical.extend(["\n", names.as_str(), "\n", &hex(&sha256(b""))]);

    // The service is the first label of the host; a FIPS endpoint is the same service.
    let service = request.host.split('.').next().unwrap_or_default();
    let service = service.strip_suffix("-fips").unwrap_or(service);
    let scope = format!("{date}/{}/{service}/aws4_request", request.region);
    let to_sign = format!(
        "{ALGORITHM}\n{time}\n{scope}\n{}",
        hex(&sha256(canonical.as_bytes()))
    );
    let secret = Zeroizing::new(format!("AWS4{}", credentials.secret_access_key.as_str()));
    let key = [date.as_str(), request.region, service, "aws4_request"]
        .iter()
        .fold(Zeroizing::new(secret.as_bytes().to_vec()), |key, part| {
            hmac_sha256(&key, part)
        });
    let signature = hex(&hmac_sha256(&key, &to_sign));
    let id = &credentials.access_key_id;
    let authorization =
        format!("{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}");
    headers.push(("Authorization", authorization.into()));
    headers
}

fn hmac_sha256(key: &[u8], message: &str) -> Zeroizing<Vec<u8>> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    Zeroizing::new(hmac::sign(&key, message.as_bytes()).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signatures are those that the tests of Google's library for Go expect, `cloud.google.com/go/auth`
    /// (`credentials/internal/externalaccount/aws_provider_test.go`).
    #[test]
    fn signatures_are_those_of_googles_library() {
        for (host, token, signature) in [
            (
                "sts.us-east-2.amazonaws.com",
                Some("sessionTok"),
                "SignedHeaders=host;x-amz-date;x-amz-security-token, \
                 Signature=48541de09ff691ab53f9e017f5123ce338fecbadc1b278480bab3af221ca4f38",
            ),
            (
                "sts-fips.us-east-2.amazonaws.com",
                Some("sessionTok"),
                "SignedHeaders=host;x-amz-date;x-amz-security-token, \
                 Signature=4b3ce0f92bb2746ac7b437e6fd623393ed06de7569987a80b9a1081fc10aeca5",
            ),
            (
                "sts.us-east-2.amazonaws.com",
                None,
                "SignedHeaders=host;x-amz-date, \
                 Signature=bff58112d4696faecff9c104c8b7b963141e8b3cc4ba46a0664938fe6d112e41",
            ),
        ] {
            let credentials = AwsCredentials {
                access_key_id: "accessKeyID".to_owned(),
                secret_access_key: "secret".to_owned().into(),
                session_token: token.map(|token| token.to_owned().into()),
            };
            let request = UnsignedRequest {
                region: "us-east-2",
                host,
                query: "Action=GetCallerIdentity&Version=2011-06-15",
                headers: Vec::new(),
            };
            let now = "2020-08-11T06:55:22Z".parse().expect("a time");
            let headers = sign(request, &credentials, now);
            let (name, authorization) = headers.last().expect("a header");
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=accessKeyID/20200811/us-east-2/sts/aws4_request, {signature}"
            );
            assert_eq!(
                (*name, authorization.as_str()),
                ("Authorization", expected.as_str())
            );
        }
    }

    #[test]
    fn each_header_is_signed() {
        let credentials = AwsCredentials {
            access_key_id: "accessKeyID".to_owned(),
            secret_access_key: "secret".to_owned().into(),
            session_token: Some("sessionTok".to_owned().into()),
        };
        let request = UnsignedRequest {
            region: "us-east-2",
            host: "sts.us-east-2.amazonaws.com",
            query: "Action=GetCallerIdentity&Version=2011-06-15",
            headers: vec![("x-goog-cloud-target-resource", "//iam.googleapis.com/p")],
        };
        let headers = sign(
            request,
            &credentials,
            "2020-08-11T06:55:22Z".parse().expect("a time"),
        );
        let (_, authorization) = headers.last().expect("a header");
        let signed = "SignedHeaders=host;x-amz-date;x-amz-security-token;x-goog-cloud-target-resource,";
        assert!(authorization.contains(signed), "{}", authorization.as_str());
    }
}
