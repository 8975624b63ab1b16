//! Pure: a request → the IdTokenGrant that allows it and nothing more.

use aws_lc_rs::digest::{SHA256, digest};
use idtoken_operator::api::v1alpha1::{GrantFrom, GrantSource, GrantTo, IdTokenGrant, IdTokenGrantSpec};
use idtoken_operator::request::TokenSpec;
use idtoken_operator::text::hex;
use kube::api::ObjectMeta;
use serde_saphyr::{ser_options, to_string_with_options};
use thiserror::Error;

/// Names up to this length are `NAMESPACE.NAME`; longer ones are cut to [`CUT`] and end in a hash, so that no two requests
/// have the same.
const WHOLE: usize = 200;

/// Characters that are left of a name which is too long, before its hash.
const CUT: usize = 210;

/// Why there is no such grant.
#[derive(Debug, Error)]
pub(crate) enum DocumentError {
    /// `*` in a grant's audience stands for anything.
    #[error(
        "no IdTokenGrant can allow just the audience {0}, since a * in a grant is a wildcard: ask the verifier for an audience \
         without *, or have an administrator write a grant with a wildcard"
    )]
    Wildcard(String),
    /// It cannot be written as YAML.
    #[error("the grant cannot be written as YAML: {0}")]
    Yaml(String),
}

/// The grant for `token` in `namespace`, of which nothing is wider than the request.
///
/// # Errors
/// [`DocumentError::Wildcard`].
pub(crate) fn grant(namespace: &str, name: &str, token: &TokenSpec) -> Result<IdTokenGrant, DocumentError> {
    if token.audience.contains('*') {
        return Err(DocumentError::Wildcard(token.audience.clone()));
    }
    let mut delegates = token.source.delegates().to_vec();
    let source = token.source.granted_as();
    delegates.sort_unstable();
    delegates.dedup();
    let spec = IdTokenGrantSpec {
        from: vec![GrantFrom {
            namespace: Some(namespace.to_owned()),
            namespace_selector: None,
        }],
        to: vec![GrantTo {
            service_accounts: token.service_account.clone().into_iter().collect(),
            audiences: vec![token.audience.clone()],
            delegates: (!delegates.is_empty()).then_some(delegates),
            sources: source
                .filter(|source| *source != GrantSource::Impersonation)
                .map(|source| vec![source]),
        }],
    };
    let metadata = ObjectMeta {
        name: Some(grant_name(namespace, name)),
        ..ObjectMeta::default()
    };
    Ok(IdTokenGrant {
        metadata,
        spec,
        status: None,
    })
}

/// The document, for `kubectl apply -f -`.
///
/// # Errors
/// [`DocumentError::Yaml`].
pub(crate) fn yaml(grant: &IdTokenGrant) -> Result<String, DocumentError> {
    let options = ser_options! { prefer_block_scalars: false };
    let text =
        to_string_with_options(grant, options).map_err(|error| DocumentError::Yaml(error.to_string()))?;
    Ok(if text.ends_with('\n') {
        text
    } else {
        format!("{text}\n")
    })
}

/// The grant's name. A namespace has no dot, so the first one ends it: no two requests have the same name.
fn grant_name(namespace: &str, name: &str) -> String {
    let whole = format!("{namespace}.{name}");
    if whole.len() <= WHOLE {
        return whole;
    }
    let hash = hex(&digest(&SHA256, format!("{namespace}/{name}").as_bytes()).as_ref()[..16]);
    // No separator: after a dash or a dot that the cut may leave, neither of them is a DNS name's.
    format!("{}h{hash}", whole.get(..CUT).unwrap_or(&whole))
}

#[cfg(test)]
#[path = "grant_manifest_tests.rs"]
mod tests;
