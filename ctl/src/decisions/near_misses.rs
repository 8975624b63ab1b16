//! Pure: grants and a token → which grant allows it, or how near the others come.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use idtoken_operator::api::v1alpha1::{GrantRef, GrantSource, GrantTo, IdTokenGrantSpec};
use idtoken_operator::grants::index::Grant;
use idtoken_operator::grants::policy::{GrantSet, allows};
use idtoken_operator::request::{TokenSource, TokenSpec};
use jiff::Timestamp;
use serde::Serialize;

/// An audience that stands for none in particular, where another field is looked at.
const ANY: &str = "any";

/// Labels of the one namespace that matters; none where the caller may not read it.
pub(crate) type Labels = Option<BTreeMap<String, String>>;

/// What grants say.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// This grant allows it.
    Allowed(GrantRef),
    /// None does; the nearest first.
    Denied(Vec<Miss>),
    /// These would, if their selectors match the namespace, whose labels are not known.
    Unknown(Vec<String>),
}

/// One entry of a grant, and what of it does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Miss {
    /// Name of the grant.
    pub(crate) grant: String,
    /// Index of the entry in `spec.to`.
    pub(crate) entry: usize,
    /// What does not match; never empty.
    pub(crate) mismatches: Vec<Mismatch>,
}

impl Miss {
    /// Whether it has anything in common with what was asked for.
    pub(crate) fn is_near(&self) -> bool {
        let telling = [".serviceAccounts", ".audiences", "from"];
        let missed = |field: &str| {
            self.mismatches
                .iter()
                .any(|mismatch| mismatch.field.ends_with(field))
        };
        !telling.into_iter().all(missed)
    }
}

/// A field of a grant that does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mismatch {
    /// Path of the field below `spec`.
    pub(crate) field: String,
    /// What was asked for.
    pub(crate) asked: String,
    /// What the grant has.
    pub(crate) has: Vec<String>,
}

/// Decides, by the operator's own code, whether `namespace` may have `token`.
pub(crate) fn decide(grants: &[Grant], namespace: &str, labels: &Labels, token: &TokenSpec) -> Verdict {
    if let Some(grant) = authorize(grants, namespace, labels, token) {
        return Verdict::Allowed(grant);
    }
    if labels.is_none() {
        let undecided: Vec<String> = grants
            .iter()
            .filter(|grant| {
                grant
                    .spec
                    .from
                    .iter()
                    .any(|from| from.namespace_selector.is_some())
            })
            .filter(|grant| grant.spec.to.iter().any(|to| allows(to, token)))
            .map(|grant| grant.id.name.clone())
            .collect();
        if !undecided.is_empty() {
            return Verdict::Unknown(undecided);
        }
    }
    let mut misses: Vec<Miss> = grants
        .iter()
        .flat_map(|grant| misses_of(grant, namespace, labels, token))
        .collect();
    misses.sort_by(|a, b| {
        let key = |miss: &Miss| (miss.mismatches.len(), miss.grant.clone(), miss.entry);
        key(a).cmp(&key(b))
    });
    Verdict::Denied(misses)
}

fn authorize(grants: &[Grant], namespace: &str, labels: &Labels, token: &TokenSpec) -> Option<GrantRef> {
    let namespaces: HashMap<_, _> = labels
        .iter()
        .map(|labels| (namespace.to_owned(), labels.clone()))
        .collect();
    // Read a moment ago: nothing to be stale.
    GrantSet::new(grants, &namespaces, None)
        .authorize(namespace, "", token, Timestamp::UNIX_EPOCH)
        .ok()
}

fn misses_of(grant: &Grant, namespace: &str, labels: &Labels, token: &TokenSpec) -> Vec<Miss> {
    let from = from_mismatch(grant, namespace, labels);
    let entry = |(index, to)| Miss {
        grant: grant.id.name.clone(),
        entry: index,
        mismatches: from
            .iter()
            .cloned()
            .chain(to_mismatches(index, to, token))
            .collect(),
    };
    grant.spec.to.iter().enumerate().map(entry).collect()
}

