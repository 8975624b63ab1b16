//! `IdTokenGrant`: which namespaces may use the operator's Google identity, for which accounts and audiences.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

with_group!(kind! {
    #[kube(
        kind = "IdTokenGrant",
        shortname = "idtg",
        status = "IdTokenGrantStatus",
        derive = "PartialEq",
        doc = "Allows the namespaces in `from` to get ID tokens for the service accounts and audiences in `to` by the operator's own Google identity.",
        printcolumn(name = "Namespaces", type_ = "string", json_path = ".spec.from[*].namespace"),
        printcolumn(
            name = "Service Accounts",
            type_ = "string",
            json_path = ".spec.to[*].serviceAccounts"
        ),
        printcolumn(
            name = "Audiences",
            type_ = "string",
            json_path = ".spec.to[*].audiences",
            priority = 1
        ),
        printcolumn(name = "Requests", type_ = "integer", json_path = ".status.allowedRequests"),
        printcolumn(
            name = "Problem",
            type_ = "string",
            json_path = ".status.conditions[?(@.type==\"Stalled\")].reason"
        ),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
    )]
    /// Allows namespaces to get tokens by the operator's own Google identity.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    pub struct IdTokenGrantSpec {
        /// Who is allowed; any of these.
        #[schemars(length(min = 1, max = 64), extend("x-kubernetes-list-type" = "atomic"))]
        pub from: Vec<GrantFrom>,

        /// What is allowed: a request must match every field of one of these entries.
        #[schemars(length(min = 1, max = 64), extend("x-kubernetes-list-type" = "atomic"))]
        pub to: Vec<GrantTo>,
    }
});

/// What the operator reports about a grant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdTokenGrantStatus {
    /// How many IdTokenRequests the grant allows, including those that another grant allows too; updated about every 10 seconds. Absent
    /// if operators are sharded by namespaces or labels, since no operator knows the total.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_requests: Option<i64>,

    /// Stalled is True while a part of the grant, or all of it, is invalid and grants nothing: the message says which and why. An absent
    /// condition is False.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One namespace, the namespaces of a label selector, or all namespaces; exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
// `namespace` is a reserved word of CEL, which older API servers only take escaped:
// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules>.
#[schemars(extend("minProperties" = 1, "maxProperties" = 1, "x-kubernetes-validations" = [
    {
        "rule": "(has(self.__namespace__) ? 1 : 0) + (has(self.namespaceSelector) ? 1 : 0) + (has(self.allNamespaces) ? 1 : 0) == 1",
        "message": "exactly one of namespace, namespaceSelector and allNamespaces must be set"
    }
]))]
pub struct GrantFrom {
    /// Name of a namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: Option<String>,

    /// Selects namespaces by their labels; a selector without a requirement selects none. Anyone who can edit a namespace's labels can give
    #[doc = concat!("the namespace this access: prefer labels under `grants.", group!("/"), "`.")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<NamespaceSelector>,

    /// `true` allows all namespaces, also those that are created later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true]))]
    pub all_namespaces: Option<bool>,
}

/// Selects namespaces by their labels, all requirements together; at least one requirement must be set.
///
/// Kubernetes' LabelSelector, except that unknown fields are rejected and that an empty selector selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
        "message": "a selector needs a requirement in matchLabels or matchExpressions; to allow all namespaces, set allNamespaces: true instead"
    }
]))]
pub struct NamespaceSelector {
    /// Labels that a namespace must have, with exactly these values.
    // Null is "nullable" so that the rule sees it: the API server drops another null without a word, and the rest selects more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "maxProperties" = 64,
        "additionalProperties" = {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE, "nullable": true},
        "x-kubernetes-validations" = [
            {
                "rule": "self.all(key, type(self[key]) == string)",
                "message": "a label needs a value, and null is none; to select namespaces that have the label, use matchExpressions with Exists"
            }
        ]
    ))]
    pub match_labels: Option<BTreeMap<String, String>>,

    /// Further requirements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Option<Vec<SelectorRequirement>>,
}

/// A requirement of a selector on one label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
        "message": "the operators In and NotIn need values, and Exists and DoesNotExist have none"
    }
]))]
pub struct SelectorRequirement {
    /// Key of the label.
    #[schemars(
        length(min = 1, max = 317),
        regex(
            pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"
        )
    )]
    pub key: String,

    /// `In`: the label has one of the values. `NotIn`: it has none of them, or is absent. `Exists`: it has any value. `DoesNotExist`: it is
    /// absent.
    #[schemars(extend("enum" = ["In", "NotIn", "Exists", "DoesNotExist"]))]
    pub operator: String,

    /// Values for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 64),
        inner(length(max = 63), regex(pattern = LABEL_VALUE)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub values: Option<Vec<String>>,
}

/// The value of a label.
const LABEL_VALUE: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";

/// Accounts and audiences that are allowed together; each field must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantTo {
    /// Service accounts: an exact e-mail address or numeric unique ID, or `*@DOMAIN` for every account of that domain.
    #[schemars(
        length(min = 1, max = 64),
        inner(
            length(min = 1, max = 254),
            regex(pattern = r"^([0-9]{1,32}|(\*|[a-z0-9][a-z0-9._-]*)@[a-z0-9][a-z0-9.-]*[a-z0-9])$")
        ),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub service_accounts: Vec<String>,

    /// Audiences: exact, or a URL with a final `*` after the host's slash, which matches any rest.
    #[schemars(
        length(min = 1, max = 64),
        inner(
            length(min = 1, max = 2048),
            regex(pattern = r"^([!-)+-~]+|https?://[!-)+-.0-~]+/([!-)+-~]*)\*)$")
        ),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub audiences: Vec<String>,

    /// Accounts that a delegation chain may contain, exact. Absent means that no chain is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 64),
        inner(
            length(min = 1, max = 254),
            regex(pattern = r"^([0-9]{1,32}|[a-z0-9][a-z0-9._-]*@[a-z0-9][a-z0-9.-]*[a-z0-9])$")
        ),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub delegates: Option<Vec<String>>,

    /// Sources that are allowed. Absent means Impersonation only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 3), extend("x-kubernetes-list-type" = "set"))]
    pub sources: Option<Vec<GrantSource>>,
}

/// A source that uses the operator's own identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GrantSource {
    /// Impersonation by the operator's Application Default Credentials.
    Impersonation,
    /// The identity attached to the operator's pod or node.
    MetadataServer,
    /// gcloud user credentials.
    Developer,
}
