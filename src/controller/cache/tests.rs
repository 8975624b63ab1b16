use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::*;
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::api::{LABEL_MANAGED_BY, MANAGED_BY};
use crate::controller::cache::request_state::WrittenStatus;
use crate::fixtures::{at, object};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn secret(version: &str) -> SecretSummary {
    SecretSummary {
        resource_version: version.into(),
        ..SecretSummary::default()
    }
}

/// A request named `name` for the Secret `target`, created `created` seconds after another.
fn wanting(name: &str, uid: &str, target: &str, created: i64) -> IdTokenRequest {
    let mut request = object(json!({"target": {"name": target}}));
    request.metadata.name = Some(name.into());
    request.metadata.uid = Some(uid.into());
    request.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(created)));
    request
}

fn names(keys: Vec<ObjectKey>) -> Vec<String> {
    keys.iter().map(|key| key.name().to_owned()).collect()
}

fn applied(index: &Cache, request: &IdTokenRequest) -> Vec<String> {
    let namespace = request.metadata.namespace.as_deref().unwrap();
    let key = ObjectKey::new(namespace, request.metadata.name.as_deref().unwrap());
    names(index.request_applied(&key, request))
}

fn version(index: &Cache, name: &str) -> Option<String> {
    index.secret(&key(name)).map(|meta| meta.resource_version)
}

#[test]
fn a_lagging_watch_does_not_undo_our_write() {
    let index = Cache::default();
    assert!(index.secret_applied(key("s"), &secret("5")));
    index.secret_written(key("s"), &secret("9"));
    assert!(!index.secret_applied(key("s"), &secret("5")), "seen before");
    assert!(
        !index.secret_applied(key("s"), &secret("8")),
        "older than our write"
    );
    assert_eq!(version(&index, "s").as_deref(), Some("9"));
    assert!(!index.secret_deleted(&key("s"), "8"), "deleted before our write");
    assert!(!index.secret_applied(key("s"), &secret("9")), "our own write");
    assert!(index.secret_applied(key("s"), &secret("10")), "somebody else's");
    assert_eq!(version(&index, "s").as_deref(), Some("10"));
}

#[test]
fn a_late_answer_does_not_undo_the_watch() {
    let index = Cache::default();
    assert!(index.secret_applied(key("s"), &secret("10")));
    index.secret_written(key("s"), &secret("9"));
    assert_eq!(version(&index, "s").as_deref(), Some("10"));
    assert!(index.secret_deleted(&key("s"), "11"));
    index.secret_written(key("s"), &secret("10"));
    assert_eq!(version(&index, "s"), None, "deleted before the answer came");
    index.secret_written(key("s"), &secret("12"));
    assert_eq!(version(&index, "s").as_deref(), Some("12"));
    // What the watch shows of another namespace says nothing.
    let elsewhere = ObjectKey::new("bank", "s");
    index.secret_written(elsewhere.clone(), &secret("8"));
    assert!(index.secret(&elsewhere).is_some());
}

#[test]
fn a_list_that_began_before_our_write_does_not_undo_it() {
    let index = Cache::default();
    index.secrets_listing("");
    index.secret_written(key("s"), &secret("9"));
    assert!(index.secrets_listed("").is_empty());
    assert_eq!(version(&index, "s").as_deref(), Some("9"));
    // Nor does one that shows what was there before.
    index.secrets_listing("");
    index.secret_written(key("s"), &secret("15"));
    assert!(!index.secret_applied(key("s"), &secret("9")));
    assert!(index.secrets_listed("").is_empty());
    assert_eq!(version(&index, "s").as_deref(), Some("15"));
}

#[test]
fn a_list_that_began_after_our_write_decides() {
    let index = Cache::default();
    index.secret_written(key("gone"), &secret("9"));
    index.secret_written(key("stays"), &secret("10"));
    index.secrets_listing("");
    assert!(!index.secret_applied(key("stays"), &secret("10")));
    assert_eq!(index.secrets_listed(""), [(key("gone"), secret("9"))]);
    assert_eq!(version(&index, "gone"), None);
    assert_eq!(version(&index, "stays").as_deref(), Some("10"));
    // One that is broken off is begun anew.
    index.secrets_listing("");
    index.secret_written(key("new"), &secret("20"));
    index.secrets_listing("");
    assert!(!index.secret_applied(key("stays"), &secret("10")));
    assert_eq!(index.secrets_listed("").len(), 1);
    // The end of a list without its beginning says nothing.
    assert!(index.secrets_listed("").is_empty());
    assert_eq!(index.sizes(), (0, 1));
}

