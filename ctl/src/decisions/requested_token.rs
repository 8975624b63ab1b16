//! Pure: a request → the token that a grant has to allow.

use anyhow::{Context, Result, bail};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::request::{self, TokenSpec};
use idtoken_operator::shell::quote;

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
    request::token(&request.spec).with_context(|| {
        format!(
            "the operator rejects the spec of IdTokenRequest {}; correct it first",
            quote(name)
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(spec: Value, status: Value) -> IdTokenRequest {
        serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "billing", "namespace": "shop"}, "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn account(spec: Value, status: Value) -> Result<String> {
        let request = request(spec, status);
        let token = with_resolved_account(token_spec(&request)?, &request)?;
        Ok(token.service_account.unwrap())
    }

    #[test]
    fn the_spec_names_the_account_or_else_the_last_token() {
        let email = "attached@p.iam.gserviceaccount.com";
        let issued = json!({"token": {"email": email}});
        let attached = json!({"audience": "https://a", "source": {"metadataServer": {}}});
        let named = json!({"audience": "https://a", "serviceAccount": "1234"});
        assert_eq!(account(attached.clone(), issued.clone()).unwrap(), email);
        assert_eq!(account(named, issued).unwrap(), "1234");
        let error = account(attached, json!({})).unwrap_err().to_string();
        assert!(
            error.starts_with("IdTokenRequest billing names no account"),
            "{error}"
        );
    }

    #[test]
    fn only_federation_needs_no_grant() {
        for (source, expected) in [
            (
                json!({"federation": {"serviceAccountRef": {"name": "billing"}}}),
                true,
            ),
            (json!({"impersonation": {}}), false),
            (json!({"metadataServer": {}}), false),
            (Value::Null, false),
        ] {
            let request = request(json!({"audience": "https://a", "source": source}), json!({}));
            assert_eq!(needs_no_grant(&request), expected, "{request:?}");
        }
    }

    #[test]
    fn a_spec_that_the_operator_rejects_is_an_error() {
        let rejected = request(json!({"audience": "a b", "serviceAccount": "1"}), json!({}));
        let error = format!("{:#}", token_spec(&rejected).unwrap_err());
        assert!(
            error.contains("rejects the spec of IdTokenRequest billing"),
            "{error}"
        );
        assert!(error.contains("spec.audience"), "{error}");
    }
}
