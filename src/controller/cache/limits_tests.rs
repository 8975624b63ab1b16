use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

use super::limits::{MAX_SECRET, SECRET};
use super::*;
use crate::api::conditions::reason;
use crate::classify::Classify;
use crate::controller::cache::request_state::WrittenStatus;
use crate::fixtures::{at, object};
use crate::request::ValidateError;

const MIB: usize = 1024 * 1024;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

/// The request `name` of `namespace`, created at `created` seconds, with `text` bytes of text in its template.
fn sized(namespace: &str, name: &str, created: i64, text: usize) -> IdTokenRequest {
    let data: BTreeMap<String, String> = [("a".to_owned(), "x".repeat(text))].into();
    let mut request = object(json!({"target": {"name": format!("{name}-s"), "template": {"data": data}}}));
    request.metadata.namespace = Some(namespace.into());
    request.metadata.name = Some(name.into());
    request.metadata.uid = Some(format!("{namespace}-{name}"));
    request.metadata.creation_timestamp = Some(Time(at(created)));
    request
}

/// A cache whose limit for a namespace is so small that three requests of 8,000 bytes fit, and in all four.
fn small() -> Cache {
    let requests = |count: usize| count * (2560 + 2 * 8200) / 6 * 8;
    Cache::new(CacheLimits {
        total: requests(4),
        namespace: requests(3),
    })
}

fn error(cache: &Cache, key: &ObjectKey) -> Option<ValidateError> {
    cache
        .snapshot(key)
        .and_then(|(object, _)| object.err())
        .map(|unserved| unserved.error)
}

fn is_served(cache: &Cache, key: &ObjectKey) -> bool {
    cache.snapshot(key).is_some_and(|(object, _)| object.is_ok())
}

#[test]
fn a_request_beyond_the_limit_leaves_a_marker_that_says_so() {
    let cache = small();
    for (name, created) in [("b", 2), ("c", 3), ("d", 4)] {
        assert_eq!(
            cache.upsert_request(sized("shop", name, created, 8000)),
            [key(name)]
        );
    }
    assert_eq!(cache.upsert_request(sized("shop", "e", 5, 8000)), [key("e")]);
    let message = error(&cache, &key("e")).unwrap();
    assert_eq!(message.reason(), reason::CACHE_FULL);
    assert!(
        message.to_string().contains("--max-namespace-cache-mib"),
        "{message}"
    );
    assert!(message.needs_user_action());
    assert_eq!(
        cache.claimants(&key("e-s")),
        [],
        "what is not served claims no Secret"
    );
    assert_eq!(cache.upsert_request(sized("shop", "e", 5, 8000)), [], "a relist");
    // Our status of it is kept, and the metadata that a write of the status needs.
    cache.update(&key("e"), "shop-e", |state| {
        state.status = Some(WrittenStatus::new("9".to_owned(), &Default::default()));
    });
    let (unserved, state) = cache.snapshot(&key("e")).unwrap();
    assert_eq!(unserved.unwrap_err().metadata.uid.as_deref(), Some("shop-e"));
    assert!(state.status.is_some());

    // An older one, as a list in the order of names may show it: the youngest gives way, and its claim goes.
    cache.update(&key("d"), "shop-d", |state| {
        state.status = Some(WrittenStatus::new("9".to_owned(), &Default::default()));
        state.repairs.push(at(0));
    });
    assert_eq!(cache.claimants(&key("d-s")), [key("d")]);
    assert_eq!(
        cache.upsert_request(sized("shop", "a", 1, 8000)),
        [key("d"), key("a")]
    );
    assert_eq!(error(&cache, &key("d")).unwrap().reason(), reason::CACHE_FULL);
    assert_eq!(cache.claimants(&key("d-s")), []);
    let (_, state) = cache.snapshot(&key("d")).unwrap();
    assert!(state.status.is_some() && state.repairs.is_empty());
    assert!(cache.has_request(&key("e")) && is_served(&cache, &key("a")));

    // In all: other namespaces have what is left.
    let bank = |name: &str| ObjectKey::new("bank", name);
    assert_eq!(cache.upsert_request(sized("bank", "f", 6, 8000)), [bank("f")]);
    assert!(is_served(&cache, &bank("f")));
    cache.upsert_request(sized("bank", "g", 7, 8000));
    let message = error(&cache, &bank("g")).unwrap().to_string();
    assert!(message.contains("--max-cache-mib"), "{message}");

    // What was deleted makes place, and a list shows the specs again.
    assert!(!cache.needs_request_relist(""));
    cache.remove_request(&key("a"));
    assert!(cache.needs_request_relist("shop") && !cache.needs_request_relist("bank"));
    assert_eq!(
        error(&cache, &key("d")).unwrap().reason(),
        reason::CACHE_FULL,
        "not before"
    );
    cache.begin_request_relist("shop");
    assert_eq!(cache.upsert_request(sized("shop", "d", 4, 8000)), [key("d")]);
    assert!(is_served(&cache, &key("d")));
    assert_eq!(cache.claimants(&key("d-s")), [key("d")]);
    let mut waits = sized("shop", "e", 5, 8000);
    waits.metadata.resource_version = Some("10".to_owned());
    assert_eq!(cache.upsert_request(waits), [], "with our status");
    assert!(!cache.needs_request_relist("shop"));
}

