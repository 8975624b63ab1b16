//! Pure: grants by namespace, account and audience, so that finding those that may allow a token does not grow with their number.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use crate::api::v1alpha1::{GrantRef, IdTokenGrantSpec};
use crate::request::syntax::is_unique_id;

/// A grant and what it is called.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Name, and UID if it is an object.
    pub id: GrantRef,
    /// What it allows.
    pub spec: Arc<IdTokenGrantSpec>,
}

/// Labels of every namespace, by name.
pub type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// Where an entry of a grant holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Namespace(String),
    /// Every namespace that the selector of this text selects.
    Selected(Arc<str>),
}

/// One entry of `spec.to`.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    key: Arc<str>,
    /// The grant.
    pub(crate) grant: Arc<Grant>,
    /// Index in `spec.to`.
    pub(crate) to: usize,
}

/// The entries for one account in one place, by audience.
#[derive(Debug, Default)]
struct Audiences {
    exact: HashMap<String, Vec<Entry>>,
    /// By what stands before the final `*`.
    prefixes: BTreeMap<String, Vec<Entry>>,
}

/// A selector that grants have, and how many have it.
#[derive(Debug)]
struct Selecting {
    selector: Selector,
    users: usize,
}

/// The grants, by what a request asks for.
#[derive(Debug, Default)]
pub(crate) struct GrantIndex {
    grants: HashMap<Arc<str>, Arc<Grant>>,
    /// By place and account as the grant writes it: exact, or `*@DOMAIN`.
    places: HashMap<Place, HashMap<String, Audiences>>,
    selectors: HashMap<Arc<str>, Selecting>,
    namespaces: Namespaces,
    /// The selectors that select a namespace.
    selected: HashMap<String, BTreeSet<Arc<str>>>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found<'a> {
    /// Entries whose place, account and audience match; delegates and sources may not.
    pub(crate) entries: Vec<&'a Entry>,
    /// How many look-ups that took: the cost of a decision.
    pub(crate) lookups: usize,
}

impl GrantIndex {
    /// Takes a grant in, in place of the one that had this key.
    pub(crate) fn insert(&mut self, key: &str, grant: Grant) {
        self.remove(key);
        let (key, grant): (Arc<str>, _) = (key.into(), Arc::new(grant));
        for place in places(&grant) {
            if let (Place::Selected(text), Some(selector)) = (&place, selector_of(&grant, &place)) {
                self.select(text, selector);
            }
            let accounts = self.places.entry(place).or_default();
            for (to, entry) in grant.spec.to.iter().enumerate() {
                for account in BTreeSet::from_iter(&entry.service_accounts) {
                    let audiences = accounts.entry(account.clone()).or_default();
                    for audience in BTreeSet::from_iter(&entry.audiences) {
                        let entry = Entry {
                            key: key.clone(),
                            grant: grant.clone(),
                            to,
                        };
                        audiences.at(audience).push(entry);
                    }
                }
            }
        }
        self.grants.insert(key, grant);
    }

    /// Takes a grant out.
    pub(crate) fn remove(&mut self, key: &str) {
        let Some(grant) = self.grants.remove(key) else {
            return;
        };
        for place in places(&grant) {
            if let Some(accounts) = self.places.get_mut(&place) {
                for entry in &grant.spec.to {
                    for account in &entry.service_accounts {
                        let Some(audiences) = accounts.get_mut(account) else {
                            continue;
                        };
                        for audience in &entry.audiences {
                            audiences.drop_of(audience, key);
                        }
                        if audiences.exact.is_empty() && audiences.prefixes.is_empty() {
                            accounts.remove(account);
                        }
                    }
                }
                if accounts.is_empty() {
                    self.places.remove(&place);
                }
            }
            if let Place::Selected(text) = &place {
                self.unselect(text);
            }
        }
    }

    /// Takes all namespaces' labels.
    pub(crate) fn set_namespaces(&mut self, namespaces: Namespaces) {
        self.selected.clear();
        self.namespaces.clear();
        for (name, labels) in namespaces {
            self.set_namespace(&name, Some(labels));
        }
    }

