//! The namespaces that are terminating, and those in which Secrets cannot be written, as the last writes ended.

use std::collections::HashMap;

/// Most namespaces that are known to fail writes. Of others a token is issued before the write is tried: of those that failed longest ago.
const MAX_FAILING: usize = 1024;

/// The namespaces that are terminating, and those in which Secrets cannot be written.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    terminating: HashMap<String, Evidence>,
    /// The number of the last failure of each.
    failing: HashMap<Box<str>, u64>,
    /// How many writes have ever failed.
    failures: u64,
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
    /// Replaces what is known by a list of all namespaces, each with whether it is terminating.
    pub(super) fn replace<'a>(&mut self, all: impl IntoIterator<Item = (&'a str, bool)>) {
        let all: HashMap<&str, bool> = all.into_iter().collect();
        let terminating = all.iter().filter(|(_, terminating)| **terminating);
        self.terminating = terminating
            .map(|(name, _)| ((*name).to_owned(), Evidence::Watch))
            .collect();
        self.failing.retain(|name, _| all.contains_key(&**name));
    }

    /// Forgets `name`, which was deleted.
    pub(super) fn remove(&mut self, name: &str) {
        self.terminating.remove(name);
        self.failing.remove(name);
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
            return;
        }
        if self.failing.len() >= MAX_FAILING && !self.failing.contains_key(name) {
            let oldest = self.failing.iter().min_by_key(|(_, number)| **number);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.failing.remove(&oldest);
            }
        }
        self.failures += 1;
        self.failing.insert(name.into(), self.failures);
    }

    /// Whether the last Secret could not be written in `name`.
    pub(super) fn fails_writes(&self, name: &str) -> bool {
        self.failing.contains_key(name)
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
    }

    #[test]
    fn of_many_namespaces_that_fail_writes_the_latest_are_known() {
        let mut namespaces = Namespaces::default();
        for number in 0..MAX_FAILING {
            namespaces.note_write(&number.to_string(), false);
        }
        namespaces.note_write("0", false);
        namespaces.note_write("shop", false);
        assert_eq!(namespaces.failing.len(), MAX_FAILING);
        let known = ["0", "1", "2", "shop"].map(|name| namespaces.fails_writes(name));
        assert_eq!(known, [true, false, true, true]);
    }

    #[test]
    fn nothing_is_known_of_a_namespace_that_is_gone() {
        let mut namespaces = Namespaces::default();
        for name in ["shop", "bank", "mall"] {
            namespaces.note_write(name, false);
        }
        namespaces.remove("shop");
        namespaces.replace([("bank", false)]);
        let fails = ["shop", "bank", "mall"].map(|name| namespaces.fails_writes(name));
        assert_eq!(fails, [false, true, false]);
    }

    #[test]
    fn a_list_replaces_all() {
        let mut namespaces = Namespaces::default();
        namespaces.set("shop", true);
        namespaces.note_rejected_write("mall");
        namespaces.replace([("bank", true), ("mall", false)]);
        let terminating = ["shop", "mall", "bank"].map(|name| namespaces.is_terminating(name));
        assert_eq!(terminating, [false, false, true]);
    }
}
