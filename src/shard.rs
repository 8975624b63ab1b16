//! Pure: the part of the cluster that this operator reconciles.
//!
//! May import the API's labels and [`crate::request`]. Makes no call, and knows nothing of who leads.

use serde::{Deserialize, Serialize};

use crate::api::{LABEL_MANAGED_BY, LABEL_SHARD, MANAGED_BY};
use crate::request::fingerprint::versioned;

mod selectors;

/// Name of the Lease of an operator for all requests, and prefix of the others.
const LEASE: &str = "idtoken-operator";

/// The requests that this operator reconciles. Operators whose shards do not overlap share nothing; each has its own Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selector: Option<String>,
}

impl Shard {
    /// Requests in `namespaces` whose labels match `selector`. Without namespaces, those of all; without a selector, with any labels.
    pub fn new(mut namespaces: Vec<String>, selector: Option<String>) -> Self {
        namespaces.sort_unstable();
        namespaces.dedup();
        Self {
            namespaces,
            selector: selector.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")),
        }
    }

    /// Whether the shard is limited to some namespaces. Then nothing is read cluster-wide: neither IdTokenGrants nor namespaces.
    pub fn is_namespaced(&self) -> bool {
        !self.namespaces.is_empty()
    }

    /// The namespaces to watch, one watch each. The empty string stands for all namespaces.
    pub fn namespaces(&self) -> Vec<String> {
        match self.namespaces.as_slice() {
            [] => vec![String::new()],
            namespaces => namespaces.to_vec(),
        }
    }

    /// The label selector of requests.
    pub fn selector(&self) -> Option<&str> {
        self.selector.as_deref()
    }

    /// Value of the label on the Secrets of this shard's requests, so that only these are watched. None without a selector: the namespace
    /// of a Secret tells its shard.
    pub fn label_value(&self) -> Option<String> {
        let selector = self.selector.clone()?;
        Some(versioned("v1", &[selector]))
    }

    /// The label selector of this shard's Secrets.
    pub fn secret_selector(&self) -> String {
        let managed = format!("{LABEL_MANAGED_BY}={MANAGED_BY}");
        match self.label_value() {
            Some(label) => format!("{managed},{LABEL_SHARD}={label}"),
            None => managed,
        }
    }

    /// The shard as other releases read it on its Lease.
    pub fn scope(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The shard that another release has written on its Lease.
    pub fn from_scope(text: &str) -> Option<Self> {
        let Self { namespaces, selector } = serde_json::from_str(text).ok()?;
        Some(Self::new(namespaces, selector))
    }

    /// Whether there can be a request that both reconcile.
    pub fn overlaps(&self, other: &Self) -> bool {
        let shares_namespaces = !self.is_namespaced()
            || !other.is_namespaced()
            || self.namespaces.iter().any(|name| other.namespaces.contains(name));
        let selectors = self.selector.as_deref().zip(other.selector.as_deref());
        shares_namespaces && !selectors.is_some_and(|(one, other)| selectors::are_disjoint(one, other))
    }

    /// Default name of the Lease: the same in every replica of the shard, and different for each shard.
    pub fn lease_name(&self) -> String {
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
        let names: std::collections::BTreeSet<_> = all.iter().map(Shard::lease_name).collect();
        assert_eq!(names.len(), all.len(), "{names:?}");
        assert_eq!(all[0].lease_name(), "idtoken-operator");
        assert_eq!(shard(&["b", "a", "b"], None).lease_name(), all[2].lease_name());
        // Visible to users, whose Roles may contain this name.
        assert_eq!(all[3].lease_name(), "idtoken-operator-e6b0444883");
        assert!(
            all.iter()
                .all(|shard| crate::request::syntax::is_dns_subdomain(&shard.lease_name()))
        );
    }

    #[test]
    fn shards_overlap_unless_namespaces_or_a_label_separate_them() {
        let overlap = |one: Shard, other: Shard| {
            let read = Shard::from_scope(&other.scope()).expect("a scope");
            assert_eq!(read, other);
            assert_eq!(one.overlaps(&read), read.overlaps(&one));
            one.overlaps(&read)
        };
        assert!(overlap(shard(&[], None), shard(&[], None)));
        assert!(overlap(shard(&[], None), shard(&["a"], Some("shard=a"))));
        assert!(overlap(shard(&["a", "b"], None), shard(&["b", "c"], None)));
        assert!(!overlap(shard(&["a"], None), shard(&["b"], None)));
        assert!(!overlap(shard(&[], Some("shard=a")), shard(&[], Some("shard=b"))));
        assert!(overlap(shard(&[], Some("shard=a")), shard(&[], None)));
        assert!(!overlap(
            shard(&["a"], Some("shard=a")),
            shard(&["a"], Some("!shard"))
        ));
        assert_eq!(
            shard(&["b", "a"], Some("x=y")).scope(),
            r#"{"namespaces":["a","b"],"selector":"x=y"}"#
        );
        assert_eq!(Shard::from_scope("{}"), Some(Shard::default()));
        assert_eq!(Shard::from_scope("shop"), None);
    }

    #[test]
    fn a_label_separates_the_secrets_of_shards_with_selectors() {
        let managed = "app.kubernetes.io/managed-by=idtoken-operator";
        assert_eq!(shard(&["a"], None).secret_selector(), managed);
        let (a, b) = (shard(&[], Some("team=a")), shard(&[], Some("team!=a")));
        assert_ne!(a.secret_selector(), b.secret_selector());
        assert!(a.secret_selector().starts_with(managed));
        let label = a.label_value().unwrap();
        assert!(crate::request::syntax::is_label_value(&label), "{label}");
        assert_eq!(a.label_value(), shard(&["n"], Some(" team=a ")).label_value());
    }
}
