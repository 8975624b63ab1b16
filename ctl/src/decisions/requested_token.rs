//! Pure: a request → the token that a grant has to allow.

use anyhow::{Context, Result, bail};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::google::shell::quote;
use idtoken_operator::request::{self as validate, TokenSpec};

/// Adds the account that the source returned, if the spec names none: a grant has to name it.
///
/// # Errors
/// The spec names no account, and the source has not returned a token yet.
pub(crate) fn with_resolved_account(mut token: TokenSpec, request: &IdTokenRequest) -> Result<TokenSpec> {
    let issued = request.status.as_ref().and_then(|status| status.token.as_ref());
    let email = issued.and_then(|token| token.email.clone());
    token.service_account = token.service_account.or(email);
    if token.service_account.is_none() {
        bail!(
            "IdTokenRequest {} names no account, but a grant has to: set spec.serviceAccount to the account of its source",
            quote(request.metadata.name.as_deref().unwrap_or_default())
        );
    }
    Ok(token)
}

/// Whether Google's IAM decides instead of grants.
pub(crate) fn needs_no_grant(request: &IdTokenRequest) -> bool {
    request
        .spec
        .source
        .as_ref()
        .is_some_and(|source| source.federation.is_some())
}

/// The token that `request` asks for.
///
/// # Errors
/// The operator would reject the spec.
pub(crate) fn token_spec(request: &IdTokenRequest) -> Result<TokenSpec> {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    validate::token(&request.spec).with_context(|| {
        format!(
            "the operator rejects the spec of IdTokenRequest {}; correct it first",
            quote(name)
        )
    })
}
