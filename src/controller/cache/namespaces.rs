//! The namespaces that are terminating, and those in which Secrets cannot be written.

use std::collections::{HashMap, HashSet};

/// Most namespaces that are known to fail writes. Of others a token is issued before the write is tried.
const MAX_FAILING: usize = 1024;

/// The namespaces that are terminating, and those in which Secrets cannot be written.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    terminating: HashMap<String, Evidence>,
    failing: HashSet<Box<str>>,
}

/// How we know that a namespace is terminating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    /// The watch showed it, and shows when it is gone.
    Watch,
    /// The API server rejected a write. Without a watch of namespaces, nothing shows when it is gone.
    RejectedWrite,
}

impl Namespaces {
    /// Replaces what is known by a list of all namespaces that are terminating.
    pub(super) fn replace(&mut self, terminating: Vec<String>) {
        self.terminating = terminating
            .into_iter()
            .map(|name| (name, Evidence::Watch))
            .collect();
    }

    /// Sets whether `name` is terminating, as the watch shows it.
    pub(super) fn set(&mut self, name: &str, terminating: bool) {
        match terminating {
            true => self.terminating.insert(name.to_owned(), Evidence::Watch),
            false => self.terminating.remove(name),
        };
    }

    /// Notes that the API server rejected a write because `name` is terminating.
    pub(super) fn note_rejected_write(&mut self, name: &str) {
        let evidence = self.terminating.entry(name.to_owned());
        evidence.or_insert(Evidence::RejectedWrite);
    }

    /// Notes that an object was created in `name`: a terminating namespace accepts none, so this one is another of the same name. What
    /// the watch shows counts more.
    pub(super) fn note_creation(&mut self, name: &str) {
        if self.terminating.get(name) == Some(&Evidence::RejectedWrite) {
            self.terminating.remove(name);
        }
    }

    /// Notes whether a Secret could be written in `name`. Whatever fails the write of one, as a quota or a webhook, may fail them all.
    pub(super) fn note_write(&mut self, name: &str, succeeded: bool) {
        if succeeded {
            self.failing.remove(name);
        } else if self.failing.len() < MAX_FAILING {
            self.failing.insert(name.into());
        }
    }

    /// Whether the last Secret could not be written in `name`.
    pub(super) fn fails_writes(&self, name: &str) -> bool {
        self.failing.contains(name)
    }

    /// Whether `name` is terminating.
    pub(super) fn is_terminating(&self, name: &str) -> bool {
        self.terminating.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_creation_disproves_a_rejected_write_but_not_the_watch() {
        let mut namespaces = Namespaces::default();
        namespaces.note_rejected_write("shop");
        namespaces.set("bank", true);
        namespaces.note_rejected_write("bank");
        assert!(namespaces.is_terminating("shop") && namespaces.is_terminating("bank"));
        for name in ["shop", "bank", "mall"] {
            namespaces.note_creation(name);
        }
        assert!(!namespaces.is_terminating("shop") && namespaces.is_terminating("bank"));
        namespaces.set("bank", false);
        assert!(!namespaces.is_terminating("bank"));
    }

    #[test]
    fn a_namespace_fails_writes_until_one_succeeds() {
        let mut namespaces = Namespaces::default();
        namespaces.note_write("shop", false);
        namespaces.note_write("bank", true);
        assert!(namespaces.fails_writes("shop") && !namespaces.fails_writes("bank"));
        namespaces.note_write("shop", true);
        assert!(!namespaces.fails_writes("shop"));
        for number in 0..2 * MAX_FAILING {
            namespaces.note_write(&number.to_string(), false);
        }
        assert_eq!(namespaces.failing.len(), MAX_FAILING);
    }

    #[test]
    fn a_list_replaces_all() {
        let mut namespaces = Namespaces::default();
        namespaces.set("shop", true);
        namespaces.note_rejected_write("mall");
        namespaces.replace(vec!["bank".to_owned()]);
        let terminating = ["shop", "mall", "bank"].map(|name| namespaces.is_terminating(name));
        assert_eq!(terminating, [false, false, true]);
    }
}
