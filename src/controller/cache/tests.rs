use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

use super::request_state::WrittenStatus;
use super::*;
use crate::api::annotations;
use crate::api::v1alpha1::{IdTokenRequestStatus, SecretStatus};
use crate::classify::ErrorClass;
use crate::fixtures::{at, object};
use crate::schedule::backoff::{Backoff, BackoffKey};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

/// The request `name` for the Secret `target`, created at `created` seconds.
fn request(name: &str, uid: &str, target: &str, created: i64) -> IdTokenRequest {
    let mut request = object(json!({"target": {"name": target}}));
    request.metadata.name = Some(name.into());
    request.metadata.uid = Some(uid.into());
    request.metadata.creation_timestamp = Some(Time(at(created)));
    request
}

fn upsert(cache: &Cache, request: &IdTokenRequest) -> Vec<String> {
    let affected = cache.upsert_request(request.clone());
    affected.iter().map(|key| key.name().to_owned()).collect()
}

fn state(cache: &Cache, name: &str) -> RequestState {
    cache
        .snapshot(&key(name))
        .map_or_else(RequestState::default, |(_, state)| state)
}

#[test]
fn a_request_comes_back_as_it_was_last_shown() {
    let cache = Cache::default();
    let mut shown = request("a", "1", "s", 0);
    upsert(&cache, &shown);
    // Neither the status nor the resourceVersion is a reason to reconcile, but a reconcile reads them.
    shown.metadata.resource_version = Some("99".into());
    shown.status = Some(IdTokenRequestStatus::default());
    assert!(upsert(&cache, &shown).is_empty());
    let (found, _) = cache.snapshot(&key("a")).unwrap();
    assert_eq!(json!(found.unwrap()), json!(shown));
    assert!(cache.has_request(&key("a")) && !cache.has_request(&key("b")));
    assert!(cache.snapshot(&key("b")).is_none());
    let mut elsewhere = request("a", "2", "s", 0);
    elsewhere.metadata.namespace = Some("bank".into());
    upsert(&cache, &elsewhere);
    assert_eq!(cache.request_keys("shop"), [key("a")]);
    assert_eq!(cache.request_keys("").len(), 2);
    cache.remove_request(&key("a"));
    assert_eq!(cache.request_keys(""), [ObjectKey::new("bank", "a")]);
}

#[test]
fn google_being_back_ends_the_waits_of_the_namespaces_that_it_held_back() {
    let cache = Cache::default();
    let backoff = |awaits_google| Backoff {
        reason: "UpstreamUnavailable",
        message: String::new(),
        class: ErrorClass::Transient,
        attempts: 7,
        since: at(0),
        at: at(100),
        next: at(200),
        needs_user_action: false,
        awaits_google,
        key: BackoffKey {
            generation: 1,
            renew: None,
            grant: None,
        },
    };
    for (name, awaits_google) in [("expired", true), ("valid", false)] {
        for namespace in ["shop", "bank"] {
            let uid = format!("{namespace}-{name}");
            let mut request = request(name, &uid, name, 0);
            request.metadata.namespace = Some(namespace.into());
            upsert(&cache, &request);
            cache.update(&ObjectKey::new(namespace, name), &uid, |state| {
                state.backoff = Some(Box::new(backoff(awaits_google)));
            });
        }
    }
    let ended =
        |namespace: &str| cache.end_waits_for_google(&BTreeSet::from([namespace.to_owned()]), at(150));
    assert_eq!(ended("none"), []);
    assert_eq!(ended("shop"), [key("expired")]);
    let next = |name| state(&cache, name).backoff.map(|backoff| backoff.next);
    assert_eq!([next("expired"), next("valid")], [Some(at(150)), Some(at(200))]);
    assert_eq!(ended("shop"), [], "they wait no longer");
    // The operator's own calls hold back all.
    assert_eq!(ended(""), [ObjectKey::new("bank", "expired")]);
}