#[test]
fn a_list_is_believed_even_where_it_is_older() {
    let index = Cache::default();
    index.secret_applied(key("s"), &secret("50"));
    index.secrets_listing("");
    assert!(index.secret_applied(key("s"), &secret("20")), "etcd was restored");
    assert!(index.secrets_listed("").is_empty());
    assert_eq!(version(&index, "s").as_deref(), Some("20"));
    // And what is written then is not taken for older than what was shown before.
    index.secret_written(key("t"), &secret("21"));
    assert_eq!(version(&index, "t").as_deref(), Some("21"));
    assert!(
        !index.secret_applied(key("s"), &secret("19")),
        "a watch goes forward"
    );
}

#[test]
fn what_turned_out_missing_is_forgotten() {
    let index = Cache::default();
    index.secret_written(key("s"), &secret("9"));
    index.secret_missing(&key("s"));
    assert_eq!(version(&index, "s"), None);
    assert!(!index.secret_deleted(&key("s"), "10"));
}

#[test]
fn the_projection_holds_our_annotations() {
    let meta: ObjectMeta = serde_json::from_value(json!({
        "uid": "u", "resourceVersion": "5",
        "labels": {(LABEL_MANAGED_BY): MANAGED_BY},
        "annotations": {
            (annotations::REQUEST): "billing", (annotations::REQUEST_UID): "r", (annotations::TOKEN_HASH): "t",
            (annotations::RENDER_HASH): "h", (annotations::DIGEST): "d", (annotations::ADOPTED): "true",
            (annotations::ISSUED): "2027-01-15T08:00:00Z", (annotations::EXPIRES): "no time",
        },
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "o"}],
    }))
    .unwrap();
    let text = |text: &str| Some(text.to_owned());
    let expected = SecretSummary {
        handled_renew: None,
        uid: "u".into(),
        resource_version: "5".into(),
        request: text("billing"),
        request_uid: text("r"),
        token_hash: text("t"),
        render_hash: text("h"),
        digest: text("d"),
        issued: Some(at(1_800_000_000)),
        expires: None,
        managed: true,
        adopted: true,
    };
    assert_eq!(SecretSummary::from(&meta), expected);
    let labelled_otherwise: ObjectMeta =
        serde_json::from_value(json!({"labels": {(LABEL_MANAGED_BY): "Helm"}})).unwrap();
    assert_eq!(SecretSummary::from(&labelled_otherwise), SecretSummary::default());
}

#[test]
fn only_real_changes_of_a_request_wake_it() {
    let index = Cache::default();
    let mut request = wanting("a", "1", "s", 0);
    assert_eq!(applied(&index, &request), ["a"]);
    assert!(applied(&index, &request).is_empty(), "a relist");
    request.metadata.resource_version = Some("99".into());
    request.metadata.labels = Some([("l".to_owned(), "v".to_owned())].into());
    request.status = Some(IdTokenRequestStatus::default());
    assert!(applied(&index, &request).is_empty(), "our own status, a label");
    let mark = |request: &mut IdTokenRequest, key: &str| {
        request
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(key.into(), "now".into());
    };
    mark(&mut request, "theirs");
    assert!(applied(&index, &request).is_empty(), "another annotation");
    mark(&mut request, annotations::RENEW);
    assert_eq!(applied(&index, &request), ["a"], "a renewal is asked for");
    request.metadata.generation = Some(2);
    assert_eq!(applied(&index, &request), ["a"], "the spec changed");
    request.metadata.uid = Some("2".into());
    assert_eq!(applied(&index, &request), ["a"], "deleted and made anew");
    assert_eq!(names(index.claimants(&key("s"))), ["a"]);
    assert_eq!(index.sizes(), (1, 0));
}

#[test]
fn the_older_request_keeps_the_secret_then_the_lower_uid() {
    let index = Cache::default();
    applied(&index, &wanting("young", "1", "s", 100));
    assert_eq!(index.rival(&key("s"), "1"), None);
    applied(&index, &wanting("old-b", "3", "s", 0));
    applied(&index, &wanting("old-a", "2", "s", 0));
    applied(&index, &wanting("other", "0", "t", 0));
    assert_eq!(names(index.claimants(&key("s"))), ["old-a", "old-b", "young"]);
    assert_eq!(index.rival(&key("s"), "2"), None);
    for uid in ["1", "3"] {
        assert_eq!(index.rival(&key("s"), uid).unwrap().request, key("old-a"));
    }
    assert!(index.wants(&key("young"), &key("s")) && !index.wants(&key("other"), &key("s")));
    assert_eq!(index.rival(&key("nobody's"), "1"), None);
}

