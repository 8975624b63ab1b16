//! Pure: a request and the grants → the grant that allows it, or why none does. Without a grant, everything is denied.

use std::fmt;

use jiff::Timestamp;
use thiserror::Error;

use crate::api::conditions::reason;
use crate::api::v1alpha1::{GrantRef, GrantSource, GrantTo};
use crate::classify::Classify;
use crate::grants::index::GrantIndex;
use crate::request::TokenSpec;
use crate::request::syntax::is_unique_id;
use crate::shell;

/// Why a request is denied. Never quotes a grant, which may be another tenant's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// No grant allows the whole request.
    #[error(
        "no IdTokenGrant allows namespace {namespace} to get a token of {service_account} for audience {audience}; \
         `kubectl idtoken grant {name} -n {namespace}` prints the grant that would allow it; {remedy}"
    )]
    NotGranted {
        /// Namespace of the request.
        namespace: String,
        /// Name of the request, shell-quoted.
        name: String,
        /// The requested account.
        service_account: String,
        /// The requested audience, and the delegation chain if there is one.
        audience: String,
        /// Who adds the grant, and where.
        remedy: Remedy,
    },
    /// The watches of grants or namespaces have been silent for too long.
    #[error(
        "grants or namespaces could not be read from the API server since {since}; nothing is granted until they can be read"
    )]
    Unavailable {
        /// The last sign of life.
        since: Timestamp,
    },
}

impl Classify for Denied {
    fn reason(&self) -> &'static str {
        match self {
            Self::NotGranted { .. } => reason::NOT_GRANTED,
            Self::Unavailable { .. } => reason::GRANTS_UNAVAILABLE,
        }
    }
}

/// How an administrator adds a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// As an IdTokenGrant.
    ApplyGrant,
    /// In the file of `--grants-file`: the operator watches no IdTokenGrants.
    EditGrantsFile,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApplyGrant => "a cluster administrator applies it",
            Self::EditGrantsFile => {
                "an administrator adds its from and to, with a name, to the list in the operator's --grants-file, since this operator \
                 reads grants from that file alone"
            }
        })
    }
}

/// All grants that allow `namespace` to have `token`, by name.
pub fn matching<'a>(index: &'a GrantIndex, namespace: &str, token: &TokenSpec) -> Vec<&'a GrantRef> {
    let account = token.service_account.as_deref();
    let candidates = index.candidates(namespace, account, &token.audience);
    // The index only finds candidates: `allows` alone decides.
    let matching = candidates.entries.into_iter().filter(|entry| {
        let to = entry.grant.spec.to.get(entry.to);
        to.is_some_and(|to| allows(to, token))
    });
    let mut matching: Vec<&GrantRef> = matching.map(|entry| &entry.grant.id).collect();
    matching.sort_unstable_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
    matching.dedup();
    matching
}

/// Decides whether `namespace` may have the `token` of the request called `name`. Returns the first grant that allows it, by name.
///
/// # Errors
/// [`Denied::NotGranted`], with the command that prints the missing grant, and `remedy`.
pub fn authorize(
    index: &GrantIndex,
    namespace: &str,
    name: &str,
    token: &TokenSpec,
    remedy: Remedy,
) -> Result<GrantRef, Denied> {
    if let Some(grant) = matching(index, namespace, token).first() {
        return Ok((*grant).clone());
    }
    Err(Denied::NotGranted {
        namespace: namespace.to_owned(),
        name: shell::quote(name).into_owned(),
        service_account: token
            .service_account
            .clone()
            .unwrap_or_else(|| "the account of its source".to_owned()),
        audience: match token.source.delegates() {
            [] => token.audience.clone(),
            chain => format!("{} through the delegates {}", token.audience, chain.join(", ")),
        },
        remedy,
    })
}

/// Whether one entry of a grant allows the whole `token`. An account that only the source knows matches here; the store authorizes it once
/// the source has returned it.
pub fn allows(to: &GrantTo, token: &TokenSpec) -> bool {
    let sources = to.sources.as_deref().unwrap_or(&[GrantSource::Impersonation]);
    let delegates = to.delegates.as_deref().unwrap_or_default();
    let account = token.service_account.as_deref();
    token
        .source
        .grant_source()
        .is_some_and(|source| sources.contains(&source))
        && match account {
            Some(account) => to
                .service_accounts
                .iter()
                .any(|pattern| account_matches(pattern, account)),
            None => token.source.grant_source() != Some(GrantSource::Impersonation),
        }
        && to
            .audiences
            .iter()
            .any(|pattern| audience_matches(pattern, &token.audience))
        && token
            .source
            .delegates()
            .iter()
            .all(|delegate| delegates.contains(delegate))
}

fn account_matches(pattern: &str, account: &str) -> bool {
    match pattern.strip_prefix("*@") {
        Some(domain) => {
            !is_unique_id(account) && account.split_once('@').is_some_and(|(_, own)| own == domain)
        }
        None => pattern == account,
    }
}

fn audience_matches(pattern: &str, audience: &str) -> bool {
    let Some(prefix) = pattern.strip_suffix('*') else {
        return pattern == audience;
    };
    // A slash must end the host: https://api.example.com* would also match https://api.example.com.evil.io.
    let has_whole_host = ["https://", "http://"]
        .iter()
        .filter_map(|scheme| prefix.strip_prefix(scheme))
        .any(|rest| rest.find('/').is_some_and(|slash| slash > 0));
    has_whole_host && !prefix.contains('*') && audience.starts_with(prefix)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