#[test]
fn only_changes_of_spec_or_of_our_annotations_are_a_reason_to_reconcile() {
    let cache = Cache::default();
    let mut request = request("a", "1", "s", 0);
    assert_eq!(upsert(&cache, &request), ["a"]);
    assert!(upsert(&cache, &request).is_empty(), "a relist");
    request.metadata.resource_version = Some("99".into());
    request.metadata.labels = Some([("l".to_owned(), "v".to_owned())].into());
    request.status = Some(IdTokenRequestStatus::default());
    assert!(upsert(&cache, &request).is_empty(), "our own status, a label");
    let annotate = |request: &mut IdTokenRequest, key: &str| {
        let annotations = request.metadata.annotations.get_or_insert_default();
        annotations.insert(key.into(), "now".into());
    };
    annotate(&mut request, "theirs");
    assert!(upsert(&cache, &request).is_empty(), "another annotation");
    annotate(&mut request, annotations::RENEW);
    assert_eq!(upsert(&cache, &request), ["a"], "a renew request");
    annotate(&mut request, annotations::ACCEPT_SUBJECT);
    assert_eq!(upsert(&cache, &request), ["a"], "an accepted subject");
    request.metadata.generation = Some(2);
    assert_eq!(upsert(&cache, &request), ["a"], "the spec changed");
    request.metadata.uid = Some("2".into());
    assert_eq!(upsert(&cache, &request), ["a"], "recreated");
    assert_eq!(cache.claimants(&key("s")), [key("a")]);
    assert_eq!(cache.len(), (1, 0));
}

#[test]
fn a_request_loses_a_secret_that_nobody_holds_against_an_older_claimant() {
    let cache = Cache::default();
    upsert(&cache, &request("young", "2", "s", 100));
    assert_eq!(cache.winning_claimant(&key("s"), "2"), None);
    let affected = upsert(&cache, &request("old", "1", "s", 0));
    assert_eq!(affected, ["young", "old"], "the loser is reconciled");
    assert_eq!(cache.winning_claimant(&key("s"), "1"), None);
    let winner = cache.winning_claimant(&key("s"), "2").unwrap();
    assert_eq!(winner.request, key("old"));
    assert!(cache.has_uid("1") && !cache.has_uid("3"));
}

#[test]
fn the_other_claimants_are_affected_when_a_secret_is_free() {
    let cache = Cache::default();
    let old = request("old", "1", "s", 0);
    upsert(&cache, &old);
    upsert(&cache, &request("young", "2", "s", 100));
    assert_eq!(cache.remove_request(&key("old")), [key("young")]);
    assert!(cache.remove_request(&key("old")).is_empty());
    assert_eq!(cache.winning_claimant(&key("s"), "2"), None);

    // By a renamed target as well.
    upsert(&cache, &old);
    let mut renamed = request("old", "1", "t", 0);
    renamed.metadata.generation = Some(2);
    let mut affected = upsert(&cache, &renamed);
    affected.sort();
    assert_eq!(affected, ["old", "young"]);
    assert_eq!(cache.claimants(&key("t")), [key("old")]);

    // And by a deletion that only a relist shows.
    upsert(&cache, &old);
    cache.begin_request_relist("");
    upsert(&cache, &request("young", "2", "s", 100));
    let ended = cache.end_request_relist("");
    assert_eq!(
        (ended.gone, ended.affected),
        (vec![key("old")], vec![key("young")])
    );
    assert_eq!(cache.remove_request(&key("young")), []);
    assert_eq!(cache.len(), (0, 0));
    assert!(cache.claimants(&key("s")).is_empty());
}

#[test]
fn a_change_during_a_reconcile_is_explained_by_its_write_alone() {
    // What the watch shows during the reconcile, the answer to the write, and whether that explains it.
    for (shown, written, is_unexplained) in [
        (vec![9], Some(9), false),
        (vec![8], Some(9), false),
        (vec![8, 9], Some(9), false),
        (vec![9, 10], Some(9), true),
        (vec![10], Some(9), true),
        (vec![9], None, true),
        (vec![], Some(9), false),
        (vec![], None, false),
    ] {
        let cache = Cache::default();
        upsert(&cache, &request("a", "1", "s", 0));
        let a = key("a");
        let expected = cache.expect_write(&a);
        for version in &shown {
            let reconciles = cache.upsert_secret(key("s"), &naming("a", "1", *version));
            assert!(!reconciles, "it waits: {shown:?}");
        }
        if let Some(version) = written {
            cache.record_secret_write(key("s"), &naming("a", "1", version));
        }
        assert_eq!(expected.end(), is_unexplained, "{shown:?} {written:?}");
        assert!(cache.upsert_secret(key("s"), &naming("a", "1", 11)), "it ended");
    }
}

