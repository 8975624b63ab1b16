//! Pure: a request → the IdTokenGrant that allows it and nothing else.

use aws_lc_rs::digest::{SHA256, digest};
use idtoken_operator::api::v1alpha1::{GrantFrom, GrantSource, GrantTo, IdTokenGrant, IdTokenGrantSpec};
use idtoken_operator::request::TokenSpec;
use idtoken_operator::text::hex;
use kube::api::ObjectMeta;
use serde_saphyr::{ser_options, to_string_with_options};
use thiserror::Error;

/// Longest `NAMESPACE.NAME` that is the grant's name as it is. A longer one is truncated to [`TRUNCATED`] characters and a hash, so
/// that each request has a grant of its own name.
const MAX_PLAIN: usize = 200;

/// Characters of a longer name before its hash.
const TRUNCATED: usize = 210;

/// Why there is no such grant.
#[derive(Debug, Error)]
pub(crate) enum ManifestError {
    /// The audience contains `*`, which is a wildcard in a grant.
    #[error(
        "no IdTokenGrant can allow only the audience {0}, because * in a grant is a wildcard: use an audience without *, or have a \
         cluster administrator write a grant with a wildcard"
    )]
    Wildcard(String),
    /// The grant cannot be written as YAML.
    #[error("the grant cannot be written as YAML: {0}")]
    Yaml(String),
}

/// The grant that allows `namespace` the `token` and nothing else.
///
/// # Errors
/// [`ManifestError::Wildcard`].
pub(crate) fn grant(namespace: &str, name: &str, token: &TokenSpec) -> Result<IdTokenGrant, ManifestError> {
    if token.audience.contains('*') {
        return Err(ManifestError::Wildcard(token.audience.clone()));
    }
    let mut delegates = token.source.delegates().to_vec();
    let source = token.source.grant_source();
    delegates.sort_unstable();
    delegates.dedup();
    let spec = IdTokenGrantSpec {
        from: vec![GrantFrom {
            namespace: Some(namespace.to_owned()),
            ..GrantFrom::default()
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

/// The manifest for `kubectl apply -f -`.
///
/// # Errors
/// [`ManifestError::Yaml`].
pub(crate) fn yaml(grant: &IdTokenGrant) -> Result<String, ManifestError> {
    let options = ser_options! { prefer_block_scalars: false };
    let text =
        to_string_with_options(grant, options).map_err(|error| ManifestError::Yaml(error.to_string()))?;
    Ok(if text.ends_with('\n') {
        text
    } else {
        format!("{text}\n")
    })
}

/// The grant's name, unique for each request: a namespace has no dot, so the first dot separates it from the name.
fn grant_name(namespace: &str, name: &str) -> String {
    let plain = format!("{namespace}.{name}");
    if plain.len() <= MAX_PLAIN {
        return plain;
    }
    let hash = hex(&digest(&SHA256, format!("{namespace}/{name}").as_bytes()).as_ref()[..16]);
    // No separator: the truncated name may end in `-` or `.`, after which neither is valid in a DNS name.
    format!("{}h{hash}", plain.get(..TRUNCATED).unwrap_or(&plain))
}

#[cfg(test)]
#[path = "grant_manifest_tests.rs"]
mod tests;
