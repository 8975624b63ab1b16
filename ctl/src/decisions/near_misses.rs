//! Pure: grants and a token → the grant that allows it, or what does not match in the others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use idtoken_operator::api::v1alpha1::{GrantFrom, GrantRef, GrantSource, GrantTo, IdTokenGrantSpec};
use idtoken_operator::grants::index::{Grant, GrantIndex};
use idtoken_operator::grants::policy::{allows, matching};
use idtoken_operator::grants::selector::{NamespaceMatch, namespace_match};
use idtoken_operator::request::{TokenSource, TokenSpec};
use serde::Serialize;

/// Account and audience of both token and entry while another field is compared.
const ANY: &str = "any";

/// Labels of the request's namespace; `None` if they could not be read.
pub(crate) type Labels = Option<BTreeMap<String, String>>;

/// Whether grants allow a token.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// This grant allows it.
    Allowed(GrantRef),
    /// No grant allows it; the closest entries come first.
    Denied(Vec<NearMiss>),
    /// These grants allow it if their selectors match the namespace, whose labels are unknown.
    Unknown(Vec<String>),
}

/// An entry of a grant that does not allow the token, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct NearMiss {
    /// Name of the grant.
    pub(crate) grant: String,
    /// Index of the entry in `spec.to`.
    pub(crate) entry: usize,
    /// The fields that do not match; never empty.
    pub(crate) mismatches: Vec<Mismatch>,
}

impl NearMiss {
    /// Whether the namespace, the account or the audience matches.
    pub(crate) fn shares_something(&self) -> bool {
        let fields = [".serviceAccounts", ".audiences", "from"];
        let differs = |field: &str| {
            let mut mismatches = self.mismatches.iter();
            mismatches.any(|mismatch| mismatch.field.ends_with(field))
        };
        !fields.into_iter().all(differs)
    }
}

/// A field of a grant that does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mismatch {
    /// Path of the field below `spec`.
    pub(crate) field: String,
    /// The requested value.
    #[serde(rename = "asked")]
    pub(crate) requested: String,
    /// The values that the grant allows.
    pub(crate) has: Vec<String>,
}

/// Whether `grants` allow `namespace` the `token`, decided by the operator's own code.
pub(crate) fn decide(grants: &[Grant], namespace: &str, labels: &Labels, token: &TokenSpec) -> Verdict {
    if let Some(grant) = authorize(grants, namespace, labels, token) {
        return Verdict::Allowed(grant);
    }
    if labels.is_none() {
        let undecided: Vec<String> = grants
            .iter()
            .filter(|grant| {
                let mut from = grant.spec.from.iter();
                from.any(|from| matches!(namespace_match(from), Ok(NamespaceMatch::Selector(_))))
            })
            .filter(|grant| grant.spec.to.iter().any(|to| allows(to, token)))
            .map(|grant| grant.id.name.clone())
            .collect();
        if !undecided.is_empty() {
            return Verdict::Unknown(undecided);
        }
    }
    let mut misses: Vec<NearMiss> = grants
        .iter()
        .flat_map(|grant| misses_of(grant, namespace, labels, token))
        .collect();
    sort(&mut misses);
    Verdict::Denied(misses)
}

/// Puts the closest entries first.
pub(crate) fn sort(misses: &mut [NearMiss]) {
    misses.sort_by(|a, b| {
        let key = |miss: &NearMiss| (miss.mismatches.len(), miss.grant.clone(), miss.entry);
        key(a).cmp(&key(b))
    });
}

fn authorize(grants: &[Grant], namespace: &str, labels: &Labels, token: &TokenSpec) -> Option<GrantRef> {
    let namespaces: HashMap<_, _> = labels
        .iter()
        .map(|labels| (namespace.to_owned(), labels.clone()))
        .collect();
    let index = GrantIndex::new(grants, &namespaces);
    matching(&index, namespace, token).first().copied().cloned()
}

