//! The status of an `IdTokenRequest`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator last observed and did. Never holds a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdTokenRequestStatus {
    /// The `metadata.generation` that this status was computed from; -1 before the operator has seen the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready, and each of RenewalFailing, Reconciling and Stalled once it was True. An absent condition is False.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// Where the token comes from: Impersonation, Federation, MetadataServer or Developer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,

    /// The Secret that was last written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretStatus>,

    /// The token that the Secret holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenStatus>,

    /// When the token is renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_time: Option<Time>,

    #[doc = concat!("The last handled value of the annotation `", group!("/renew"), "`.")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_renew_request: Option<String>,

    /// The IdTokenGrant that allowed the token, if the source needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantRef>,
}

impl IdTokenRequestStatus {
    /// The condition of this type, if there is one.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }
}

/// The Secret that was last written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretStatus {
    /// Name of the Secret.
    pub name: String,
    /// The Secret's `metadata.uid`. It proves that the operator wrote this very Secret for the request, whatever the Secret says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The Secret's `metadata.resourceVersion` after the last write or check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

/// Claims of the token that the Secret holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenStatus {
    /// The token's `iat` claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issue_time: Option<Time>,
    /// The token's `exp` claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration_time: Option<Time>,
    /// The token's `aud` claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// The token's `email` claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The token's `sub` claim, the account's numeric unique ID. Once known, a token with another one is rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[doc = concat!("The last value of the annotation `", group!("/accept-subject"), "` that was used. It is not used again.")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_subject: Option<String>,
    /// The first 32 hexadecimal digits of the token's SHA-256. A Secret that holds another token was changed, and gets a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A reference to the IdTokenGrant that allowed a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GrantRef {
    /// Name of the grant; `file:NAME` for one from `--grants-file`.
    pub name: String,
    /// UID of the grant; absent for one from `--grants-file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}