#[test]
fn a_spec_that_is_too_large_is_reported_and_not_kept() {
    let cache = Cache::default();
    let request = sized("shop", "a", 1, 2 * MIB);
    assert_eq!(cache.upsert_request(request.clone()), [key("a")]);
    let error = error(&cache, &key("a")).unwrap();
    assert_eq!(error.reason(), reason::TOO_LARGE);
    assert!(error.to_string().contains("16384"), "{error}");
    assert!(cache.usage().requests < 10_000, "{:?}", cache.usage());
    assert!(cache.upsert_request(request).is_empty());
    // Its author makes it shorter.
    let mut shorter = sized("shop", "a", 1, 20);
    shorter.metadata.generation = Some(2);
    assert_eq!(cache.upsert_request(shorter), [key("a")]);
    assert!(is_served(&cache, &key("a")));
}

#[test]
fn beyond_the_limit_of_markers_nothing_is_kept_and_a_relist_brings_it_back() {
    let cache = Cache::new(CacheLimits::from_mib(1, 1));
    let count = 200;
    let name = |n: usize| format!("r{n:03}");
    let mut forgotten = 0;
    for n in 0..count {
        let affected = cache.upsert_request(sized("shop", &name(n), n as i64, 16_000));
        forgotten += affected.iter().filter(|key| !cache.has_request(key)).count();
    }
    let known = cache.len().0;
    assert_eq!(known + forgotten, count);
    assert!(forgotten > 0 && cache.usage().requests_dropped >= forgotten as u64);
    assert!(
        (0..known).all(|n| cache.has_request(&key(&name(n)))),
        "the oldest are known"
    );
    assert!(!cache.needs_request_relist(""), "there is no room");
    cache.remove_request(&key(&name(0)));
    assert!(cache.needs_request_relist(""));
    cache.begin_request_relist("");
    for n in 1..count {
        cache.upsert_request(sized("shop", &name(n), n as i64, 16_000));
    }
    assert_eq!(cache.end_request_relist("").gone, []);
    assert_eq!(cache.len().0, known);
    assert!(!cache.needs_request_relist(""));
}

fn secret(version: u32, request: &str) -> SecretSummary {
    SecretSummary {
        uid: format!("u{version}"),
        resource_version: version.to_string(),
        request: Some(request.to_owned()),
        managed: true,
        ..SecretSummary::default()
    }
}