fn misses_of(grant: &Grant, namespace: &str, labels: &Labels, token: &TokenSpec) -> Vec<NearMiss> {
    let from = from_mismatch(grant, namespace, labels);
    let entry = |(index, to)| NearMiss {
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

/// Compares `from` alone: the grant gets an entry that allows any token.
fn from_mismatch(grant: &Grant, namespace: &str, labels: &Labels) -> Option<Mismatch> {
    let token = any_token();
    let to = vec![any_entry()];
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
    let has = grant.spec.from.iter().map(described);
    Some(Mismatch {
        field: "from".to_owned(),
        requested: namespace.to_owned(),
        has: has.collect(),
    })
}

/// The namespaces of an entry of `from`, or why there are none.
fn described(from: &GrantFrom) -> String {
    let selector = || serde_json::to_string(&from.namespace_selector).unwrap_or_default();
    match namespace_match(from) {
        Ok(NamespaceMatch::All) => "all namespaces".to_owned(),
        Ok(NamespaceMatch::Name(name)) => name,
        Ok(NamespaceMatch::Selector(_)) => format!("namespaceSelector {}", selector()),
        Err(error) => format!("nothing, since an entry {error}"),
    }
}

/// Compares each field of an entry alone: in all other fields, entry and token are the same.
fn to_mismatches(index: usize, to: &GrantTo, token: &TokenSpec) -> Vec<Mismatch> {
    let account = TokenSpec {
        service_account: token.service_account.clone(),
        ..any_token()
    };
    let audience = TokenSpec {
        audience: token.audience.clone(),
        ..any_token()
    };
    let delegate = |delegate: &String| TokenSpec {
        source: TokenSource::Impersonation {
            delegates: vec![delegate.clone()],
        },
        ..any_token()
    };
    let source = TokenSpec {
        source: without_delegates(&token.source),
        ..any_token()
    };
    let delegates = token.source.delegates().iter();
    let sources = to.sources.iter().flatten();
    let comparisons = [
        Comparison {
            field: "serviceAccounts",
            entry: GrantTo {
                service_accounts: to.service_accounts.clone(),
                ..any_entry()
            },
            tokens: vec![(account, token.service_account.clone().unwrap_or_default())],
            has: to.service_accounts.clone(),
        },
        Comparison {
            field: "audiences",
            entry: GrantTo {
                audiences: to.audiences.clone(),
                ..any_entry()
            },
            tokens: vec![(audience, token.audience.clone())],
            has: to.audiences.clone(),
        },
        Comparison {
            field: "delegates",
            entry: GrantTo {
                delegates: to.delegates.clone(),
                ..any_entry()
            },
            tokens: delegates.map(|name| (delegate(name), name.clone())).collect(),
            has: to.delegates.clone().unwrap_or_default(),
        },
        Comparison {
            field: "sources",
            entry: GrantTo {
                sources: to.sources.clone(),
                ..any_entry()
            },
            tokens: vec![(source, token.source.name().to_owned())],
            has: sources.map(|source| format!("{source:?}")).collect(),
        },
    ];
    comparisons
        .into_iter()
        .filter_map(|comparison| comparison.mismatch(index))
        .collect()
}

/// One field of an entry beside the same field of the token.
struct Comparison {
    field: &'static str,
    /// Allows any token, but for `field`.
    entry: GrantTo,
    /// Tokens that differ from any token in `field` only, with the value that is requested of it.
    tokens: Vec<(TokenSpec, String)>,
    has: Vec<String>,
}

impl Comparison {
    fn mismatch(self, index: usize) -> Option<Mismatch> {
        let denied = self
            .tokens
            .into_iter()
            .filter(|(token, _)| !allows(&self.entry, token));
        let requested: Vec<String> = denied.map(|(_, value)| value).collect();
        (!requested.is_empty()).then(|| Mismatch {
            field: format!("to[{index}].{}", self.field),
            requested: requested.join(", "),
            has: self.has,
        })
    }
}

/// A token that [`any_entry`] allows.
fn any_token() -> TokenSpec {
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

fn without_delegates(source: &TokenSource) -> TokenSource {
    match source {
        TokenSource::Impersonation { .. } => TokenSource::Impersonation {
            delegates: Vec::new(),
        },
        other => other.clone(),
    }
}

/// An entry that allows [`any_token`] from every source.
fn any_entry() -> GrantTo {
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