#[test]
fn a_change_after_the_write_is_not_explained_by_it() {
    let cache = Cache::default();
    upsert(&cache, &request("a", "1", "s", 0));
    let a = key("a");
    let expected = cache.expect_write(&a);
    cache.record_secret_write(key("s"), &naming("a", "1", 9));
    assert!(!cache.upsert_secret(key("s"), &naming("a", "1", 10)));
    assert!(expected.end());
}

#[test]
fn a_change_that_waits_is_not_lost_to_another_claimant() {
    let cache = Cache::default();
    upsert(&cache, &request("a", "1", "s", 0));
    let (a, b) = (key("a"), key("b"));
    let of_a = cache.expect_write(&a);
    assert!(!cache.upsert_secret(key("s"), &naming("a", "1", 1)), "it waits");
    upsert(&cache, &request("b", "2", "s", 100));
    let of_b = cache.expect_write(&b);
    assert!(!of_b.end(), "it is not b's");
    assert!(of_a.end());
}

#[test]
fn a_change_during_a_reconcile_waits_for_its_end_unless_others_claim_the_secret() {
    let cache = Cache::default();
    upsert(&cache, &request("a", "1", "s", 0));
    let (a, unknown) = (key("a"), key("unknown"));
    assert!(!cache.expect_write(&unknown).end());
    let expected = cache.expect_write(&a);
    assert!(!cache.upsert_secret(key("s"), &naming("a", "1", 1)), "it waits");
    assert!(
        cache.upsert_secret(key("t"), &naming("b", "2", 2)),
        "another Secret"
    );
    assert!(expected.end(), "no write explains it");
    assert!(cache.upsert_secret(key("s"), &naming("a", "1", 3)), "it ended");
    drop(cache.expect_write(&a));
    assert!(
        cache.upsert_secret(key("s"), &naming("a", "1", 4)),
        "it was cancelled"
    );

    let expected = cache.expect_write(&a);
    cache.record_secret_write(key("s"), &naming("a", "1", 6));
    assert!(
        !cache.upsert_secret(key("s"), &naming("a", "1", 6)),
        "our own write"
    );
    assert!(!expected.end());

    upsert(&cache, &request("b", "2", "s", 100));
    let expected = cache.expect_write(&a);
    assert!(
        cache.upsert_secret(key("s"), &naming("b", "2", 7)),
        "the other learns of it"
    );
    assert!(!expected.end());
}

#[test]
fn of_many_that_claim_a_secret_the_next_winner_and_few_others_are_affected() {
    let cache = Cache::default();
    for number in 0..100 {
        upsert(
            &cache,
            &request(&format!("{number:03}"), &format!("u{number:03}"), "s", number),
        );
    }
    assert_eq!(cache.remove_request(&key("050")), [], "it did not win");
    let affected = cache.remove_request(&key("000"));
    assert_eq!(affected.len(), 16);
    assert_eq!(affected[0], key("001"));
    // The winner is reconciled, however many are older.
    cache.upsert_secret(key("s"), &naming("099", "u099", 1));
    assert_eq!(cache.winning_claimant(&key("s"), "").unwrap().request, key("099"));
    // So is who won it before, when the Secret names another one.
    let before = cache.contended_secret(&key("s"));
    cache.upsert_secret(key("s"), &naming("050", "u098", 2));
    let affected = cache.affected_by_secret(&key("s"), before.as_ref());
    assert_eq!(affected[..3], [key("099"), key("098"), key("001")]);
    assert_eq!(affected.len(), 16);
    assert_eq!(cache.remove_request(&key("098"))[0], key("001"));
    cache.upsert_secret(key("s"), &naming("097", "u097", 3));
    let mut renamed = request("001", "u001", "t", 1);
    renamed.metadata.generation = Some(2);
    assert_eq!(upsert(&cache, &renamed), ["001"], "it had lost already");
}

