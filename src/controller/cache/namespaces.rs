//! The namespaces that are terminating.

use std::collections::HashMap;

/// The namespaces that are terminating.
#[derive(Debug, Default)]
pub(super) struct Namespaces(HashMap<String, Evidence>);

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
        self.0 = terminating
            .into_iter()
            .map(|name| (name, Evidence::Watch))
            .collect();
    }

    /// Sets whether `name` is terminating, as the watch shows it.
    pub(super) fn set(&mut self, name: &str, terminating: bool) {
        match terminating {
            true => self.0.insert(name.to_owned(), Evidence::Watch),
            false => self.0.remove(name),
        };
    }

    /// Notes that the API server rejected a write because `name` is terminating.
    pub(super) fn note_rejected_write(&mut self, name: &str) {
        self.0.entry(name.to_owned()).or_insert(Evidence::RejectedWrite);
    }

    /// Notes that an object was created in `name`: a terminating namespace accepts none, so this one is another of the same name. What
    /// the watch shows counts more.
    pub(super) fn note_creation(&mut self, name: &str) {
        if self.0.get(name) == Some(&Evidence::RejectedWrite) {
            self.0.remove(name);
        }
    }

    /// Whether `name` is terminating.
    pub(super) fn is_terminating(&self, name: &str) -> bool {
        self.0.contains_key(name)
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
    fn a_list_replaces_all() {
        let mut namespaces = Namespaces::default();
        namespaces.set("shop", true);
        namespaces.note_rejected_write("mall");
        namespaces.replace(vec!["bank".to_owned()]);
        let terminating = ["shop", "mall", "bank"].map(|name| namespaces.is_terminating(name));
        assert_eq!(terminating, [false, false, true]);
    }
}
