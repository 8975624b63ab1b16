//! Pure: (Request, grants) → allowed by which grant, or why not. Everything is denied that no grant allows.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use thiserror::Error;

use crate::api::conditions::reason;
use crate::api::v1alpha1::{GrantRef, GrantSource, GrantTo};
use crate::grants::index::{Grant, GrantIndex, Namespaces};
use crate::request::TokenSpec;
use crate::request::syntax::is_unique_id;
use crate::shell;

/// How long decisions are made from a watch that no longer speaks. The API server sends a bookmark about once a minute
/// (<https://kubernetes.io/docs/reference/using-api/api-concepts/#watch-bookmarks>).
pub const STALE_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// Why a request is denied. Never quotes a grant: it may be another tenant's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// No grant allows all of it.
    #[error(
        "no IdTokenGrant allows namespace {namespace} to get a token of {service_account} for audience {audience}; \
         `kubectl idtoken grant {name} -n {namespace}` prints the grant that would, {whose}"
    )]
    NotGranted {
        /// Namespace of the request.
        namespace: String,
        /// Name of the request, shell-quoted.
        name: String,
        /// The account asked for.
        service_account: String,
        /// The audience asked for, and the delegation chain if there is one.
        audience: String,
        /// Who puts the grant where.
        whose: &'static str,
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

/// All grants, by what requests ask for.
#[derive(Debug, Default)]
pub struct GrantSet {
    index: GrantIndex,
    fresh_until: Option<Timestamp>,
}

impl GrantSet {
    /// `grants`, whose selectors select among `namespaces`. `last_seen` is the last sign of life of the watches that both came
    /// from; none where they come from a file alone.
    pub fn new(grants: &[Grant], namespaces: &Namespaces, last_seen: Option<Timestamp>) -> Self {
        let mut set = Self::default();
        set.set_namespaces(namespaces.clone());
        for (position, grant) in grants.iter().enumerate() {
            set.insert(&position.to_string(), grant.clone());
        }
        if let Some(seen) = last_seen {
            set.seen_at(seen);
        }
        set
    }

    /// Takes a grant in, in place of the one that had this key.
    pub fn insert(&mut self, key: &str, grant: Grant) {
        self.index.insert(key, grant);
    }

    /// Takes a grant out.
    pub fn remove(&mut self, key: &str) {
        self.index.remove(key);
    }

    /// Takes all namespaces' labels.
    pub fn set_namespaces(&mut self, namespaces: Namespaces) {
        self.index.set_namespaces(namespaces);
    }

    /// Takes or drops one namespace's labels. Says whether that changed anything.
    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) -> bool {
        self.index.set_namespace(name, labels)
    }

    /// The same grants, known to be current at `last_seen`.
    pub fn seen_at(&mut self, last_seen: Timestamp) {
        self.fresh_until = last_seen.checked_add(STALE_AFTER).ok();
    }

    /// Every grant that allows `namespace` to have `token`, by name.
    pub fn allowing(&self, namespace: &str, token: &TokenSpec) -> Vec<&GrantRef> {
        let account = token.service_account.as_deref();
        let found = self.index.find(namespace, account, &token.audience);
        // The index only finds them: whether they allow it is decided here alone.
        let allowing = found.entries.into_iter().filter(|entry| {
            let to = entry.grant.spec.to.get(entry.to);
            to.is_some_and(|to| allows(to, token))
        });
        let mut allowing: Vec<&GrantRef> = allowing.map(|entry| &entry.grant.id).collect();
        allowing.sort_unstable_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        allowing.dedup();
        allowing
    }

    /// Decides whether `namespace` may have `token`: by the first of the grants that allow it.
    ///
    /// # Errors
    /// [`Denied`], with the command that shows the grant which would allow it.
    pub fn authorize(
        &self,
        namespace: &str,
        name: &str,
        token: &TokenSpec,
        now: Timestamp,
    ) -> Result<GrantRef, Denied> {
        if let Some(until) = self.fresh_until.filter(|until| *until < now) {
            return Err(Denied::Unavailable {
                since: until - STALE_AFTER,
            });
        }
        let allowing = self.allowing(namespace, token);
        allowing
            .first()
            .map(|grant| (*grant).clone())
            .ok_or_else(|| Denied::NotGranted {
                namespace: namespace.to_owned(),
                name: shell::quote(name).into_owned(),
                service_account: token
                    .service_account
                    .clone()
                    .unwrap_or_else(|| "the account that the source has".to_owned()),
                audience: match token.source.delegates() {
                    [] => token.audience.clone(),
                    chain => format!("{} by way of {}", token.audience, chain.join(", ")),
                },
                // Where only the file counts there is no watch that could grow stale.
                whose: match self.fresh_until {
                    Some(_) => "for a cluster administrator to apply",
                    None => {
                        "whose from and to an administrator adds, with a name, to the list in the operator's --grants-file, the only \
                         place that this operator takes grants from"
                    }
                },
            })
    }
}

/// Whether one entry of a grant allows all of `token`. An account that only the source knows passes here, and is looked at as soon as
/// the source has told it.
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
    // The host must be closed by a slash: https://api.example.com* would also be https://api.example.com.evil.io.
    let host_is_closed = ["https://", "http://"]
        .iter()
        .filter_map(|scheme| prefix.strip_prefix(scheme))
        .any(|rest| rest.find('/').is_some_and(|slash| slash > 0));
    host_is_closed && !prefix.contains('*') && audience.starts_with(prefix)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