#[test]
fn a_relist_of_one_namespace_says_nothing_of_another() {
    let cache = Cache::default();
    let mut far = request("far", "2", "far", 0);
    far.metadata.namespace = Some("other".into());
    upsert(&cache, &far);
    upsert(&cache, &request("near", "1", "near", 0));
    assert_eq!(cache.end_request_relist("shop"), EndedRelist::default());
    cache.mark_stale("shop");
    cache.begin_request_relist("shop");
    let near = || cache.standing(&key("near"), "1", 1);
    let far = || cache.standing(&ObjectKey::new("other", "far"), "2", 1);
    assert_eq!((near(), far()), (Standing::Relisting, Standing::Current));
    assert_eq!(cache.end_request_relist("shop").gone, [key("near")]);
    assert_eq!((near(), far()), (Standing::Gone, Standing::Current));
    upsert(&cache, &request("near", "1", "near", 0));
    assert_eq!(near(), Standing::Current);
}

#[test]
fn the_state_lives_as_long_as_the_request() {
    let cache = Cache::default();
    let record = |uid: &str| cache.update(&key("a"), uid, |state| state.repairs.push(at(0)));
    let is_recorded = || !state(&cache, "a").repairs.is_empty();
    record("1");
    let mut request = request("a", "1", "s", 0);
    upsert(&cache, &request);
    assert!(!is_recorded(), "of a request that was not there");
    record("1");
    request.metadata.generation = Some(2);
    upsert(&cache, &request);
    assert!(is_recorded(), "a new generation");
    let standing = |generation| cache.standing(&key("a"), "1", generation);
    assert_eq!(
        (standing(2), standing(1)),
        (Standing::Current, Standing::Outdated)
    );
    request.metadata.uid = Some("2".into());
    upsert(&cache, &request);
    assert!(!is_recorded());
    record("1");
    assert!(!is_recorded(), "from a reconcile of the deleted request");
    record("2");
    assert!(is_recorded());
    assert!(cache.is_current(&key("a"), "2") && !cache.is_current(&key("a"), "1"));
    assert_eq!(standing(2), Standing::Gone);
    cache.remove_request(&key("a"));
    assert!(!cache.is_current(&key("a"), "2"));
    upsert(&cache, &request);
    assert!(!is_recorded(), "deleted meanwhile");
}

#[test]
fn a_new_leader_drops_the_state_and_reads_each_secret() {
    let cache = Cache::default();
    let mut request = request("a", "1", "s", 0);
    upsert(&cache, &request);
    cache.update(&key("a"), "1", |state| state.repairs.push(at(0)));
    assert!(!cache.needs_read(&key("a"), "1"));
    cache.reset_for_leadership();
    assert!(state(&cache, "a").repairs.is_empty());
    request.metadata.generation = Some(2);
    upsert(&cache, &request);
    assert!(cache.needs_read(&key("a"), "1") && !cache.needs_read(&key("a"), "2"));
    cache.mark_read(&key("a"), "2");
    assert!(cache.needs_read(&key("a"), "1"));
    cache.mark_read(&key("a"), "1");
    assert!(!cache.needs_read(&key("a"), "1"));
    cache.reset_for_leadership();
    request.metadata.uid = Some("2".into());
    upsert(&cache, &request);
    assert!(!cache.needs_read(&key("a"), "2"), "no leader wrote its Secret");
}

#[test]
fn our_status_is_kept_until_the_watch_shows_it() {
    let cache = Cache::default();
    let mut request = request("a", "1", "s", 0);
    request.metadata.resource_version = Some("5".into());
    upsert(&cache, &request);
    let status = || state(&cache, "a").status;
    cache.update(&key("a"), "1", |state| {
        state.status = Some(WrittenStatus::new(
            "9".to_owned(),
            &IdTokenRequestStatus::default(),
        ));
    });
    request.metadata.resource_version = Some("8".into());
    upsert(&cache, &request);
    assert!(
        status().is_some_and(|status| status.unseen().is_some()),
        "an older one"
    );
    request.metadata.resource_version = Some("10".into());
    upsert(&cache, &request);
    let status = status().unwrap();
    assert_eq!((&*status.resource_version, status.unseen()), ("9", None));
}

