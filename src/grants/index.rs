//! Pure: grants by namespace, account and audience, so that the cost of a decision does not grow with the number of grants.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::api::v1alpha1::{GrantRef, IdTokenGrantSpec};
use crate::grants::selector::{NamespaceMatch, Selector, namespace_match};
use crate::grants::sorted_map::{SortedMap, reserve_first};
use crate::request::syntax::is_unique_id;

/// A grant.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Name, and UID if it is an object.
    pub id: GrantRef,
    /// What it allows.
    pub spec: Arc<IdTokenGrantSpec>,
}

/// Labels of every namespace, by its name.
pub type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// One entry of `spec.to`.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    key: Arc<str>,
    /// The grant.
    pub(crate) grant: Arc<Grant>,
    /// Index in `spec.to`.
    pub(crate) to: usize,
}

/// The entries for one account in the same namespaces, by audience.
#[derive(Debug, Default)]
struct Audiences {
    exact: SortedMap<Vec<Entry>>,
    /// By the text before the final `*`.
    prefixes: SortedMap<Vec<Entry>>,
}

/// A grant in the index.
#[derive(Debug)]
struct Indexed {
    grant: Arc<Grant>,
    /// The valid entries of its `spec.from`.
    matches: Box<[NamespaceMatch]>,
}

/// All grants, by namespace, account and audience.
#[derive(Debug, Default)]
pub struct GrantIndex {
    grants: HashMap<Arc<str>, Indexed>,
    /// The entries by namespaces, and by account as written in the grant: exact, or `*@DOMAIN`.
    entries: HashMap<NamespaceMatch, HashMap<String, Audiences>>,
    /// How many grants have the selector.
    selectors: HashMap<Arc<Selector>, usize>,
    /// Labels of namespaces, by name.
    namespaces: HashMap<Box<str>, SortedMap<Box<str>>>,
    /// By namespace, the selectors that select it.
    selected: HashMap<String, BTreeSet<Arc<Selector>>>,
}

/// The entries that can allow a token.
#[derive(Debug, Default)]
pub(crate) struct Candidates<'a> {
    /// Entries whose namespace, account and audience match; delegates and sources may not.
    pub(crate) entries: Vec<&'a Entry>,
    /// The number of look-ups: the cost of a decision.
    pub(crate) lookups: usize,
}

impl GrantIndex {
    /// An index of `grants`, whose selectors select among `namespaces`.
    pub fn new(grants: &[Grant], namespaces: &Namespaces) -> Self {
        let mut index = Self::default();
        index.set_namespaces(namespaces.clone());
        for (position, grant) in grants.iter().enumerate() {
            index.insert(&position.to_string(), grant.clone());
        }
        index
    }

    /// Adds a grant, and replaces the one with this key.
    pub fn insert(&mut self, key: &str, grant: Grant) {
        self.remove(key);
        let (key, grant): (Arc<str>, _) = (key.into(), Arc::new(grant));
        let matches = namespace_matches(&grant);
        for matched in &matches {
            if let NamespaceMatch::Selector(selector) = matched {
                self.select(selector);
            }
            let accounts = self.entries.entry(matched.clone()).or_default();
            for (to, entry) in grant.spec.to.iter().enumerate() {
                for account in BTreeSet::from_iter(&entry.service_accounts) {
                    let audiences = accounts.entry(account.clone()).or_default();
                    for audience in BTreeSet::from_iter(&entry.audiences) {
                        let entry = Entry {
                            key: key.clone(),
                            grant: grant.clone(),
                            to,
                        };
                        let entries = audiences.entries_mut(audience);
                        reserve_first(entries);
                        entries.push(entry);
                    }
                }
            }
        }
        self.grants.insert(key, Indexed { grant, matches });
    }

    /// Removes a grant.
    pub fn remove(&mut self, key: &str) {
        let Some(Indexed { grant, matches }) = self.grants.remove(key) else {
            return;
        };
        for matched in &matches {
            if let Some(accounts) = self.entries.get_mut(matched) {
                for entry in &grant.spec.to {
                    for account in &entry.service_accounts {
                        let Some(audiences) = accounts.get_mut(account) else {
                            continue;
                        };
                        for audience in &entry.audiences {
                            audiences.remove_key(audience, key);
                        }
                        if audiences.exact.is_empty() && audiences.prefixes.is_empty() {
                            accounts.remove(account);
                        }
                    }
                }
                if accounts.is_empty() {
                    self.entries.remove(matched);
                }
            }
            if let NamespaceMatch::Selector(selector) = matched {
                self.unselect(selector);
            }
        }
    }

    /// Replaces the labels of all namespaces.
    pub fn set_namespaces(&mut self, namespaces: Namespaces) {
        let known = self.namespaces.keys();
        let gone: Vec<String> = known
            .filter(|name| !namespaces.contains_key(&***name))
            .map(|name| name.to_string())
            .collect();
        for name in gone {
            self.set_namespace(&name, None);
        }
        for (name, labels) in namespaces {
            self.set_namespace(&name, Some(labels));
        }
    }