#[test]
fn whoever_waits_for_a_secret_is_woken_when_it_is_free() {
    let index = Cache::default();
    let old = wanting("old", "1", "s", 0);
    applied(&index, &old);
    applied(&index, &wanting("young", "2", "s", 100));
    assert_eq!(index.request_deleted(&key("old")), [key("young")]);
    assert!(index.request_deleted(&key("old")).is_empty());
    assert_eq!(index.rival(&key("s"), "2"), None);

    // By a renamed target as well.
    applied(&index, &old);
    let mut renamed = wanting("old", "1", "t", 0);
    renamed.metadata.generation = Some(2);
    let mut woken = applied(&index, &renamed);
    woken.sort();
    assert_eq!(woken, ["old", "young"]);
    assert_eq!(names(index.claimants(&key("t"))), ["old"]);

    // And by a deletion that only a new list shows.
    applied(&index, &old);
    let alive: HashSet<ObjectKey> = [key("young")].into();
    assert_eq!(index.requests_listed("", &alive), [key("young")]);
    assert_eq!(index.request_deleted(&key("young")), Vec::new());
    assert_eq!(index.sizes(), (0, 0));
    assert!(index.claimants(&key("s")).is_empty());
}

#[test]
fn memory_lives_as_long_as_the_request() {
    let index = Cache::default();
    let remember = |uid: &str| index.remember(&key("a"), uid, |memory| memory.repairs.push(at(0)));
    let knows = |uid: &str| !index.memory(&key("a"), uid).repairs.is_empty();
    remember("1");
    assert!(!knows("1"), "of a request that is not there");
    let mut request = wanting("a", "1", "s", 0);
    applied(&index, &request);
    remember("1");
    request.metadata.generation = Some(2);
    applied(&index, &request);
    assert!(knows("1"), "a new generation");
    request.metadata.uid = Some("2".into());
    applied(&index, &request);
    assert!(!knows("1") && !knows("2"));
    remember("1");
    assert!(!knows("1"), "a late end of the old one's work");
    remember("2");
    assert!(index.is_current(&key("a"), "2") && !index.is_current(&key("a"), "1"));
    index.request_deleted(&key("a"));
    assert!(!index.is_current(&key("a"), "2"));
    assert!(!knows("2"));
}

#[test]
fn a_list_of_one_namespace_says_nothing_of_another() {
    let index = Cache::default();
    let other = |name: &str| ObjectKey::new("other", name);
    for key in [key("kept"), key("gone"), other("kept")] {
        assert!(index.secret_applied(key, &secret("5")));
    }
    index.secrets_listing("shop");
    index.secrets_listing("other");
    assert!(!index.secret_applied(key("kept"), &secret("5")));
    assert_eq!(index.secrets_listed("shop"), [(key("gone"), secret("5"))]);
    // A list is believed also where it shows an older version; one that is over is not asked any more.
    assert!(index.secret_applied(other("kept"), &secret("4")));
    assert!(!index.secret_applied(key("kept"), &secret("4")));
    assert!(index.secrets_listed("other").is_empty());

    let mut far = wanting("far", "2", "far", 0);
    far.metadata.namespace = Some("other".into());
    applied(&index, &far);
    applied(&index, &wanting("near", "1", "near", 0));
    index.requests_listed("shop", &HashSet::new());
    assert!(!index.is_current(&key("near"), "1"));
    assert!(index.is_current(&other("far"), "2"));
}

#[test]
fn our_status_is_kept_until_the_watch_shows_it() {
    let index = Cache::default();
    let mut request = wanting("a", "1", "s", 0);
    request.metadata.resource_version = Some("5".into());
    applied(&index, &request);
    let written = || index.memory(&key("a"), "1").status;
    index.remember(&key("a"), "1", |memory| {
        memory.status = Some(WrittenStatus::new(
            "9".to_owned(),
            IdTokenRequestStatus::default(),
        ));
    });
    request.metadata.resource_version = Some("8".into());
    applied(&index, &request);
    assert!(
        written().is_some_and(|written| written.unseen.is_some()),
        "an older one"
    );
    request.metadata.resource_version = Some("10".into());
    applied(&index, &request);
    assert_eq!(written().map(|written| written.unseen), Some(None));
}
