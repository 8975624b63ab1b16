//! Pure: an entry of `spec.from` → the namespaces that it allows, or why it allows none. The rules of validity are those of Kubernetes
//! (`LabelSelectorAsSelector`), except that a selector without a requirement selects nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use thiserror::Error;

use crate::api::conditions::reason;
use crate::api::v1alpha1::{GrantFrom, IdTokenGrantSpec, NamespaceSelector, SelectorRequirement};
use crate::classify::Classify;
use crate::request::syntax::{is_label_key, is_label_value, quote_bounded};

/// The namespaces of an entry of `spec.from`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NamespaceMatch {
    /// All, also those that are created later.
    All,
    /// The namespace of this name.
    Name(String),
    /// Those that the selector selects.
    Selector(Arc<Selector>),
}

/// A valid selector with at least one requirement, all of which must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(BTreeSet<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Requirement {
    key: String,
    condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Condition {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

/// Why an entry of `spec.from` allows no namespace.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FromError {
    /// None of the fields is set, or more than one.
    #[error("does not have exactly one of namespace, namespaceSelector and allNamespaces: true")]
    NotOne,
    /// The selector has no requirement.
    #[error(
        "has a namespaceSelector without a requirement, which selects nothing: add a requirement, or allow all namespaces by \
         allNamespaces: true"
    )]
    EmptySelector,
    /// Kubernetes would reject the selector.
    #[error("has an invalid namespaceSelector: {0}")]
    InvalidSelector(#[from] SelectorError),
}

impl Classify for FromError {
    fn reason(&self) -> &'static str {
        match self {
            Self::EmptySelector => reason::EMPTY_SELECTOR,
            Self::NotOne | Self::InvalidSelector(_) => reason::INVALID_SPEC,
        }
    }
}

/// Why Kubernetes would reject a selector.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SelectorError {
    /// The key of a label.
    #[error(
        "{0} is not the key of a label: an optional DNS subdomain and a slash, then at most 63 letters, digits, -, _ and ."
    )]
    Key(String),
    /// An operator.
    #[error("{0} is none of the operators In, NotIn, Exists and DoesNotExist")]
    Operator(String),
    /// In or NotIn without values.
    #[error("the operator of {0} needs values")]
    NoValues(String),
    /// Exists or DoesNotExist with values.
    #[error("the operator of {0} has no values")]
    Values(String),
    /// The value of a label.
    #[error("{0} is not the value of a label: at most 63 letters, digits, -, _ and .")]
    Value(String),
}

/// The namespaces that an entry allows.
///
/// # Errors
/// The entry is invalid and allows none.
pub fn namespace_match(from: &GrantFrom) -> Result<NamespaceMatch, FromError> {
    match (&from.namespace, &from.namespace_selector, from.all_namespaces) {
        (Some(name), None, None) => Ok(NamespaceMatch::Name(name.clone())),
        (None, Some(selector), None) => Ok(NamespaceMatch::Selector(Arc::new(Selector::new(selector)?))),
        (None, None, Some(true)) => Ok(NamespaceMatch::All),
        _ => Err(FromError::NotOne),
    }
}

/// The entries of `spec.from` that allow no namespace, by their index.
pub fn invalid_entries(spec: &IdTokenGrantSpec) -> impl Iterator<Item = (usize, FromError)> {
    let entries = spec.from.iter().enumerate();
    entries.filter_map(|(index, from)| Some((index, namespace_match(from).err()?)))
}

impl Selector {
    fn new(selector: &NamespaceSelector) -> Result<Self, FromError> {
        let labels = selector.match_labels.iter().flatten();
        let equal = labels.map(|(key, value)| requirement(key, "In", std::slice::from_ref(value)));
        let expressions = selector.match_expressions.iter().flatten();
        let further = expressions.map(
            |SelectorRequirement {
                 key,
                 operator,
                 values,
             }| { requirement(key, operator, values.as_deref().unwrap_or_default()) },
        );
        let requirements: BTreeSet<Requirement> = equal.chain(further).collect::<Result<_, _>>()?;
        match requirements.is_empty() {
            true => Err(FromError::EmptySelector),
            false => Ok(Self(requirements)),
        }
    }

    /// Whether it selects a namespace whose labels `label` returns by their keys.
    pub fn matches<'l>(&self, label: impl Fn(&str) -> Option<&'l str>) -> bool {
        self.0.iter().all(|Requirement { key, condition }| {
            let value = label(key);
            match condition {
                Condition::In(values) => value.is_some_and(|value| values.contains(value)),
                Condition::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Condition::Exists => value.is_some(),
                Condition::DoesNotExist => value.is_none(),
            }
        })
    }
}

/// As `NewRequirement` of Kubernetes' package `labels` checks it.
fn requirement(key: &str, operator: &str, values: &[String]) -> Result<Requirement, SelectorError> {
    if !is_label_key(key) {
        return Err(SelectorError::Key(quote_bounded(key)));
    }
    if let Some(value) = values.iter().find(|value| !is_label_value(value)) {
        return Err(SelectorError::Value(quote_bounded(value)));
    }
    let set = || values.iter().cloned().collect();
    let condition = match (operator, values.is_empty()) {
        ("In", false) => Condition::In(set()),
        ("NotIn", false) => Condition::NotIn(set()),
        ("Exists", true) => Condition::Exists,
        ("DoesNotExist", true) => Condition::DoesNotExist,
        ("In" | "NotIn", true) => return Err(SelectorError::NoValues(quote_bounded(key))),
        ("Exists" | "DoesNotExist", false) => return Err(SelectorError::Values(quote_bounded(key))),
        (unknown, _) => return Err(SelectorError::Operator(quote_bounded(unknown))),
    };
    let key = key.to_owned();
    Ok(Requirement { key, condition })
}

#[cfg(test)]
#[path = "selector_tests.rs"]
mod tests;