/// Asks the operator's code about `from` alone: the same grant with an entry that allows a token of ours.
fn from_mismatch(grant: &Grant, namespace: &str, labels: &Labels) -> Option<Mismatch> {
    let token = neutral();
    let to = vec![neutral_entry()];
    let spec = IdTokenGrantSpec {
        from: grant.spec.from.clone(),
        to,
    };
    let alone = Grant {
        id: grant.id.clone(),
        spec: Arc::new(spec),
    };
    if authorize(&[alone], namespace, labels, &token).is_some() {
        return None;
    }
    let has = grant
        .spec
        .from
        .iter()
        .map(|from| match (&from.namespace, &from.namespace_selector) {
            (Some(name), _) => name.clone(),
            (None, Some(selector)) => {
                format!(
                    "namespaceSelector {}",
                    serde_json::to_string(selector).unwrap_or_default()
                )
            }
            (None, None) => "nothing".to_owned(),
        });
    Some(Mismatch {
        field: "from".to_owned(),
        asked: namespace.to_owned(),
        has: has.collect(),
    })
}

/// Asks the operator's code about each field of an entry alone: all others match.
fn to_mismatches(index: usize, to: &GrantTo, token: &TokenSpec) -> Vec<Mismatch> {
    let mismatch = |field: &str, asked: String, has: Vec<String>| Mismatch {
        field: format!("to[{index}].{field}"),
        asked,
        has,
    };
    let mut found = Vec::new();
    let accounts = GrantTo {
        service_accounts: to.service_accounts.clone(),
        ..neutral_entry()
    };
    if !allows(
        &accounts,
        &TokenSpec {
            service_account: token.service_account.clone(),
            ..neutral()
        },
    ) {
        found.push(mismatch(
            "serviceAccounts",
            token.service_account.clone().unwrap_or_default(),
            to.service_accounts.clone(),
        ));
    }
    let audiences = GrantTo {
        audiences: to.audiences.clone(),
        ..neutral_entry()
    };
    if !allows(
        &audiences,
        &TokenSpec {
            audience: token.audience.clone(),
            ..neutral()
        },
    ) {
        found.push(mismatch(
            "audiences",
            token.audience.clone(),
            to.audiences.clone(),
        ));
    }
    let delegates = GrantTo {
        delegates: to.delegates.clone(),
        ..neutral_entry()
    };
    let missing = token.source.delegates().iter().filter(|delegate| {
        !allows(
            &delegates,
            &TokenSpec {
                source: TokenSource::Impersonation {
                    delegates: vec![(*delegate).clone()],
                },
                ..neutral()
            },
        )
    });
    let missing: Vec<&str> = missing.map(String::as_str).collect();
    if !missing.is_empty() {
        found.push(mismatch(
            "delegates",
            missing.join(", "),
            to.delegates.clone().unwrap_or_default(),
        ));
    }
    let sources = GrantTo {
        sources: to.sources.clone(),
        ..neutral_entry()
    };
    if !allows(
        &sources,
        &TokenSpec {
            source: without_chain(&token.source),
            ..neutral()
        },
    ) {
        let has = to
            .sources
            .iter()
            .flatten()
            .map(|source| format!("{source:?}"))
            .collect();
        found.push(mismatch("sources", token.source.name().to_owned(), has));
    }
    found
}

fn neutral() -> TokenSpec {
    TokenSpec {
        audience: ANY.to_owned(),
        service_account: Some(ANY.to_owned()),
        include_email: true,
        include_organization_number: false,
        source: TokenSource::Impersonation {
            delegates: Vec::new(),
        },
    }
}

fn without_chain(source: &TokenSource) -> TokenSource {
    match source {
        TokenSource::Impersonation { .. } => TokenSource::Impersonation {
            delegates: Vec::new(),
        },
        other => other.clone(),
    }
}

fn neutral_entry() -> GrantTo {
    GrantTo {
        service_accounts: vec![ANY.to_owned()],
        audiences: vec![ANY.to_owned()],
        delegates: None,
        sources: Some(vec![
            GrantSource::Impersonation,
            GrantSource::MetadataServer,
            GrantSource::Developer,
        ]),
    }
}

#[cfg(test)]
#[path = "near_misses_tests.rs"]
mod tests;
