//! Keeps Google-signed OIDC ID tokens in Kubernetes Secrets, always fresh.
pub mod api;
pub mod google;
pub mod token;