    /// Sets the labels of one namespace, or removes the namespace. Returns whether anything changed.
    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) -> bool {
        let compact = |(key, value): (String, String)| (key.into(), value.into());
        let labels: Option<SortedMap<Box<str>>> =
            labels.map(|labels| labels.into_iter().map(compact).collect());
        if self.namespaces.get(name) == labels.as_ref() {
            return false;
        }
        self.selected.remove(name);
        let Some(labels) = labels else {
            return self.namespaces.remove(name).is_some();
        };
        let selecting = self
            .selectors
            .keys()
            .filter(|selector| selects(selector, &labels));
        let selected: BTreeSet<Arc<Selector>> = selecting.cloned().collect();
        if !selected.is_empty() {
            self.selected.insert(name.to_owned(), selected);
        }
        self.namespaces.insert(name.into(), labels);
        true
    }

    /// Entries matching namespace, account and audience. Without an account, matches all accounts granted to the namespace (linear).
    pub(crate) fn candidates(
        &self,
        namespace: &str,
        account: Option<&str>,
        audience: &str,
    ) -> Candidates<'_> {
        let mut candidates = Candidates::default();
        let domain = account
            .filter(|account| !is_unique_id(account))
            .and_then(|account| account.split_once('@'))
            .map(|(_, domain)| ["*@", domain].concat());
        let selectors = self.selected.get(namespace).into_iter().flatten();
        let selected = selectors.map(|selector| NamespaceMatch::Selector(selector.clone()));
        let named = [NamespaceMatch::Name(namespace.to_owned()), NamespaceMatch::All];
        for matched in selected.chain(named) {
            candidates.lookups += 1;
            let Some(accounts) = self.entries.get(&matched) else {
                continue;
            };
            if account.is_none() {
                for audiences in accounts.values() {
                    audiences.collect(audience, &mut candidates);
                }
            }
            for pattern in [account, domain.as_deref()].into_iter().flatten() {
                candidates.lookups += 1;
                if let Some(audiences) = accounts.get(pattern) {
                    audiences.collect(audience, &mut candidates);
                }
            }
        }
        candidates
    }

    fn select(&mut self, selector: &Arc<Selector>) {
        if let Some(users) = self.selectors.get_mut(selector) {
            *users += 1;
            return;
        }
        for (name, labels) in &self.namespaces {
            if selects(selector, labels) {
                self.selected
                    .entry(name.to_string())
                    .or_default()
                    .insert(selector.clone());
            }
        }
        self.selectors.insert(selector.clone(), 1);
    }

    fn unselect(&mut self, selector: &Arc<Selector>) {
        let Some(users) = self.selectors.get_mut(selector) else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            self.selectors.remove(selector);
            self.selected.retain(|_, selectors| {
                selectors.remove(selector);
                !selectors.is_empty()
            });
        }
    }
}

impl Audiences {
    fn entries_mut(&mut self, pattern: &str) -> &mut Vec<Entry> {
        match pattern.strip_suffix('*') {
            Some(prefix) => self.prefixes.get_or_default(prefix),
            None => self.exact.get_or_default(pattern),
        }
    }

    fn remove_key(&mut self, pattern: &str, key: &str) {
        let entries = self.entries_mut(pattern);
        entries.retain(|entry| &*entry.key != key);
        if entries.is_empty() {
            match pattern.strip_suffix('*') {
                Some(prefix) => self.prefixes.remove(prefix),
                None => self.exact.remove(pattern),
            }
        }
    }

    fn collect<'a>(&'a self, audience: &str, candidates: &mut Candidates<'a>) {
        candidates.lookups += 1;
        candidates
            .entries
            .extend(self.exact.get(audience).into_iter().flatten());
        // The greatest stored prefix that is not greater than `rest` is a prefix of it, or no stored prefix of `rest` is longer than
        // what both have in common.
        let mut rest = audience;
        loop {
            candidates.lookups += 1;
            let Some((prefix, entries)) = self.prefixes.last_up_to(rest) else {
                return;
            };
            let common = common_prefix(rest, prefix);
            if common == prefix.len() {
                candidates.entries.extend(entries);
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

fn selects(selector: &Selector, labels: &SortedMap<Box<str>>) -> bool {
    selector.matches(|key| labels.get(key).map(|value| &**value))
}

/// Length of the common prefix in bytes, rounded down to whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    a.floor_char_boundary(same)
}

/// Without duplicates. An invalid entry allows nothing.
fn namespace_matches(grant: &Grant) -> Box<[NamespaceMatch]> {
    let mut matches = Vec::new();
    for matched in grant
        .spec
        .from
        .iter()
        .filter_map(|from| namespace_match(from).ok())
    {
        if !matches.contains(&matched) {
            matches.push(matched);
        }
    }
    matches.into()
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