#[test]
fn secrets_that_no_request_claims_have_a_limit_and_what_is_absent_is_read() {
    let cache = Cache::new(CacheLimits::from_mib(2, 1));
    let bare = |n: usize| key(&format!("bare-{n:04}"));
    let mut version = 0;
    let mut upsert = |key: ObjectKey| {
        version += 1;
        cache.upsert_secret(key, &secret(version, "nobody"))
    };
    assert!(!cache.may_lack_secret(&bare(9999)));
    cache.begin_secret_relist("");
    for n in 0..1000 {
        assert!(upsert(bare(n)), "{n}");
    }
    let usage = cache.usage();
    assert!(usage.secrets <= MIB / 8 && usage.secrets > MIB / 16, "{usage:?}");
    assert_eq!(cache.len().1 as u64 + usage.secrets_dropped, 1000);
    assert_eq!(cache.end_secret_relist(""), []);
    assert!(cache.secret(&bare(0)).is_some() && !cache.may_lack_secret(&bare(0)));
    assert!(cache.secret(&bare(999)).is_none() && cache.may_lack_secret(&bare(999)));
    assert!(
        !cache.may_lack_secret(&ObjectKey::new("bank", "s")),
        "another namespace"
    );

    // That of a request is kept, and goes with the claim.
    cache.upsert_request(sized("shop", "a", 1, 20));
    assert!(upsert(key("a-s")) && cache.secret(&key("a-s")).is_some());
    cache.remove_request(&key("a"));
    upsert(bare(1000));
    assert!(cache.may_lack_secret(&bare(1000)));

    // Only a whole list shows that all is known again.
    cache.begin_secret_relist("shop");
    assert!(cache.may_lack_secret(&bare(999)));
    upsert(bare(7));
    cache.end_secret_relist("shop");
    assert!(!cache.may_lack_secret(&bare(999)));
    assert_eq!(cache.len().1, 1);

    // The label and a longer annotation than any of ours do not make it one of ours.
    let mut long = secret(5000, "a");
    long.request = Some("x".repeat(MAX_SECRET));
    assert!(cache.upsert_secret(key("long"), &long));
    assert!(cache.secret(&key("long")).is_none() && cache.may_lack_secret(&key("long")));
}

#[test]
fn the_secret_of_a_request_that_goes_is_not_kept_beyond_the_limit() {
    let cache = Cache::new(CacheLimits::from_mib(2, 1));
    // The same tenant again and again: requests that claim bare Secrets, and go.
    for round in 0..10 {
        for n in 0..100 {
            let name = format!("r{round}-{n}");
            cache.upsert_request(sized("shop", &name, n, 20));
            cache.upsert_secret(key(&format!("{name}-s")), &secret(n as u32 + 1, &name));
            cache.upsert_secret(key(&format!("{name}-t")), &secret(n as u32 + 1, &name));
        }
        for n in 0..100 {
            cache.remove_request(&key(&format!("r{round}-{n}")));
        }
        let usage = cache.usage();
        assert!(usage.secrets <= MIB / 8, "{usage:?}");
        assert_eq!(usage.requests, 0);
    }
}

/// A change of the requests and Secrets of two namespaces.
#[derive(Clone, Debug)]
enum Change {
    Upsert { namespace: u8, name: u8, text: u16 },
    Recreate { namespace: u8, name: u8 },
    Remove { namespace: u8, name: u8 },
    Secret { namespace: u8, name: u8, text: u16 },
    SecretGone { namespace: u8, name: u8 },
    Relist,
}

fn change() -> impl Strategy<Value = Change> {
    let object = || (0..2_u8, 0..12_u8);
    prop_oneof![
        6 => (object(), 0..12_000_u16).prop_map(|((namespace, name), text)| Change::Upsert { namespace, name, text }),
        1 => object().prop_map(|(namespace, name)| Change::Recreate { namespace, name }),
        2 => object().prop_map(|(namespace, name)| Change::Remove { namespace, name }),
        3 => (object(), 0..3_000_u16).prop_map(|((namespace, name), text)| Change::Secret { namespace, name, text }),
        1 => object().prop_map(|(namespace, name)| Change::SecretGone { namespace, name }),
        2 => Just(Change::Relist),
    ]
}

/// What is in the cluster: each request with its generation, size and time of creation.
type Cluster = BTreeMap<(u8, u8), (i64, u16, i64)>;

fn shown((namespace, name): (u8, u8), (generation, text, created): (i64, u16, i64)) -> IdTokenRequest {
    let mut request = sized(&namespace.to_string(), &name.to_string(), created, text.into());
    request.metadata.generation = Some(generation);
    request.metadata.uid = Some(format!("{namespace}-{name}-{created}"));
    request
}

