//! `IdTokenRequest`: one token for one audience, kept valid in a Secret.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request_status::IdTokenRequestStatus;

/// Most characters of all texts of a spec. The operator counts bytes ([`crate::request::size`]).
pub const MAX_SPEC_CHARACTERS: usize = 16 * 1024;

/// The rule of CEL for [`MAX_SPEC_CHARACTERS`].
const MAX_SPEC_RULE: &str = "size(self.audience) \
    + (has(self.serviceAccount) ? size(self.serviceAccount) : 0) \
    + (has(self.renewBefore) ? size(self.renewBefore) : 0) \
    + (has(self.source) && has(self.source.impersonation) && has(self.source.impersonation.delegates) \
    ? self.source.impersonation.delegates.map(d, size(d)).sum() : 0) \
    + (has(self.source) && has(self.source.federation) ? size(self.source.federation.serviceAccountRef.name) \
    + (has(self.source.federation.provider) ? size(self.source.federation.provider) : 0) \
    + (has(self.source.federation.tokenAudience) ? size(self.source.federation.tokenAudience) : 0) : 0) \
    + (has(self.target) ? (has(self.target.name) ? size(self.target.name) : 0) \
    + (has(self.target.key) ? size(self.target.key) : 0) \
    + (has(self.target.template) ? (has(self.target.template.type) ? size(self.target.template.type) : 0) \
    + (has(self.target.template.data) \
    ? self.target.template.data.map(k, size(k) + size(self.target.template.data[k])).sum() : 0) \
    + (has(self.target.template.metadata) && has(self.target.template.metadata.labels) \
    ? self.target.template.metadata.labels.map(k, size(k) + size(self.target.template.metadata.labels[k])).sum() : 0) \
    + (has(self.target.template.metadata) && has(self.target.template.metadata.annotations) \
    ? self.target.template.metadata.annotations.map(k, size(k) + size(self.target.template.metadata.annotations[k])).sum() : 0) \
    : 0) : 0) <= 16384";

with_group!(kind! {
    #[kube(
        kind = "IdTokenRequest",
        namespaced,
        status = "IdTokenRequestStatus",
        shortname = "idtr",
        derive = "PartialEq",
        doc = "Keeps a Google-signed OIDC ID token for one audience in a Secret of the same name, and renews it before it expires.",
        printcolumn(
            name = "Ready",
            type_ = "string",
            json_path = ".status.conditions[?(@.type==\"Ready\")].status"
        ),
        printcolumn(
            name = "Reason",
            type_ = "string",
            json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
        ),
        printcolumn(name = "Audience", type_ = "string", json_path = ".spec.audience"),
        printcolumn(
            name = "Expires",
            type_ = "string",
            json_path = ".status.token.expirationTime"
        ),
        printcolumn(name = "Renews", type_ = "string", json_path = ".status.renewalTime"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        printcolumn(
            name = "Service Account",
            type_ = "string",
            json_path = ".spec.serviceAccount",
            priority = 1
        ),
        printcolumn(name = "Source", type_ = "string", json_path = ".status.source", priority = 1),
        printcolumn(
            name = "Secret",
            type_ = "string",
            json_path = ".status.secret.name",
            priority = 1
        ),
        printcolumn(
            name = "Message",
            type_ = "string",
            json_path = ".status.conditions[?(@.type==\"Ready\")].message",
            priority = 1
        )
    )]
    /// Keeps a Google-signed OIDC ID token for one audience in a Secret, and renews it before it expires.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "camelCase")]
    #[schemars(extend("x-kubernetes-validations" = [
        {
            "rule": "has(self.serviceAccount) || (has(self.source) && (has(self.source.federation) || has(self.source.metadataServer) || has(self.source.developer)))",
            "message": "serviceAccount is required by source.impersonation, which is used when source is absent",
            "fieldPath": ".serviceAccount"
        },
        {
            "rule": MAX_SPEC_RULE,
            "message": "the texts of a spec have at most 16384 characters in all, the keys of spec.target.template included"
        }
    ]))]
    pub struct IdTokenRequestSpec {
        /// Audience of the token, its `aud` claim, byte for byte: the URL of a Cloud Run service or function, an OAuth
        /// client ID for IAP, or whatever the verifier requires.
        #[schemars(length(min = 1, max = 2048), regex(pattern = r"^[!-~]+$"))]
        pub audience: String,

        /// Google service account of the token: its e-mail address or its numeric unique ID. May be absent only if the source
        /// knows the account.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(
            length(min = 1, max = 254),
            regex(pattern = r"^([0-9]{1,32}|[a-z0-9][a-z0-9._-]*@[a-z0-9][a-z0-9.-]*[a-z0-9])$")
        )]
        pub service_account: Option<String>,

        /// Whether the token carries the claims `email` and `email_verified`. Absent means true; Identity-Aware Proxy needs
        /// them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub include_email: Option<bool>,

        /// Whether the token carries the number of the Google Cloud organization, claim `google.organization_number`.
        /// Absent means false.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub include_organization_number: Option<bool>,

        /// Where the token comes from; exactly one. Absent means `impersonation`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub source: Option<Source>,

        /// How long before its expiry the token is renewed, as a Go duration such as `30m`. Absent means half of the token's
        /// lifetime. A value that is too large is reduced, and the Ready condition reports it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(
            length(min = 2, max = 32),
            regex(pattern = r"^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$")
        )]
        pub renew_before: Option<String>,

        /// Stops issuing and renewing while true; the Secret keeps its token, which expires. Absent means false.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub suspend: Option<bool>,

        /// The Secret that receives the token. Absent means a Secret of the request's name with the token under `token`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub target: Option<Target>,
    }
});

