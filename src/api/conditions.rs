//! Condition types and their reasons: a closed list, which conditions, events and metrics all use.

/// The Secret holds a valid token that matches the spec.
pub const READY: &str = "Ready";
/// The last attempt to renew failed while the Secret still holds a valid token.
pub const RENEWAL_FAILING: &str = "RenewalFailing";
/// There is no valid token yet, and the operator will try again by itself (kstatus: InProgress).
pub const RECONCILING: &str = "Reconciling";
/// Nothing will change until somebody acts (kstatus: Failed).
pub const STALLED: &str = "Stalled";

/// Reasons that the operator itself gives; those of Google's endpoints are in [`crate::google`], those of a token's
/// checks in [`crate::token`].
pub mod reason {
    /// The Secret holds a fresh token.
    pub const ISSUED: &str = "Issued";
    /// `spec.suspend` is true.
    pub const SUSPENDED: &str = "Suspended";
    /// A token is being issued for the first time, or for a changed spec.
    pub const ISSUING: &str = "Issuing";
    /// The last attempt failed and another is scheduled.
    pub const RETRYING: &str = "Retrying";
    /// The last renewal succeeded.
    pub const RENEWED: &str = "Renewed";
    /// Nothing is left to do.
    pub const RECONCILED: &str = "Reconciled";
    /// In logs and metrics only: the metadata server gave the same token again, which is no renewal.
    pub const UNCHANGED: &str = "Unchanged";
    /// Event only: the token is a developer's, whose audience is an OAuth client.
    pub const DEVELOPER_TOKEN: &str = "DeveloperToken";
    /// The spec is refused; the message names the field.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The source is not available in this operator.
    pub const SOURCE_UNAVAILABLE: &str = "SourceUnavailable";
    /// No IdTokenGrant allows the request.
    pub const NOT_GRANTED: &str = "NotGranted";
    /// The grants or namespaces cannot be read at the moment, so nothing is allowed.
    pub const GRANTS_UNAVAILABLE: &str = "GrantsUnavailable";
    /// The Kubernetes ServiceAccount that a federation names does not exist.
    pub const KUBERNETES_SERVICE_ACCOUNT_NOT_FOUND: &str = "KubernetesServiceAccountNotFound";
    /// Neither the request nor the Kubernetes ServiceAccount names a Google service account.
    pub const SERVICE_ACCOUNT_NOT_ANNOTATED: &str = "ServiceAccountNotAnnotated";
    /// RBAC does not let the operator make tokens of the Kubernetes ServiceAccount.
    pub const TOKEN_REQUEST_FORBIDDEN: &str = "TokenRequestForbidden";
    /// The target Secret belongs to somebody else.
    pub const SECRET_CONFLICT: &str = "SecretConflict";
    /// Another IdTokenRequest owns the target Secret.
    pub const TARGET_CONFLICT: &str = "TargetConflict";
    /// The target Secret is immutable.
    pub const SECRET_IMMUTABLE: &str = "SecretImmutable";
    /// Somebody keeps changing what the operator writes.
    pub const CONTESTED: &str = "Contested";
    /// The Kubernetes API refused a read or a write.
    pub const KUBERNETES_REFUSED: &str = "KubernetesRefused";
    /// The Kubernetes API did not answer, or with a passing fault.
    pub const KUBERNETES_UNAVAILABLE: &str = "KubernetesUnavailable";
    /// A bug of the operator.
    pub const INTERNAL_ERROR: &str = "InternalError";
    /// Event only: the operator's clock differs from Google's by minutes.
    pub const CLOCK_SKEW: &str = "ClockSkew";
    /// The work did not finish in time.
    pub const TIMED_OUT: &str = "TimedOut";
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_reason_is_documented() {
        let documented = include_str!("../../docs/reasons.md");
        let reasons = include_str!("conditions.rs").lines().filter_map(|line| {
            let (_, value) = line
                .trim()
                .strip_prefix("pub const ")?
                .split_once(": &str = \"")?;
            value.strip_suffix("\";")
        });
        let missing: Vec<&str> = reasons
            .filter(|reason| !documented.contains(&format!("`{reason}`")))
            .collect();
        assert_eq!(missing, Vec::<&str>::new());
    }
}