/// The requests that a cache has after it was shown `cluster` in one list: as after a restart.
fn restarted(cluster: &Cluster, limits: CacheLimits) -> HashSet<ObjectKey> {
    let cache = Cache::new(limits);
    cache.begin_request_relist("");
    for (id, state) in cluster {
        cache.upsert_request(shown(*id, *state));
    }
    cache.end_request_relist("");
    // What was demoted and admitted again is shown by one list more.
    cache.begin_request_relist("");
    for (id, state) in cluster {
        cache.upsert_request(shown(*id, *state));
    }
    cache
        .request_keys("")
        .into_iter()
        .filter(|key| is_served(&cache, key))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_restart_serves_the_same_and_nothing_is_counted_twice(changes in proptest::collection::vec(change(), 1..60)) {
        let limits = CacheLimits { total: 400_000, namespace: 200_000 };
        let cache = Cache::new(limits);
        let mut cluster = Cluster::new();
        let mut secrets = HashMap::<ObjectKey, SecretSummary>::new();
        let mut clock = 0;
        for (step, change) in changes.into_iter().enumerate() {
            match change {
                Change::Upsert { namespace, name, text } => {
                    clock += 1;
                    let state = cluster.entry((namespace, name)).or_insert((0, 0, clock));
                    *state = (state.0 + 1, text, state.2);
                    cache.upsert_request(shown((namespace, name), *state));
                }
                Change::Recreate { namespace, name } => {
                    clock += 1;
                    cluster.insert((namespace, name), (1, 100, clock));
                    cache.upsert_request(shown((namespace, name), (1, 100, clock)));
                }
                Change::Remove { namespace, name } => {
                    cluster.remove(&(namespace, name));
                    cache.remove_request(&ObjectKey::new(&namespace.to_string(), &name.to_string()));
                }
                Change::Secret { namespace, name, text } => {
                    let key = ObjectKey::new(&namespace.to_string(), &format!("{name}-s"));
                    let summary = secret(u32::try_from(step).unwrap() + 1, &"x".repeat(text.into()));
                    cache.upsert_secret(key.clone(), &summary);
                    secrets.insert(key, summary);
                }
                Change::SecretGone { namespace, name } => {
                    let key = ObjectKey::new(&namespace.to_string(), &format!("{name}-s"));
                    cache.remove_secret(&key);
                    secrets.remove(&key);
                }
                Change::Relist => {
                    cache.begin_request_relist("");
                    for (id, state) in &cluster {
                        cache.upsert_request(shown(*id, *state));
                    }
                    prop_assert_eq!(cache.end_request_relist("").gone, []);
                }
            }
            // Nothing that is there is taken for absent without a warning, and what is kept is as it is.
            for (key, summary) in &secrets {
                match cache.secret(key) {
                    Some(found) => prop_assert_eq!(&found, summary),
                    None => prop_assert!(cache.may_lack_secret(key), "{:?}", key),
                }
            }
            let state = cache.lock();
            let bytes: usize = state.secrets.all_bytes();
            prop_assert_eq!(state.secrets.usage().0, bytes);
            prop_assert!(state.requests.len() == cluster.len());
            prop_assert!(state.budget.usage().0 <= limits.of_requests().total);
        }
        // As long as a list is asked for it serves more.
        for _ in 0..cluster.len() {
            if !cache.needs_request_relist("") {
                break;
            }
            cache.begin_request_relist("");
            for (id, state) in &cluster {
                cache.upsert_request(shown(*id, *state));
            }
            cache.end_request_relist("");
        }
        prop_assert!(!cache.needs_request_relist(""));
        let served: HashSet<_> = cache.request_keys("").into_iter().filter(|key| is_served(&cache, key)).collect();
        prop_assert_eq!(served, restarted(&cluster, limits));
        for (namespace, name) in cluster.keys() {
            cache.remove_request(&ObjectKey::new(&namespace.to_string(), &name.to_string()));
        }
        secrets.keys().for_each(|key| cache.remove_secret(key));
        let usage = cache.usage();
        prop_assert_eq!((usage.requests, usage.markers, usage.secrets), (0, 0, 0));
    }
}

#[test]
fn a_secret_counts_for_what_it_takes() {
    let cache = Cache::default();
    cache.upsert_secret(key("a"), &secret(1, "a"));
    let small = cache.usage().secrets;
    assert!(small > SECRET && small < SECRET + 200, "{small}");
    cache.upsert_secret(key("a"), &secret(2, &"a".repeat(100)));
    assert_eq!(cache.usage().secrets, small + 99);
}
