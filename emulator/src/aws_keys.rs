//! What AWS knows of who signs requests.

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// What AWS knows, and EC2's metadata server returns.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Aws {
    /// The keys that sign requests.
    pub access_keys: Vec<AwsAccessKey>,
    /// The availability zone of the instance. Default `us-east-2b`.
    pub zone: String,
    /// The ID of the access key that the instance's role has. Absent: the instance has no role.
    pub instance_access_key: Option<String>,
    /// Whether the metadata server answers only within a session (version 2). Default true.
    pub requires_session: bool,
}

impl Default for Aws {
    fn default() -> Self {
        Self {
            access_keys: Vec::new(),
            zone: "us-east-2b".into(),
            instance_access_key: None,
            requires_session: true,
        }
    }
}

/// An access key of AWS'.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AwsAccessKey {
    /// Its ID.
    pub id: String,
    /// Its secret.
    pub secret: Secret,
    /// The session token of temporary credentials.
    #[serde(default)]
    pub session_token: Option<Secret>,
    /// `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION` or `arn:aws:iam::ACCOUNT:user/NAME`.
    pub arn: String,
}

impl AwsAccessKey {
    pub(crate) fn account(&self) -> &str {
        self.arn.split(':').nth(4).unwrap_or_default()
    }

    pub(crate) fn role(&self) -> &str {
        self.arn.split('/').nth(1).unwrap_or_default()
    }
}
