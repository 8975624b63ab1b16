//! Condition types and their reasons: a closed list for conditions, events and metrics.

/// The Secret holds a valid token that matches the spec.
pub const READY: &str = "Ready";
/// The last attempt to renew failed while the Secret still holds a valid token.
pub const RENEWAL_FAILING: &str = "RenewalFailing";
/// There is no valid token yet, and the operator retries automatically (kstatus: InProgress).
pub const RECONCILING: &str = "Reconciling";
/// Nothing changes until a user acts (kstatus: Failed).
pub const STALLED: &str = "Stalled";

/// Reasons of the operator itself. The reasons of Google's endpoints are in [`crate::google`], those of the checks of a token in
/// [`crate::token`].
pub mod reason {
    /// The Secret holds a valid token.
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
    /// In logs and metrics only: the metadata server returned the same token again, so nothing was renewed.
    pub const UNCHANGED: &str = "Unchanged";
    /// Event only: the token is one of gcloud user credentials, whose audience is an OAuth client.
    pub const DEVELOPER_TOKEN: &str = "DeveloperToken";
    /// The spec is invalid; the message names the field.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The spec is larger than any spec may be.
    pub const TOO_LARGE: &str = "TooLarge";
    /// Older requests take all of the memory that the operator may use for requests.
    pub const CACHE_FULL: &str = "CacheFull";
    /// On an IdTokenGrant: a namespaceSelector has no requirement, so it selects nothing.
    pub const EMPTY_SELECTOR: &str = "EmptySelector";
    /// The source is not available in this operator.
    pub const SOURCE_UNAVAILABLE: &str = "SourceUnavailable";
    /// No IdTokenGrant allows the request.
    pub const NOT_GRANTED: &str = "NotGranted";
    /// The grants or namespaces cannot be read now, so nothing is allowed.
    pub const GRANTS_UNAVAILABLE: &str = "GrantsUnavailable";
    /// The Kubernetes ServiceAccount that a federation names does not exist.
    pub const KUBERNETES_SERVICE_ACCOUNT_NOT_FOUND: &str = "KubernetesServiceAccountNotFound";
    /// Neither the request nor the Kubernetes ServiceAccount names a Google service account.
    pub const SERVICE_ACCOUNT_NOT_ANNOTATED: &str = "ServiceAccountNotAnnotated";
    /// RBAC does not allow the operator to request tokens of the Kubernetes ServiceAccount.
    pub const TOKEN_REQUEST_FORBIDDEN: &str = "TokenRequestForbidden";
    /// The target Secret is not the operator's.
    pub const SECRET_CONFLICT: &str = "SecretConflict";
    /// Another IdTokenRequest owns the target Secret.
    pub const TARGET_CONFLICT: &str = "TargetConflict";
    /// The target Secret is immutable.
    pub const SECRET_IMMUTABLE: &str = "SecretImmutable";
    /// Another client keeps changing what the operator writes.
    pub const CONTESTED: &str = "Contested";
    /// The Kubernetes API rejected a read or a write.
    pub const KUBERNETES_REFUSED: &str = "KubernetesRefused";
    /// The Kubernetes API did not respond, or with a transient error.
    pub const KUBERNETES_UNAVAILABLE: &str = "KubernetesUnavailable";
    /// A bug of the operator.
    pub const INTERNAL_ERROR: &str = "InternalError";
    /// Event only: the operator's clock differs from Google's by minutes.
    pub const CLOCK_SKEW: &str = "ClockSkew";
    /// The reconcile did not finish in time.
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