#[test]
fn a_relist_that_shows_an_older_request_drops_our_status() {
    let cache = Cache::default();
    let mut request = request("a", "1", "s", 0);
    request.metadata.resource_version = Some("5".into());
    upsert(&cache, &request);
    let write = || {
        cache.update(&key("a"), "1", |state| {
            state.status = Some(WrittenStatus::new(
                "9".to_owned(),
                &IdTokenRequestStatus::default(),
            ));
            state.handled_renew = Some("now".to_owned());
        });
    };
    let is_kept = || {
        let state = state(&cache, "a");
        (state.status.is_some(), state.handled_renew.is_some())
    };
    write();
    assert!(upsert(&cache, &request).is_empty(), "a lagging watch");
    cache.begin_request_relist("shop");
    write();
    assert!(
        upsert(&cache, &request).is_empty(),
        "written since the list began"
    );
    assert_eq!(is_kept(), (true, true));
    cache.begin_request_relist("shop");
    assert_eq!(upsert(&cache, &request), ["a"], "etcd was restored");
    assert_eq!(is_kept(), (false, false));
}

#[test]
fn a_new_request_shows_that_its_namespace_is_another_one() {
    let cache = Cache::default();
    let mut request = request("a", "1", "s", 0);
    upsert(&cache, &request);
    cache.note_terminating("shop");
    request.metadata.generation = Some(2);
    upsert(&cache, &request);
    assert!(cache.is_terminating("shop"), "a change is possible to the end");
    request.metadata.uid = Some("2".into());
    upsert(&cache, &request);
    assert!(!cache.is_terminating("shop"));
}

#[test]
fn requests_are_counted_by_grant_once_each_was_reconciled() {
    let cache = Cache::default();
    upsert(&cache, &request("a", "1", "a", 0));
    upsert(&cache, &request("b", "2", "b", 0));
    cache.record_allowing_grants(&key("a"), "1", &["g".to_owned(), "h".to_owned()]);
    assert_eq!(cache.allowed_request_counts(), None);
    cache.record_allowing_grants(&key("b"), "2", &["g".to_owned()]);
    let counts = cache.allowed_request_counts().unwrap();
    assert_eq!(counts, [("g".to_owned(), 2), ("h".to_owned(), 1)].into());
}

#[test]
fn a_request_takes_little_memory() {
    assert!(size_of::<requests::CachedRequest>() <= 296);
}

/// The request with a status that records the Secret `secret`.
fn recording(mut request: IdTokenRequest, secret: Option<String>) -> IdTokenRequest {
    let secret = secret.map(|name| SecretStatus {
        name,
        ..SecretStatus::default()
    });
    request.status = Some(IdTokenRequestStatus {
        secret,
        ..IdTokenRequestStatus::default()
    });
    request
}

/// The Secret `name`, which names a request.
fn naming(request: &str, uid: &str, version: usize) -> SecretSummary {
    SecretSummary {
        resource_version: version.to_string(),
        request: Some(request.to_owned()),
        request_uid: Some(uid.to_owned()),
        managed: true,
        ..SecretSummary::default()
    }
}

#[test]
fn an_older_request_does_not_take_a_secret_from_the_request_that_holds_it() {
    for is_restarted in [false, true] {
        let cache = Cache::default();
        let young = recording(request("young", "2", "s", 100), Some("s".to_owned()));
        let mut old = request("old", "1", "s", 0);
        old.metadata.generation = Some(2);
        cache.upsert_secret(key("s"), &naming("young", "2", 1));
        let affected = match is_restarted {
            // The order of a list.
            true => [upsert(&cache, &old), upsert(&cache, &young)].concat(),
            false => [upsert(&cache, &young), upsert(&cache, &old)].concat(),
        };
        assert_eq!(
            affected.last().map(String::as_str),
            Some(["old", "young"][usize::from(is_restarted)])
        );
        let winner = cache.winning_claimant(&key("s"), "1").unwrap();
        assert_eq!(winner.request, key("young"), "restarted: {is_restarted}");
        assert_eq!(cache.winning_claimant(&key("s"), "2"), None);
        // When it no longer wants it, the older one is reconciled.
        let mut renamed = recording(request("young", "2", "t", 100), Some("s".to_owned()));
        renamed.metadata.generation = Some(2);
        assert_eq!(upsert(&cache, &renamed), ["old", "young"]);
        assert_eq!(cache.winning_claimant(&key("s"), "1"), None);
    }
}

