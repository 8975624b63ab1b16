use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// A unit of these tests, so large that every request that waits has a marker.
const UNIT: u32 = 64 * 1024;

fn limits(total: usize, namespace: usize) -> CacheLimits {
    // Requests may take six eighths.
    let bytes = |units: usize| (units * to_usize(UNIT)).div_ceil(6) * 8;
    CacheLimits {
        total: bytes(total),
        namespace: bytes(namespace),
    }
}

fn request(namespace: &str, created: i64, uid: &str) -> Claimant {
    Claimant {
        unrecorded: false,
        created,
        uid: uid.into(),
        request: ObjectKey::new(namespace, uid),
    }
}

fn admission(ledger: &Ledger, namespace: &str, created: i64, uid: &str) -> Admission {
    ledger.admission(&request(namespace, created, uid))
}

#[test]
fn the_oldest_of_a_namespace_are_served() {
    let mut ledger = Ledger::new(limits(1000, 30));
    let put = |ledger: &mut Ledger, created, uid| ledger.put(request("evil", created, uid), 10 * UNIT);
    for (created, uid) in [(5, "c"), (5, "a"), (9, "z")] {
        assert_eq!(put(&mut ledger, created, uid), Changes::default());
    }
    // A newcomer waits.
    assert_eq!(put(&mut ledger, 10, "new").demoted.len(), 1);
    assert_eq!(
        admission(&ledger, "evil", 10, "new"),
        Admission::Waiting(Limit::Namespace)
    );
    // An older one takes the place of the youngest.
    let changes = put(&mut ledger, 5, "b");
    assert_eq!(changes.demoted, [(ObjectKey::new("evil", "z"), Limit::Namespace)]);
    for uid in ["a", "b", "c"] {
        assert_eq!(admission(&ledger, "evil", 5, uid), Admission::Admitted, "{uid}");
    }
    // Another namespace has its own limit.
    ledger.put(request("shop", 99, "s"), 30 * UNIT);
    assert_eq!(admission(&ledger, "shop", 99, "s"), Admission::Admitted);
    // What goes makes place for the next, whose spec has to be read again.
    assert!(!ledger.needs_relist(""));
    ledger.remove(&request("evil", 5, "a"));
    assert_eq!(admission(&ledger, "evil", 9, "z"), Admission::Admitted);
    assert_eq!(
        admission(&ledger, "evil", 10, "new"),
        Admission::Waiting(Limit::Namespace)
    );
    assert!(ledger.needs_relist("evil") && ledger.needs_relist("") && !ledger.needs_relist("shop"));
    ledger.begin_relist("evil");
    assert!(!ledger.needs_relist(""));
}

#[test]
fn a_newcomer_takes_no_place_of_an_older_request_elsewhere() {
    let mut ledger = Ledger::new(limits(30, 20));
    ledger.put(request("shop", 1, "old"), 10 * UNIT);
    for (created, uid) in [(2, "a"), (3, "b")] {
        ledger.put(request("evil", created, uid), 10 * UNIT);
    }
    for (namespace, uid) in [("evil", "c"), ("more", "d"), ("shop", "e")] {
        let changes = ledger.put(request(namespace, 9, uid), UNIT);
        assert!(
            changes.demoted.iter().all(|(key, _)| key.name() == uid),
            "{changes:?}"
        );
        assert!(
            matches!(admission(&ledger, namespace, 9, uid), Admission::Waiting(_)),
            "{uid}"
        );
    }
    assert_eq!(admission(&ledger, "shop", 1, "old"), Admission::Admitted);
    assert_eq!(
        admission(&ledger, "more", 9, "d"),
        Admission::Waiting(Limit::Total)
    );
    ledger.remove(&request("evil", 2, "a"));
    for (namespace, uid) in [("evil", "c"), ("more", "d"), ("shop", "e")] {
        assert_eq!(
            admission(&ledger, namespace, 9, uid),
            Admission::Admitted,
            "{uid}"
        );
    }
}

#[test]
fn a_smaller_one_does_not_overtake_a_larger_one() {
    let mut ledger = Ledger::new(limits(1000, 10));
    ledger.put(request("shop", 1, "a"), 6 * UNIT);
    ledger.put(request("shop", 2, "large"), 6 * UNIT);
    ledger.put(request("shop", 3, "small"), UNIT);
    let waits = Admission::Waiting(Limit::Namespace);
    assert_eq!(admission(&ledger, "shop", 2, "large"), waits);
    assert_eq!(admission(&ledger, "shop", 3, "small"), waits);
    // It shrinks.
    ledger.put(request("shop", 2, "large"), 3 * UNIT);
    assert_eq!(admission(&ledger, "shop", 2, "large"), Admission::Admitted);
    assert_eq!(admission(&ledger, "shop", 3, "small"), Admission::Admitted);
    // One that is served grows.
    let changes = ledger.put(request("shop", 1, "a"), 9 * UNIT);
    assert_eq!(changes.demoted.len(), 2);
    assert_eq!(admission(&ledger, "shop", 1, "a"), Admission::Admitted);
}

