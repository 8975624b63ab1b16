//! The subject token of an AWS identity: a request of `GetCallerIdentity` that is signed and not sent
//! (<https://cloud.google.com/iam/docs/workload-identity-federation-with-other-clouds>).

use anyhow::Result;
use aws_lc_rs::{digest, hmac};
use idtoken_operator::text::hex;
use serde_json::{Value, json};

use crate::assertion::Service;
use crate::hosts::AWS_STS;
use crate::world::World;

const QUERY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const REGION: &str = "us-east-2";
const NAMES: &str = "host;x-amz-date;x-amz-security-token;x-goog-cloud-target-resource";

/// What AWS knows a caller by.
pub(crate) struct AwsIdentity {
    /// The provider of Google that is for its account.
    pub(crate) provider: String,
    pub(crate) key: String,
    pub(crate) secret: String,
    pub(crate) session: String,
}

impl AwsIdentity {
    /// The request. `changes` may have another `target`, or a `secret` by which AWS does not know it.
    pub(crate) fn signed(&self, changes: &Value) -> String {
        let change = |name: &str| changes.get(name).and_then(Value::as_str);
        self.subject_token(
            change("secret").unwrap_or(&self.secret),
            change("target").unwrap_or(&self.provider),
            jiff::Timestamp::now(),
        )
    }

    fn subject_token(&self, secret: &str, target: &str, now: jiff::Timestamp) -> String {
        let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let date = now.strftime("%Y%m%d").to_string();
        let headers = [
            ("host", AWS_STS),
            ("x-amz-date", time.as_str()),
            ("x-amz-security-token", self.session.as_str()),
            ("x-goog-cloud-target-resource", target),
        ];
        let lines: String = headers
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        let canonical = format!("POST\n/\n{QUERY}\n{lines}\n{NAMES}\n{}", sha256(""));
        let scope = format!("{date}/{REGION}/sts/aws4_request");
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(&canonical));
        let parts = [date.as_str(), REGION, "sts", "aws4_request", to_sign.as_str()];
        let signature = parts
            .iter()
            .fold(format!("AWS4{secret}").into_bytes(), |key, part| {
                let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
                hmac::sign(&key, part.as_bytes()).as_ref().to_vec()
            });
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={NAMES}, Signature={}",
            self.key,
            hex(&signature)
        );
        let headers: Vec<Value> = headers
            .into_iter()
            .chain([("Authorization", authorization.as_str())])
            .map(|(key, value)| json!({"key": key, "value": value}))
            .collect();
        let url = format!("https://{AWS_STS}?{QUERY}");
        let request = json!({"url": url, "method": "POST", "headers": headers}).to_string();
        url::form_urlencoded::byte_serialize(request.as_bytes()).collect()
    }
}

impl World {
    /// The token of a session of EC2's metadata server.
    pub(crate) async fn ec2_session(&self) -> Result<String> {
        let request = self
            .http
            .put(self.url(Service::Ec2, "/latest/api/token")?)
            .header("x-aws-ec2-metadata-token-ttl-seconds", "300");
        Ok(request.send().await?.error_for_status()?.text().await?)
    }
}

fn sha256(text: &str) -> String {
    hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}
