//! A workload that federates: who it is, and the token that says so.

use zeroize::Zeroizing;

use super::call_priority::CallPriority;
use super::identity_provider::IdentityProvider;

/// A Kubernetes ServiceAccount that is federated.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// Who vouches for it.
    pub provider: &'a IdentityProvider,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The `google.subject` that the provider's mapping makes of it.
    pub subject: &'a str,
    /// What the exchange is made for, `namespace/name` of a request; it ends up in Google's audit log.
    pub request_reason: &'a str,
    /// For whom the exchange is made.
    pub priority: CallPriority<'a>,
}

/// A workload's own token, to be exchanged.
pub struct SubjectToken {
    /// The token.
    pub token: Zeroizing<String>,
    /// Its `iss`, for messages.
    pub issuer: String,
    /// Its `aud`, for messages.
    pub audience: String,
}

impl std::fmt::Debug for SubjectToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SubjectToken")
            .field("token", &"[redacted]")
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .finish()
    }
}