#[test]
fn markers_have_a_limit_too() {
    let few = CacheLimits {
        total: 8 * MARKER * 5,
        namespace: 8 * MARKER * 3,
    };
    let mut ledger = Ledger::new(few);
    let huge = u32::MAX / 2;
    for created in 0..4 {
        ledger.put(request("evil", created, &created.to_string()), huge);
    }
    assert_eq!(
        admission(&ledger, "evil", 2, "2"),
        Admission::Waiting(Limit::Namespace)
    );
    assert_eq!(admission(&ledger, "evil", 3, "3"), Admission::Dropped);
    assert!(!ledger.needs_relist(""), "there is no room");
    // In all: the namespace with most has to give.
    for created in 0..3 {
        ledger.put(request("more", created, &created.to_string()), huge);
    }
    let known = |ledger: &Ledger, namespace: &str| {
        (0..4)
            .filter(|created| {
                admission(ledger, namespace, *created, &created.to_string()) != Admission::Dropped
            })
            .count()
    };
    assert_eq!(known(&ledger, "evil") + known(&ledger, "more"), 5);
    assert!(known(&ledger, "evil") >= 2 && known(&ledger, "more") >= 2);
    assert_eq!(ledger.usage(), (0, 5, 2));
    ledger.remove(&request("evil", 0, "0"));
    assert!(
        ledger.needs_relist("evil"),
        "a relist shows those that were dropped"
    );
    ledger.begin_relist("");
    assert!(!ledger.needs_relist(""));
}

/// A change of the requests of three namespaces. Two have the same age where their UIDs decide.
#[derive(Clone, Debug)]
enum Step {
    Put { namespace: u8, id: u8, cost: u8 },
    Remove { namespace: u8, id: u8 },
    Relist,
}

fn step() -> impl Strategy<Value = Step> {
    let put =
        (0..3_u8, 0..10_u8, 1..12_u8).prop_map(|(namespace, id, cost)| Step::Put { namespace, id, cost });
    let remove = (0..3_u8, 0..10_u8).prop_map(|(namespace, id)| Step::Remove { namespace, id });
    prop_oneof![5 => put, 2 => remove, 1 => Just(Step::Relist)]
}

fn claimant(namespace: u8, id: u8) -> Claimant {
    // The ages of the namespaces interleave.
    let created = i64::from(id / 2) * 3 + i64::from(namespace);
    request(&namespace.to_string(), created, &id.to_string())
}

/// The rule from scratch: in the order of age, with no request after one of its namespace, or after any in all, that did not fit.
fn served(all: &BTreeMap<Claimant, u32>, limits: CacheLimits) -> BTreeSet<Claimant> {
    let limits = limits.of_requests();
    let mut served = BTreeSet::new();
    let mut used = HashMap::<String, usize>::new();
    let mut full = BTreeSet::new();
    for (request, cost) in all {
        let namespace = request.request.namespace();
        if full.contains(namespace) {
            continue;
        }
        let cost = to_usize(*cost);
        if used.get(namespace).copied().unwrap_or_default() + cost > limits.namespace {
            full.insert(namespace.to_owned());
            continue;
        }
        if used.values().sum::<usize>() + cost > limits.total {
            break;
        }
        *used.entry(namespace.to_owned()).or_default() += cost;
        served.insert(request.clone());
    }
    served
}

proptest! {
    #[test]
    fn the_ledger_agrees_with_the_rule_from_scratch(steps in proptest::collection::vec(step(), 1..80)) {
        let limits = limits(40, 20);
        let mut ledger = Ledger::new(limits);
        let mut all = BTreeMap::<Claimant, u32>::new();
        for step in steps {
            let before = served(&all, limits);
            let (changed, changes) = match step {
                Step::Put { namespace, id, cost } => {
                    let request = claimant(namespace, id);
                    all.insert(request.clone(), u32::from(cost) * UNIT);
                    (Some(request.clone()), ledger.put(request, u32::from(cost) * UNIT))
                }
                Step::Remove { namespace, id } => {
                    let request = claimant(namespace, id);
                    all.remove(&request);
                    (Some(request.clone()), ledger.remove(&request))
                }
                Step::Relist => {
                    ledger.begin_relist("");
                    prop_assert!(!ledger.needs_relist(""));
                    (None, Changes::default())
                }
            };
            let after = served(&all, limits);
            let admitted = |request: &&Claimant| ledger.admission(request) == Admission::Admitted;
            let found: BTreeSet<_> = all.keys().filter(admitted).cloned().collect();
            prop_assert_eq!(&found, &after);
            prop_assert_eq!(changes.dropped, []);
            // The demoted are those that were served and no longer are.
            let told: BTreeSet<_> = changes.demoted.into_iter().map(|(key, _)| key).collect();
            let other = |request: &&Claimant| changed.as_ref() != Some(*request) ;
            for request in before.difference(&after).filter(other) {
                prop_assert!(told.contains(&request.request), "{:?}", request);
            }
            for request in after.iter().filter(other) {
                prop_assert!(!told.contains(&request.request), "{:?}", request);
            }
            let mut readmitted = after.difference(&before).filter(other);
            prop_assert!(readmitted.next().is_none() || ledger.needs_relist(""));
            let used: usize = after.iter().map(|request| to_usize(all[request])).sum();
            prop_assert_eq!(ledger.usage(), (used, all.len() - after.len(), 0));
        }
        for request in all.keys() {
            ledger.remove(request);
        }
        prop_assert_eq!(ledger.usage(), (0, 0, 0));
        ledger.begin_relist("");
        prop_assert!(ledger.namespaces.is_empty());
    }
}
