//! Pure: a request → the token that a grant has to allow.

use anyhow::{Context, Result, bail};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::google::shell::quote;
use idtoken_operator::request::{self as validate, TokenSpec};

/// The token with the account that its source has told, which a grant has to name.
///
/// # Errors
/// The spec names no account, and the source has not told one yet.
pub(crate) fn with_resolved_account(mut token: TokenSpec, request: &IdTokenRequest) -> Result<TokenSpec> {
    let told = request.status.as_ref().and_then(|status| status.token.as_ref());
    let told = told.and_then(|token| token.email.clone());
    token.service_account = token.service_account.or(told);
    if token.service_account.is_none() {
        bail!(
            "IdTokenRequest {} names no account, and a grant has to: set spec.serviceAccount to the account that its source has",
            quote(request.metadata.name.as_deref().unwrap_or_default())
        );
    }
    Ok(token)
}

/// Whether Google's IAM alone decides on a request.
pub(crate) fn needs_no_grant(request: &IdTokenRequest) -> bool {
    request
        .spec
        .source
        .as_ref()
        .is_some_and(|source| source.federation.is_some())
}

/// What decides the token of a request.
///
/// # Errors
/// The operator would refuse the spec.
pub(crate) fn token_spec(request: &IdTokenRequest) -> Result<TokenSpec> {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    validate::token(&request.spec).with_context(|| {
        format!(
            "the operator refuses IdTokenRequest {}: correct its spec first",
            quote(name)
        )
    })
}