/// Where a token comes from; exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct Source {
    /// The operator's own Google identity impersonates the service account (IAM Credentials `generateIdToken`). Needs
    /// an IdTokenGrant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonation: Option<ImpersonationSource>,

    /// A Kubernetes ServiceAccount of this namespace is federated by Workload Identity Federation and impersonates the
    /// service account with its own permission. Needs no IdTokenGrant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federation: Option<FederationSource>,

    /// The Google identity attached to the operator's pod or node, by the metadata server. Needs an IdTokenGrant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_server: Option<MetadataServerSource>,

    /// A generic token of a developer's gcloud user credentials, whose audience is the OAuth client ID. Needs
    /// `--allow-developer-source` and an IdTokenGrant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub developer: Option<DeveloperSource>,
}

/// Impersonation by the operator's own Google identity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImpersonationSource {
    /// Delegation chain: each account may create tokens for the next, the last one for `serviceAccount`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 4),
        inner(
            length(min = 1, max = 254),
            regex(pattern = r"^([0-9]{1,32}|[a-z0-9][a-z0-9._-]*@[a-z0-9][a-z0-9.-]*[a-z0-9])$")
        ),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub delegates: Option<Vec<String>>,
}

/// Workload Identity Federation of a Kubernetes ServiceAccount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FederationSource {
    /// The Kubernetes ServiceAccount, in the request's own namespace, whose identity is exchanged.
    pub service_account_ref: ServiceAccountRef,

    /// Full resource name of the workload identity pool provider, or GKE's `identitynamespace:` string. Absent means
    /// the operator's `--federation-provider`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 512),
        regex(
            pattern = r"^(//iam\.[a-z0-9.-]+/projects/[0-9]+/locations/[a-z0-9-]+/workloadIdentityPools/[a-z0-9-]+/providers/[a-z0-9-]+|identitynamespace:[a-z0-9.:-]+:https://[!-~]+)$"
        )
    )]
    pub provider: Option<String>,

    /// Audience of the Kubernetes token that is exchanged. Absent means the default audience of the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[!-~]+$"))]
    pub token_audience: Option<String>,
}

/// A Kubernetes ServiceAccount in the request's namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceAccountRef {
    /// Name of the ServiceAccount.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// The identity attached to the operator's pod or node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetadataServerSource {
    /// Whether the token carries the licenses of the instance's image, claim `google.compute_engine.license_id`.
    /// Absent means false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licenses: Option<bool>,
}

/// A developer's gcloud user credentials.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeveloperSource {}

/// The Secret that receives the token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Name of the Secret. Absent means the name of the request. Names of Helm's releases, `sh.helm.release.*`, are
    /// rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"),
        extend("x-kubernetes-validations" = [{
            "rule": "!self.startsWith('sh.helm.release.')",
            "message": "Helm takes a Secret of this name for a release"
        }])
    )]
    pub name: Option<String>,

    /// Key of the Secret that holds the bare JWT, with no newline. Absent means `token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: Option<String>,

    /// What the Secret holds in addition to the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,

    /// Whether the Secret is deleted with its request (`Owner`) or stays (`Orphan`). Absent means `Owner`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_policy: Option<CreationPolicy>,
}

/// Whether the Secret is deleted with its request (`Owner`) or stays (`Orphan`). Absent means `Owner`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CreationPolicy {
    /// The Secret is deleted with the request, by an ownerReference.
    #[default]
    Owner,
    /// The Secret stays, with its last token.
    Orphan,
}

/// What a Secret holds in addition to the token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Type of the Secret: `Opaque` (also when absent), `kubernetes.io/basic-auth` or `servicebinding.io/*`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^(Opaque|kubernetes\.io/basic-auth|servicebinding\.io/[-._a-zA-Z0-9]+)$")
    )]
    pub type_: Option<String>,

    /// Labels and annotations of the Secret; nothing is substituted in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMetadata>,

    /// More keys of the Secret. `$(token)`, `$(audience)`, `$(email)` and `$(expirationTime)` are substituted; `$$(` is
    /// a literal `$(`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "maxProperties" = 32,
        "additionalProperties" = {"type": "string", "maxLength": 8192}
    ))]
    pub data: Option<BTreeMap<String, String>>,
}

/// Labels and annotations of a Secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateMetadata {
    #[doc = concat!("Labels of the Secret. Keys under `", group!("/"), "`, `kubernetes.io/` and `k8s.io/` are rejected, as are")]
    /// `app.kubernetes.io/managed-by` and labels by which other software trusts a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "maxProperties" = 32,
        "additionalProperties" = {"type": "string", "maxLength": 63},
        "x-kubernetes-validations" = [
            {
                "rule": "!('owner' in self) || self['owner'] != 'helm'",
                "message": "Helm takes a Secret with the label owner=helm for a release"
            },
            {
                "rule": "!('argocd.argoproj.io/secret-type' in self)",
                "message": "Argo CD takes a Secret with the label argocd.argoproj.io/secret-type for a cluster or repository"
            },
            {
                "rule": "!('sealedsecrets.bitnami.com/sealed-secrets-key' in self)",
                "message": "Sealed Secrets takes a Secret with the label sealedsecrets.bitnami.com/sealed-secrets-key for its key"
            }
        ]
    ))]
    pub labels: Option<BTreeMap<String, String>>,

    #[doc = concat!("Annotations of the Secret. Keys under `", group!("/"), "`, `kubernetes.io/` and `k8s.io/` are rejected, as are those")]
    /// by which other software trusts a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    pub annotations: Option<BTreeMap<String, String>>,
}
