use proptest::prelude::*;

use super::*;
use crate::api::v1alpha1::{
    GrantFrom, GrantRef, GrantSource, GrantTo, IdTokenGrantSpec, NamespaceSelector, SelectorRequirement,
};
use crate::fixtures::{ACCOUNT, token_spec as token};
use crate::grants::policy::{allows, matching};
use crate::request::TokenSpec;

fn named(namespace: &str) -> GrantFrom {
    GrantFrom {
        namespace: Some(namespace.into()),
        ..GrantFrom::default()
    }
}

fn selected(key: &str, value: &str) -> GrantFrom {
    let labels = [(key.to_owned(), value.to_owned())].into();
    selecting(NamespaceSelector {
        match_labels: Some(labels),
        match_expressions: None,
    })
}

fn selecting(selector: NamespaceSelector) -> GrantFrom {
    GrantFrom {
        namespace_selector: Some(selector),
        ..GrantFrom::default()
    }
}

fn all_namespaces() -> GrantFrom {
    GrantFrom {
        all_namespaces: Some(true),
        ..GrantFrom::default()
    }
}

fn without_team() -> GrantFrom {
    selecting(NamespaceSelector {
        match_labels: None,
        match_expressions: Some(vec![SelectorRequirement {
            key: "team".to_owned(),
            operator: "DoesNotExist".to_owned(),
            values: None,
        }]),
    })
}

fn to(accounts: &[&str], audiences: &[&str]) -> GrantTo {
    let own = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
    GrantTo {
        service_accounts: own(accounts),
        audiences: own(audiences),
        ..GrantTo::default()
    }
}

fn grant(name: &str, from: Vec<GrantFrom>, to: Vec<GrantTo>) -> Grant {
    Grant {
        id: GrantRef {
            name: name.into(),
            uid: Some(name.into()),
        },
        spec: Arc::new(IdTokenGrantSpec { from, to }),
    }
}

/// Grants of each kind that could match a request. All but one are for something else.
fn crowd(size: usize) -> GrantIndex {
    let mut index = GrantIndex::default();
    index.set_namespace("shop", Some([("team".to_owned(), "shop".to_owned())].into()));
    let mut add = |name: String, from, to| index.insert(&name, grant(&name, vec![from], vec![to]));
    for n in 0..size {
        let audience = format!("https://{n}.run.app");
        let globs = [
            format!("https://api.run.app/{n}/*"),
            format!("https://{n}.run.app/*"),
        ];
        let globs = [globs[0].as_str(), globs[1].as_str()];
        let account = format!("caller-{n}@p.iam.gserviceaccount.com");
        add(
            format!("a{n}"),
            named(&format!("shop-{n}")),
            to(&[ACCOUNT], &["aud"]),
        );
        add(format!("b{n}"), named("shop"), to(&[&account], &["aud"]));
        add(format!("c{n}"), named("shop"), to(&[ACCOUNT], &[&audience]));
        add(
            format!("d{n}"),
            named("shop"),
            to(&["*@p.iam.gserviceaccount.com"], &globs),
        );
        add(
            format!("e{n}"),
            selected("team", &n.to_string()),
            to(&[ACCOUNT], &["aud"]),
        );
        add(
            format!("f{n}"),
            selected("team", "shop"),
            to(&[&account, ACCOUNT], &globs),
        );
    }
    add(
        "this".into(),
        selected("team", "shop"),
        to(&["*@p.iam.gserviceaccount.com"], &["https://api.run.app/x/*"]),
    );
    index
}

#[test]
fn a_decision_does_not_grow_with_the_number_of_grants() {
    let cost = |size| {
        let index = crowd(size);
        let costs = [
            ("https://api.run.app/x/y", 1),
            ("https://api.run.app/y", 0),
            ("aud", 0),
            ("zzz", 0),
        ];
        costs.map(|(audience, wanted)| {
            let found = index.candidates("shop", Some(ACCOUNT), audience);
            let names: Vec<_> = found.entries.iter().map(|entry| &entry.grant.id.name).collect();
            assert_eq!(names.len(), wanted, "{audience} {names:?}");
            found.lookups
        })
    };
    let (few, many) = (cost(10), cost(2_000));
    assert_eq!(few, many);
    assert!(many.iter().all(|lookups| *lookups < 30), "{many:?}");
}

#[test]
fn nothing_is_left_of_removed_grants() {
    let mut index = crowd(5);
    let keys: Vec<Arc<str>> = index.grants.keys().cloned().collect();
    for key in keys {
        index.remove(&key);
    }
    index.set_namespace("shop", None);
    assert!(index.grants.is_empty() && index.entries.is_empty(), "{index:?}");
    assert!(index.selectors.is_empty() && index.selected.is_empty() && index.namespaces.is_empty());
}

/// A change of the index: everything that the watches can report.
#[derive(Clone, Debug)]
enum Change {
    Insert(usize, Vec<GrantFrom>, Vec<GrantTo>),
    Remove(usize),
    Label(usize, Option<usize>),
    Relist([Option<usize>; 3]),
}

