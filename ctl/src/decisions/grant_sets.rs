//! Pure: grants of objects, of files and of the chart's values → the verdict on a token, and where the grant is that allows it.

use std::fmt;

use idtoken_operator::api::group;
use idtoken_operator::api::v1alpha1::GrantRef;
use idtoken_operator::grants::file::parse_file;
use idtoken_operator::grants::index::Grant;
use idtoken_operator::request::TokenSpec;
use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;

use crate::decisions::near_misses::{self, Labels, NearMiss, Verdict};
use crate::output::redacted;

/// Label, with its value, of the ConfigMap that has the chart's value `grants`.
pub(crate) const LABEL: &str = group!("/config=grants");

/// The key of that ConfigMap.
const KEY: &str = "grants.yaml";

/// Where grants come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Origin {
    /// IdTokenGrants, or the file of `--grants-file`: the grant's name says which.
    #[default]
    Named,
    /// The ConfigMap of a release.
    ConfigMap(ConfigMapRef),
}

/// A ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ConfigMapRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Display for Origin {
    /// As it follows the name of a grant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named => Ok(()),
            Self::ConfigMap(map) => write!(f, " of ConfigMap {}/{}", map.namespace, map.name),
        }
    }
}

impl Origin {
    /// Whether the grant's name says where it is.
    pub(crate) fn is_named(&self) -> bool {
        *self == Self::Named
    }

    /// Kind, name and place of the grant with this name.
    pub(crate) fn grant(&self, name: &str) -> String {
        let kind = if self.is_named() { "IdTokenGrant" } else { "grant" };
        format!("{kind} {name}{self}")
    }
}

/// Grants of one origin.
#[derive(Debug, Default)]
pub(crate) struct GrantSet {
    pub(crate) origin: Origin,
    pub(crate) grants: Vec<Grant>,
}

impl GrantSet {
    /// The grants, whose names say where they are.
    pub(crate) fn named(self) -> Vec<Grant> {
        let Self { origin, grants } = self;
        let named = |mut grant: Grant| {
            grant.id.name = format!("{}{origin}", grant.id.name);
            grant
        };
        grants.into_iter().map(named).collect()
    }
}

/// The grants of releases, and what is wrong with those that cannot be used.
#[derive(Debug, Default)]
pub(crate) struct ReleaseGrants {
    pub(crate) sets: Vec<GrantSet>,
    pub(crate) problems: Vec<String>,
}

/// A verdict on a token.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// This grant allows it.
    Allowed(GrantRef, Origin),
    /// No grant allows it; the closest entries come first.
    Denied(Vec<NearMiss>),
    /// These grants allow it if their selectors match the namespace, whose labels are unknown.
    Unknown(Vec<String>),
}

/// The grants in the ConfigMaps of releases.
pub(crate) fn of_config_maps(maps: Vec<ConfigMap>) -> ReleaseGrants {
    let mut found = ReleaseGrants::default();
    for map in maps {
        let origin = Origin::ConfigMap(ConfigMapRef {
            namespace: map.metadata.namespace.unwrap_or_default(),
            name: map.metadata.name.unwrap_or_default(),
        });
        let text = map.data.as_ref().and_then(|data| data.get(KEY));
        match parse_file(text.map(String::as_str).unwrap_or_default()) {
            Ok(grants) => found.sets.push(GrantSet { origin, grants }),
            Err(error) => found
                .problems
                .push(redacted(&format!("the grants{origin} cannot be used: {error}"))),
        }
    }
    found
}

/// Whether a grant of `sets` allows `namespace` the `token`. The grant of the first set comes first.
pub(crate) fn decide(sets: &[GrantSet], namespace: &str, labels: &Labels, token: &TokenSpec) -> Decision {
    let mut misses = Vec::new();
    let mut unknown = Vec::new();
    for GrantSet { origin, grants } in sets {
        match near_misses::decide(grants, namespace, labels, token) {
            Verdict::Allowed(grant) => return Decision::Allowed(grant, origin.clone()),
            Verdict::Unknown(names) => {
                unknown.extend(names.into_iter().map(|name| format!("{name}{origin}")));
            }
            Verdict::Denied(found) => misses.extend(found.into_iter().map(|miss| NearMiss {
                grant: format!("{}{origin}", miss.grant),
                ..miss
            })),
        }
    }
    if unknown.is_empty() {
        near_misses::sort(&mut misses);
        Decision::Denied(misses)
    } else {
        Decision::Unknown(unknown)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn map(namespace: &str, grants: &str) -> ConfigMap {
        serde_json::from_value(json!({
            "metadata": {"name": "release-grants", "namespace": namespace}, "data": {KEY: grants},
        }))
        .unwrap()
    }

    fn grant(name: &str, from: &str) -> String {
        format!("- {{name: {name}, from: [{from}], to: [{{serviceAccounts: ['1'], audiences: [a]}}]}}\n")
    }

    fn token(audience: &str) -> TokenSpec {
        serde_json::from_value(json!({"audience": audience, "serviceAccount": "1"}))
            .map(|spec| idtoken_operator::request::token(&spec).unwrap())
            .unwrap()
    }

    #[test]
    fn a_grant_of_a_release_names_its_config_map() {
        let found = of_config_maps(vec![
            map("first", &grant("other", "{namespace: yard}")),
            map("second", &grant("shop", "{namespace: shop}")),
        ]);
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        let labels = Some(BTreeMap::new());
        let Decision::Allowed(grant, origin) = decide(&found.sets, "shop", &labels, &token("a")) else {
            panic!("it is not allowed");
        };
        assert_eq!(
            format!("{}{origin}", grant.name),
            "file:shop of ConfigMap second/release-grants"
        );
        let Decision::Denied(misses) = decide(&found.sets, "shop", &labels, &token("b")) else {
            panic!("it is not denied");
        };
        let names: Vec<&str> = misses.iter().map(|miss| miss.grant.as_str()).collect();
        // The closest comes first, whichever set it is of.
        assert_eq!(
            names,
            [
                "file:shop of ConfigMap second/release-grants",
                "file:other of ConfigMap first/release-grants"
            ]
        );
    }

    #[test]
    fn what_depends_on_unknown_labels_is_neither_yes_nor_no() {
        let selected = grant("team", "{namespaceSelector: {matchLabels: {team: shop}}}");
        let found = of_config_maps(vec![map("ops", &selected)]);
        let decided = decide(&found.sets, "shop", &None, &token("a"));
        assert_eq!(
            decided,
            Decision::Unknown(vec!["file:team of ConfigMap ops/release-grants".to_owned()])
        );
        assert!(matches!(
            decide(&found.sets, "shop", &None, &token("b")),
            Decision::Denied(_)
        ));
    }

    #[test]
    fn a_config_map_that_is_no_list_of_grants_costs_itself_alone() {
        let found = of_config_maps(vec![
            map("evil\u{1b}[2J", "[{from: everything}]"),
            map("ops", &grant("shop", "{namespace: shop}")),
        ]);
        assert_eq!(found.sets.len(), 1);
        let [problem] = found.problems.as_slice() else {
            panic!("{:?}", found.problems)
        };
        assert!(problem.contains("/release-grants cannot be used"), "{problem}");
        assert!(!problem.contains('\u{1b}'), "{problem:?}");
    }
}
