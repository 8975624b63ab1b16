//! Pure: (Request, grants) → allowed by which grant, or why not. Everything is denied that no grant allows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kube::core::{Selector, SelectorExt};
use thiserror::Error;

use super::names::is_unique_id;
use super::validate::TokenSpec;
use crate::api::conditions::reason;
use crate::api::v1alpha1::{GrantSource, GrantStatus, GrantTo, IdTokenGrantSpec};
use crate::google::shell;

/// How long decisions are made from a watch that no longer speaks. The API server sends a bookmark about once a minute
/// (<https://kubernetes.io/docs/reference/using-api/api-concepts/#watch-bookmarks>).
pub const STALE_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// Why a request is denied. Never quotes a grant: it may be another tenant's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// No grant allows all of it.
    #[error(
        "no IdTokenGrant allows namespace {namespace} to get a token of {service_account} for audience {audience}{delegates}; \
         `kubectl idtoken grant {name} -n {namespace}` prints the grant that would, for a cluster administrator to apply"
    )]
    NotGranted {
        /// Namespace of the request.
        namespace: String,
        /// Name of the request, shell-quoted.
        name: String,
        /// The account asked for.
        service_account: String,
        /// The audience asked for.
        audience: String,
        /// The delegation chain, if one is asked for.
        delegates: String,
    },
    /// The watches have been silent too long to decide.
    #[error(
        "grants or namespaces could not be read from the API server since {since}; nothing is allowed until they can be"
    )]
    Unavailable {
        /// The last sign of life.
        since: Timestamp,
    },
}

impl Denied {
    /// Reason of the condition, the event and the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotGranted { .. } => reason::NOT_GRANTED,
            Self::Unavailable { .. } => reason::GRANTS_UNAVAILABLE,
        }
    }
}

/// A grant and what it is called.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Name, and UID if it is an object.
    pub id: GrantStatus,
    /// What it allows.
    pub spec: Arc<IdTokenGrantSpec>,
}

/// Labels of every namespace, by name.
pub type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// Grants by the namespaces that they are for, so that a decision does not grow with the number of grants.
#[derive(Debug, Default)]
pub struct GrantSet {
    by_namespace: HashMap<String, Vec<Grant>>,
    fresh_until: Option<Timestamp>,
}

impl GrantSet {
    /// Resolves the selectors of `grants` against `namespaces`. `last_seen` is the last sign of life of the watches that both came
    /// from; none where they come from a file alone.
    pub fn new(grants: &[Grant], namespaces: &Namespaces, last_seen: Option<Timestamp>) -> Self {
        let mut by_namespace: HashMap<String, Vec<Grant>> = HashMap::new();
        for grant in grants {
            let mut matched: Vec<&str> = Vec::new();
            for from in &grant.spec.from {
                match (&from.namespace, &from.namespace_selector) {
                    (Some(name), None) => matched.push(name),
                    (None, Some(selector)) => {
                        let Ok(selector) = Selector::try_from(selector.clone()) else {
                            continue;
                        };
                        let selected = namespaces.iter().filter(|(_, labels)| selector.matches(labels));
                        matched.extend(selected.map(|(name, _)| name.as_str()));
                    }
                    // The schema refuses both and neither; what an older CRD let through allows nothing.
                    _ => {}
                }
            }
            matched.sort_unstable();
            matched.dedup();
            for namespace in matched {
                by_namespace
                    .entry(namespace.to_owned())
                    .or_default()
                    .push(grant.clone());
            }
        }
        Self {
            by_namespace,
            fresh_until: last_seen.and_then(|seen| seen.checked_add(STALE_AFTER).ok()),
        }
    }

    /// The same grants, known to be current at `last_seen`.
    pub fn seen_at(&mut self, last_seen: Timestamp) {
        self.fresh_until = last_seen.checked_add(STALE_AFTER).ok();
    }

    /// Decides whether `namespace` may have `token`.
    ///
    /// # Errors
    /// [`Denied`], with the command that shows the grant which would allow it.
    pub fn authorize(
        &self,
        namespace: &str,
        name: &str,
        token: &TokenSpec,
        now: Timestamp,
    ) -> Result<GrantStatus, Denied> {
        if let Some(until) = self.fresh_until.filter(|until| *until < now) {
            return Err(Denied::Unavailable {
                since: until - STALE_AFTER,
            });
        }
        let grants = self
            .by_namespace
            .get(namespace)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let allowing = grants
            .iter()
            .find(|grant| grant.spec.to.iter().any(|to| allows(to, token)));
        allowing
            .map(|grant| grant.id.clone())
            .ok_or_else(|| Denied::NotGranted {
                namespace: namespace.to_owned(),
                name: shell::quote(name).into_owned(),
                service_account: token
                    .service_account
                    .clone()
                    .unwrap_or_else(|| "the source's own account".to_owned()),
                audience: token.audience.clone(),
                delegates: match token.source.delegates() {
                    [] => String::new(),
                    chain => format!(" by way of {}", chain.join(", ")),
                },
            })
    }
}

/// Whether one entry of a grant allows all of `token`.
pub fn allows(to: &GrantTo, token: &TokenSpec) -> bool {
    let sources = to.sources.as_deref().unwrap_or(&[GrantSource::Impersonation]);
    let delegates = to.delegates.as_deref().unwrap_or_default();
    let account = token.service_account.as_deref();
    token
        .source
        .granted_as()
        .is_some_and(|source| sources.contains(&source))
        && account.is_some_and(|account| {
            to.service_accounts
                .iter()
                .any(|pattern| account_matches(pattern, account))
        })
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
    // The host must be closed by a slash: https://api.example.com* would also be https://api.example.com.evil.io.
    let host_is_closed = ["https://", "http://"]
        .iter()
        .filter_map(|scheme| prefix.strip_prefix(scheme))
        .any(|rest| rest.find('/').is_some_and(|slash| slash > 0));
    host_is_closed && !prefix.contains('*') && audience.starts_with(prefix)
}

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
