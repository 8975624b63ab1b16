//! Pure: which part of the cluster this operator is for.

use crate::api::{LABEL_MANAGED_BY, LABEL_SHARD, MANAGED_BY};
use crate::request::fingerprint::versioned;

/// What a Lease is called that is for everything, and what the names of all others begin with.
const LEASE: &str = "idtoken-operator";

/// The requests that this operator is for. Operators whose shards do not overlap share nothing: each has a Lease of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    namespaces: Vec<String>,
    selector: Option<String>,
}

impl Shard {
    /// Requests in `namespaces` (none: in all) whose labels match `selector` (none: all).
    pub fn new(mut namespaces: Vec<String>, selector: Option<String>) -> Self {
        namespaces.sort_unstable();
        namespaces.dedup();
        Self {
            namespaces,
            selector: selector.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")),
        }
    }

    /// Whether it is for some namespaces only, so that nothing is read cluster-wide: neither IdTokenGrants nor namespaces.
    pub fn is_namespaced(&self) -> bool {
        !self.namespaces.is_empty()
    }

    /// The namespaces to watch, each by itself; empty for all together.
    pub fn scopes(&self) -> Vec<String> {
        match self.namespaces.as_slice() {
            [] => vec![String::new()],
            namespaces => namespaces.to_vec(),
        }
    }

    /// The label selector of requests.
    pub fn selector(&self) -> Option<&str> {
        self.selector.as_deref()
    }

    /// Value of the label that marks the Secrets of this shard's requests, so that only these are watched. None without a selector:
    /// namespaces tell Secrets apart by themselves.
    pub fn label(&self) -> Option<String> {
        let selector = self.selector.clone()?;
        Some(versioned("v1", &[selector]))
    }

    /// The label selector of the Secrets.
    pub fn secrets(&self) -> String {
        let managed = format!("{LABEL_MANAGED_BY}={MANAGED_BY}");
        match self.label() {
            Some(label) => format!("{managed},{LABEL_SHARD}={label}"),
            None => managed,
        }
    }

    /// What the Lease is called where no name is given: the same in every replica of the shard, and another for each shard.
    pub fn lease(&self) -> String {
        if *self == Self::default() {
            return LEASE.to_owned();
        }
        let mut parts = vec![self.selector.clone().unwrap_or_default()];
        parts.extend(self.namespaces.iter().cloned());
        let hash = versioned(LEASE, &parts);
        hash[..LEASE.len() + 1 + 10].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(namespaces: &[&str], selector: Option<&str>) -> Shard {
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        Shard::new(namespaces, selector.map(str::to_owned))
    }

    #[test]
    fn a_shard_has_its_own_lease_and_its_replicas_share_it() {
        let all = [
            shard(&[], None),
            shard(&["a"], None),
            shard(&["a", "b"], None),
            shard(&[], Some("team=a")),
            shard(&["a"], Some("team=a")),
            shard(&["team=a"], None),
        ];
        let names: std::collections::BTreeSet<_> = all.iter().map(Shard::lease).collect();
        assert_eq!(names.len(), all.len(), "{names:?}");
        assert_eq!(all[0].lease(), "idtoken-operator");
        assert_eq!(shard(&["b", "a", "b"], None).lease(), all[2].lease());
        // Seen by users, who may give rights on this very name.
        assert_eq!(all[3].lease(), "idtoken-operator-e6b0444883");
        assert!(
            all.iter()
                .all(|shard| crate::request::syntax::is_dns_subdomain(&shard.lease()))
        );
    }

    #[test]
    fn secrets_are_told_apart_by_label_where_namespaces_do_not() {
        let managed = "app.kubernetes.io/managed-by=idtoken-operator";
        assert_eq!(shard(&["a"], None).secrets(), managed);
        let (a, b) = (shard(&[], Some("team=a")), shard(&[], Some("team!=a")));
        assert_ne!(a.secrets(), b.secrets());
        assert!(a.secrets().starts_with(managed));
        let label = a.label().unwrap();
        assert!(crate::request::syntax::is_label_value(&label), "{label}");
        assert_eq!(a.label(), shard(&["n"], Some(" team=a ")).label());
    }
}