#[test]
fn a_status_that_decides_who_wins_is_a_reason_to_reconcile_both() {
    let cache = Cache::default();
    upsert(&cache, &request("old", "1", "s", 0));
    upsert(&cache, &request("young", "2", "s", 100));
    let young = recording(request("young", "2", "s", 100), Some("s".to_owned()));
    assert_eq!(upsert(&cache, &young), ["old", "young"]);
    assert!(upsert(&cache, &young).is_empty());
    assert_eq!(
        cache.winning_claimant(&key("s"), "1").unwrap().request,
        key("young")
    );
}

/// A change of the requests in one namespace. Names, UIDs and targets are few, so that they collide.
#[derive(Clone, Debug)]
enum Change {
    Upsert {
        name: u8,
        shown: Shown,
    },
    Remove {
        name: u8,
    },
    /// A relist that shows these requests unchanged.
    Relist {
        names: Vec<u8>,
    },
    /// A Secret names a request of this name and UID.
    Secret {
        target: u8,
        name: u8,
        uid: u8,
    },
}

fn change() -> impl Strategy<Value = Change> {
    let shown = (0..3_u8, 0..3_u8, proptest::option::of(0..3_u8));
    prop_oneof![
        4 => (0..4_u8, shown).prop_map(|(name, shown)| Change::Upsert { name, shown }),
        1 => (0..4_u8).prop_map(|name| Change::Remove { name }),
        1 => proptest::collection::vec(0..4_u8, 0..4).prop_map(|names| Change::Relist { names }),
        2 => (0..3_u8, 0..4_u8, 0..3_u8).prop_map(|(target, name, uid)| Change::Secret { target, name, uid }),
    ]
}

/// A request's UID, target, and the Secret in its status. A UID encodes the time of creation.
type Shown = (u8, u8, Option<u8>);

/// The model: the requests, and the name and UID that each Secret has.
#[derive(Clone, Debug, Default)]
struct Model {
    requests: BTreeMap<u8, Shown>,
    secrets: BTreeMap<u8, (u8, u8)>,
}

fn uid(name: u8, uid: u8) -> u8 {
    uid * 4 + name
}

fn shown(name: u8, (uid_, target, recorded): Shown) -> IdTokenRequest {
    let uid = uid(name, uid_);
    let target = format!("s{target}");
    let mut object = request(&name.to_string(), &uid.to_string(), &target, i64::from(uid / 2));
    // The API server raises the generation with each change of the target.
    object.metadata.generation = Some(target.bytes().map(i64::from).sum());
    recording(object, recorded.map(|target| format!("s{target}")))
}

impl Model {
    /// The requests that claim the Secret `target`, with their UIDs, the winner first: who holds it, by status and by annotations; then by
    /// age.
    fn claimants(&self, target: u8) -> Vec<u8> {
        let mut all: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, request)| request.1 == target)
            .map(|(name, request)| (*name, uid(*name, request.0), request.2 == Some(target)))
            .collect();
        let is_proven = |recorded: bool| recorded || !all.iter().any(|(.., recorded)| *recorded);
        let named = self
            .secrets
            .get(&target)
            .map(|(name, of)| (*name, uid(*name, *of)));
        let has_uid = |of: u8, recorded: bool| is_proven(recorded) && named.is_some_and(|(_, uid)| uid == of);
        let by_uid = all.iter().any(|(_, uid, recorded)| has_uid(*uid, *recorded));
        let is_holder = |name: u8, uid: u8, recorded: bool| match by_uid {
            true => has_uid(uid, recorded),
            false => is_proven(recorded) && named.is_some_and(|(named, _)| named == name),
        };
        let mut ranked: Vec<_> = all
            .iter()
            .map(|(name, uid, recorded)| {
                (
                    !is_holder(*name, *uid, *recorded),
                    !recorded,
                    uid / 2,
                    uid.to_string(),
                    *name,
                )
            })
            .collect();
        ranked.sort();
        all.clear();
        ranked.into_iter().map(|(.., name)| name).collect()
    }

    fn winner(&self, target: u8) -> Option<u8> {
        self.claimants(target).first().copied()
    }
}