const NAMESPACES: [&str; 3] = ["shop", "bank", "farm"];
const ACCOUNTS: [&str; 4] = [ACCOUNT, "other@p.iam.gserviceaccount.com", "x@q.example", "1234"];
const PATTERNS: [&str; 5] = [
    ACCOUNT,
    "*@p.iam.gserviceaccount.com",
    "*@q.example",
    "1234",
    "x@q.example",
];
const AUDIENCES: [&str; 7] = [
    "aud",
    "https://a.io/",
    "https://a.io/b",
    "https://a.io/b/c",
    "https://a.io/é/c",
    "https://a.io.evil/b",
    "https://a.io/bc",
];
const GLOBS: [&str; 9] = [
    "aud",
    "https://a.io/b",
    "https://a.io/*",
    "https://a.io/b*",
    "https://a.io/b/*",
    "https://a.io/é*",
    "https://a.io*",
    "https://a.io/a*",
    "https://a.io/bb*",
];

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let from = prop_oneof![
        proptest::sample::select(&NAMESPACES[..]).prop_map(named),
        (0..3_usize).prop_map(|n| selected("team", &n.to_string())),
        Just(all_namespaces()),
        Just(without_team()),
        Just(selecting(NamespaceSelector::default())),
        Just(GrantFrom::default()),
    ];
    let sources = prop_oneof![Just(None), Just(Some(vec![GrantSource::MetadataServer]))];
    let entry = (
        proptest::collection::vec(proptest::sample::select(&PATTERNS[..]), 1..3),
        proptest::collection::vec(proptest::sample::select(&GLOBS[..]), 1..4),
        sources,
    )
        .prop_map(|(accounts, audiences, sources)| GrantTo {
            sources,
            ..to(&accounts, &audiences)
        });
    let insert = (
        0..5_usize,
        proptest::collection::vec(from, 1..3),
        proptest::collection::vec(entry, 1..3),
    )
        .prop_map(|(n, from, to)| Change::Insert(n, from, to));
    let team = || proptest::option::of(0..3_usize);
    let change = prop_oneof![
        4 => insert,
        1 => (0..5_usize).prop_map(Change::Remove),
        2 => (0..3_usize, team()).prop_map(|(n, team)| Change::Label(n, team)),
        1 => [team(), team(), team()].prop_map(Change::Relist),
    ];
    proptest::collection::vec(change, 1..20)
}

fn labels(team: usize) -> BTreeMap<String, String> {
    BTreeMap::from([("team".to_owned(), team.to_string())])
}

/// The names of the matching grants, by a search through all of them.
fn one_by_one(
    grants: &BTreeMap<usize, Grant>,
    namespaces: &Namespaces,
    namespace: &str,
    token: &TokenSpec,
) -> Vec<String> {
    let within = |from: &GrantFrom| match (&from.namespace, &from.namespace_selector, from.all_namespaces) {
        (Some(name), None, None) => name == namespace,
        (None, None, Some(true)) => true,
        (None, Some(selector), None) => namespaces.get(namespace).is_some_and(|labels| {
            match (&selector.match_labels, &selector.match_expressions) {
                (Some(equal), None) => equal.iter().all(|(key, value)| labels.get(key) == Some(value)),
                (None, Some(_)) => !labels.contains_key("team"),
                _ => false,
            }
        }),
        _ => false,
    };
    let allowing = grants.values().filter(|grant| {
        grant.spec.from.iter().any(within) && grant.spec.to.iter().any(|to| allows(to, token))
    });
    allowing.map(|grant| grant.id.name.clone()).collect()
}

proptest! {
    #[test]
    fn the_index_finds_what_a_search_through_all_finds(changes in changes()) {
        let (mut index, mut grants, mut namespaces) = (GrantIndex::default(), BTreeMap::new(), Namespaces::new());
        for change in changes {
            match change {
                Change::Insert(n, from, to) => {
                    let grant = grant(&n.to_string(), from, to);
                    grants.insert(n, grant.clone());
                    index.insert(&n.to_string(), grant);
                }
                Change::Remove(n) => {
                    grants.remove(&n);
                    index.remove(&n.to_string());
                }
                Change::Label(n, team) => {
                    let labels = team.map(labels);
                    match labels.clone() {
                        Some(labels) => drop(namespaces.insert(NAMESPACES[n].to_owned(), labels)),
                        None => drop(namespaces.remove(NAMESPACES[n])),
                    }
                    index.set_namespace(NAMESPACES[n], labels);
                }
                Change::Relist(teams) => {
                    let listed = NAMESPACES.iter().zip(teams);
                    namespaces = listed.filter_map(|(name, team)| Some(((*name).to_owned(), labels(team?)))).collect();
                    index.set_namespaces(namespaces.clone());
                }
            }
        }
        for namespace in NAMESPACES {
            for account in ACCOUNTS {
                for audience in AUDIENCES {
                    let token = token(account, audience);
                    let found: Vec<_> = matching(&index, namespace, &token).iter().map(|grant| grant.name.clone()).collect();
                    prop_assert_eq!(found, one_by_one(&grants, &namespaces, namespace, &token), "{} {} {}", namespace, account, audience);
                }
            }
        }
    }
}