    /// Takes or drops one namespace's labels. Says whether that changed anything.
    pub(crate) fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) -> bool {
        if self.namespaces.get(name) == labels.as_ref() {
            return false;
        }
        self.selected.remove(name);
        let Some(labels) = labels else {
            return self.namespaces.remove(name).is_some();
        };
        let selecting = self
            .selectors
            .iter()
            .filter(|(_, by)| by.selector.matches(&labels));
        let selected: BTreeSet<Arc<str>> = selecting.map(|(text, _)| text.clone()).collect();
        if !selected.is_empty() {
            self.selected.insert(name.to_owned(), selected);
        }
        self.namespaces.insert(name.to_owned(), labels);
        true
    }

    /// The entries that name the account and the audience for the namespace; of every account where it is not known, which costs a
    /// look at each that is granted there.
    pub(crate) fn find(&self, namespace: &str, account: Option<&str>, audience: &str) -> Found<'_> {
        let mut found = Found::default();
        let domain = account
            .filter(|account| !is_unique_id(account))
            .and_then(|account| account.split_once('@'))
            .map(|(_, domain)| format!("*@{domain}"));
        let selectors = self.selected.get(namespace).into_iter().flatten();
        let selected = selectors.map(|text| Place::Selected(text.clone()));
        for place in selected.chain([Place::Namespace(namespace.to_owned())]) {
            found.lookups += 1;
            let Some(accounts) = self.places.get(&place) else {
                continue;
            };
            if account.is_none() {
                for audiences in accounts.values() {
                    audiences.find(audience, &mut found);
                }
            }
            for pattern in [account, domain.as_deref()].into_iter().flatten() {
                found.lookups += 1;
                if let Some(audiences) = accounts.get(pattern) {
                    audiences.find(audience, &mut found);
                }
            }
        }
        found
    }

    fn select(&mut self, text: &Arc<str>, selector: Selector) {
        if let Some(known) = self.selectors.get_mut(text) {
            known.users += 1;
            return;
        }
        for (name, labels) in &self.namespaces {
            if selector.matches(labels) {
                self.selected
                    .entry(name.clone())
                    .or_default()
                    .insert(text.clone());
            }
        }
        self.selectors
            .insert(text.clone(), Selecting { selector, users: 1 });
    }

    fn unselect(&mut self, text: &Arc<str>) {
        let Some(known) = self.selectors.get_mut(text) else {
            return;
        };
        known.users -= 1;
        if known.users == 0 {
            self.selectors.remove(text);
            self.selected.retain(|_, selectors| {
                selectors.remove(text);
                !selectors.is_empty()
            });
        }
    }
}

impl Audiences {
    fn at(&mut self, pattern: &str) -> &mut Vec<Entry> {
        match pattern.strip_suffix('*') {
            Some(prefix) => self.prefixes.entry(prefix.to_owned()).or_default(),
            None => self.exact.entry(pattern.to_owned()).or_default(),
        }
    }

    fn drop_of(&mut self, pattern: &str, key: &str) {
        let at = self.at(pattern);
        at.retain(|entry| &*entry.key != key);
        if at.is_empty() {
            match pattern.strip_suffix('*') {
                Some(prefix) => drop(self.prefixes.remove(prefix)),
                None => drop(self.exact.remove(pattern)),
            }
        }
    }

    fn find<'a>(&'a self, audience: &str, found: &mut Found<'a>) {
        found.lookups += 1;
        found
            .entries
            .extend(self.exact.get(audience).into_iter().flatten());
        // What sorts last before a text is a prefix of it, or no stored prefix is longer than what both have in common.
        let mut rest = audience;
        loop {
            found.lookups += 1;
            let below = (Bound::Unbounded, Bound::Included(rest));
            let Some((prefix, entries)) = self.prefixes.range::<str, _>(below).next_back() else {
                return;
            };
            let common = common_prefix(rest, prefix);
            if common == prefix.len() {
                found.entries.extend(entries);
                let Some((last, _)) = prefix.char_indices().next_back() else {
                    return;
                };
                rest = &rest[..last];
            } else {
                rest = &rest[..common];
            }
        }
    }
}

/// Bytes that both begin with, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    a.floor_char_boundary(same)
}

fn places(grant: &Grant) -> Vec<Place> {
    let mut places = Vec::new();
    for from in &grant.spec.from {
        let place = match (&from.namespace, &from.namespace_selector) {
            (Some(name), None) => Place::Namespace(name.clone()),
            // A selector that Kubernetes would not take selects nothing.
            (None, Some(selector)) if Selector::try_from(selector.clone()).is_ok() => {
                Place::Selected(text_of(selector))
            }
            // The schema refuses both and neither; what an older CRD let through allows nothing.
            _ => continue,
        };
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

fn selector_of(grant: &Grant, place: &Place) -> Option<Selector> {
    let selectors = grant
        .spec
        .from
        .iter()
        .filter_map(|from| from.namespace_selector.as_ref());
    let found = selectors
        .into_iter()
        .find(|selector| *place == Place::Selected(text_of(selector)))?;
    Selector::try_from(found.clone()).ok()
}

/// The same for the same selector.
fn text_of(selector: &LabelSelector) -> Arc<str> {
    serde_json::to_string(selector).unwrap_or_default().into()
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