proptest! {
    #[test]
    fn the_cache_agrees_with_a_naive_model(changes in proptest::collection::vec(change(), 1..40)) {
        let cache = Cache::default();
        let mut model = Model::default();
        for (version, change) in changes.into_iter().enumerate() {
            let before = model.clone();
            let is_secret = matches!(change, Change::Secret { .. });
            let mut affected = match change {
                Change::Upsert { name, shown: request } => {
                    model.requests.insert(name, request);
                    cache.upsert_request(shown(name, request))
                }
                Change::Remove { name } => {
                    model.requests.remove(&name);
                    cache.remove_request(&key(&name.to_string()))
                }
                Change::Relist { names } => {
                    model.requests.retain(|name, _| names.contains(name));
                    cache.begin_request_relist("");
                    for (name, request) in &model.requests {
                        prop_assert_eq!(cache.upsert_request(shown(*name, *request)), []);
                    }
                    let ended = cache.end_request_relist("");
                    let mut gone = ended.gone;
                    gone.sort();
                    let expected: Vec<_> = before
                        .requests
                        .keys()
                        .filter(|name| !model.requests.contains_key(name))
                        .map(|name| key(&name.to_string()))
                        .collect();
                    prop_assert_eq!(gone, expected);
                    ended.affected
                }
                Change::Secret { target, name, uid: of } => {
                    model.secrets.insert(target, (name, of));
                    let secret = naming(&name.to_string(), &uid(name, of).to_string(), version);
                    cache.upsert_secret(key(&format!("s{target}")), &secret);
                    // The watch reconciles all claimants.
                    Vec::new()
                }
            };
            // Affected are the requests whose spec changed, all others whose Secret the winner gave up, and those that win or lose one. Those
            // that are gone need no reconcile.
            affected.retain(|key| cache.has_request(key));
            affected.sort();
            affected.dedup();
            let spec = |model: &Model, name: u8| model.requests.get(&name).map(|request| (request.0, request.1));
            let gave_up = |target: u8| {
                let mut all = before.requests.iter();
                all.any(|(name, request)| {
                    request.1 == target
                        && before.winner(target) == Some(*name)
                        && spec(&model, *name) != spec(&before, *name)
                })
            };
            let wins_or_loses = |name: u8| {
                (0..3).any(|target| {
                    let (old, new) = (before.winner(target), model.winner(target));
                    old != new && (old == Some(name) || new == Some(name))
                })
            };
            let expected: Vec<_> = model
                .requests
                .iter()
                .filter(|(name, request)| {
                    spec(&before, **name) != spec(&model, **name) || gave_up(request.1) || wins_or_loses(**name)
                })
                .map(|(name, _)| key(&name.to_string()))
                .collect();
            if !is_secret {
                prop_assert_eq!(affected, expected);
            }
            for target in 0..3 {
                let secret = key(&format!("s{target}"));
                let mut claimants: Vec<_> =
                    model.claimants(target).iter().map(|name| key(&name.to_string())).collect();
                let winner = claimants.first().cloned();
                claimants.sort();
                let mut found = cache.claimants(&secret);
                found.sort();
                prop_assert_eq!(&found, &claimants);
                for (name, request) in &model.requests {
                    let uid = uid(*name, request.0).to_string();
                    let found = cache.winning_claimant(&secret, &uid).map(|winner| winner.request);
                    let expected = winner.clone().filter(|winner| *winner != key(&name.to_string()));
                    prop_assert_eq!(found, expected);
                }
            }
            // A restart gives the same answers, whatever the order of its lists.
            let restarted = Cache::default();
            for (name, request) in model.requests.iter().rev() {
                restarted.upsert_request(shown(*name, *request));
            }
            for (target, (name, of)) in &model.secrets {
                let secret = naming(&name.to_string(), &uid(*name, *of).to_string(), 1);
                restarted.upsert_secret(key(&format!("s{target}")), &secret);
            }
            for target in 0..3 {
                let secret = key(&format!("s{target}"));
                let winner = |cache: &Cache| cache.winning_claimant(&secret, "").map(|winner| winner.request);
                prop_assert_eq!(winner(&restarted), winner(&cache));
            }
            prop_assert_eq!(cache.len().0, model.requests.len());
        }
    }
}
