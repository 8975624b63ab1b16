//! A workload that federates: its identity, and the token that proves it.

use zeroize::Zeroizing;

use super::call_priority::CallPriority;
use super::identity_provider::IdentityProvider;

/// A Kubernetes ServiceAccount that is federated.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// The provider that vouches for it.
    pub provider: &'a IdentityProvider,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its `google.subject`, by the provider's attribute mapping.
    pub subject: &'a str,
    /// What the exchange is made for, `namespace/name` of a request; Google's audit log shows it.
    pub request_reason: &'a str,
    /// Flow and urgency of the exchange.
    pub priority: CallPriority<'a>,
}

/// A workload's own token, to exchange.
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
