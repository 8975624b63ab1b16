use super::*;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn secret(version: &str) -> SecretSummary {
    SecretSummary {
        resource_version: version.into(),
        ..SecretSummary::default()
    }
}

fn version(secrets: &Secrets, name: &str) -> Option<String> {
    secrets.get(&key(name)).map(|summary| summary.resource_version)
}

#[test]
fn a_lagging_watch_does_not_undo_our_write() {
    let mut secrets = Secrets::default();
    assert!(secrets.upsert(key("s"), &secret("5"), true));
    secrets.record_write(key("s"), &secret("9"));
    assert!(!secrets.upsert(key("s"), &secret("5"), true), "seen before");
    assert!(
        !secrets.upsert(key("s"), &secret("8"), true),
        "older than our write"
    );
    assert_eq!(version(&secrets, "s").as_deref(), Some("9"));
    secrets.delete(&key("s"), "8");
    assert_eq!(
        version(&secrets, "s").as_deref(),
        Some("9"),
        "deleted before our write"
    );
    assert!(!secrets.upsert(key("s"), &secret("9"), true), "our own write");
    assert!(secrets.upsert(key("s"), &secret("10"), true), "another client's");
    assert_eq!(version(&secrets, "s").as_deref(), Some("10"));
}

#[test]
fn a_late_response_does_not_undo_the_watch() {
    let mut secrets = Secrets::default();
    assert!(secrets.upsert(key("s"), &secret("10"), true));
    secrets.record_write(key("s"), &secret("9"));
    assert_eq!(version(&secrets, "s").as_deref(), Some("10"));
    secrets.delete(&key("s"), "11");
    assert_eq!(version(&secrets, "s"), None);
    secrets.record_write(key("s"), &secret("10"));
    assert_eq!(version(&secrets, "s"), None, "deleted before the response came");
    secrets.record_write(key("s"), &secret("12"));
    assert_eq!(version(&secrets, "s").as_deref(), Some("12"));
    // What the watch shows of one namespace says nothing about another.
    let elsewhere = ObjectKey::new("bank", "s");
    secrets.record_write(elsewhere.clone(), &secret("8"));
    assert!(secrets.get(&elsewhere).is_some());
}

#[test]
fn a_list_that_began_before_our_write_does_not_undo_it() {
    let mut secrets = Secrets::default();
    secrets.begin_relist("");
    secrets.record_write(key("s"), &secret("9"));
    assert!(secrets.end_relist("").is_empty());
    assert_eq!(version(&secrets, "s").as_deref(), Some("9"));
    // Nor does one that shows what was there before.
    secrets.begin_relist("");
    secrets.record_write(key("s"), &secret("15"));
    assert!(!secrets.upsert(key("s"), &secret("9"), true));
    assert!(secrets.end_relist("").is_empty());
    assert_eq!(version(&secrets, "s").as_deref(), Some("15"));
}

#[test]
fn a_list_that_began_after_our_write_decides() {
    let mut secrets = Secrets::default();
    secrets.record_write(key("gone"), &secret("9"));
    secrets.record_write(key("stays"), &secret("10"));
    secrets.begin_relist("");
    assert!(!secrets.upsert(key("stays"), &secret("10"), true));
    assert_eq!(secrets.end_relist(""), [(key("gone"), secret("9"))]);
    assert_eq!(version(&secrets, "gone"), None);
    assert_eq!(version(&secrets, "stays").as_deref(), Some("10"));
    // One that fails halfway starts again.
    secrets.begin_relist("");
    secrets.record_write(key("new"), &secret("20"));
    secrets.begin_relist("");
    assert!(!secrets.upsert(key("stays"), &secret("10"), true));
    assert_eq!(secrets.end_relist("").len(), 1);
    // The end of a list without its start says nothing.
    assert!(secrets.end_relist("").is_empty());
    assert_eq!(secrets.len(), 1);
}

#[test]
fn a_list_is_right_even_if_it_is_older() {
    let mut secrets = Secrets::default();
    secrets.upsert(key("s"), &secret("50"), true);
    secrets.begin_relist("");
    assert!(secrets.upsert(key("s"), &secret("20"), true), "etcd was restored");
    assert!(secrets.end_relist("").is_empty());
    assert_eq!(version(&secrets, "s").as_deref(), Some("20"));
    // What is written then is not taken for older than what the watch showed before.
    secrets.record_write(key("t"), &secret("21"));
    assert_eq!(version(&secrets, "t").as_deref(), Some("21"));
    assert!(
        !secrets.upsert(key("s"), &secret("19"), true),
        "a watch goes forward"
    );
}

#[test]
fn a_list_of_one_namespace_says_nothing_of_another() {
    let mut secrets = Secrets::default();
    let other = |name: &str| ObjectKey::new("other", name);
    for key in [key("kept"), key("gone"), other("kept")] {
        assert!(secrets.upsert(key, &secret("5"), true));
    }
    secrets.begin_relist("shop");
    secrets.begin_relist("other");
    assert!(!secrets.upsert(key("kept"), &secret("5"), true));
    assert_eq!(secrets.end_relist("shop"), [(key("gone"), secret("5"))]);
    // A list is right also where it shows an older version; one that has ended does not count any more.
    assert!(secrets.upsert(other("kept"), &secret("4"), true));
    assert!(!secrets.upsert(key("kept"), &secret("4"), true));
    assert!(secrets.end_relist("other").is_empty());
}

#[test]
fn a_missing_secret_is_removed() {
    let mut secrets = Secrets::default();
    secrets.record_write(key("s"), &secret("9"));
    secrets.remove(&key("s"));
    assert_eq!(version(&secrets, "s"), None);
    secrets.delete(&key("s"), "10");
    assert_eq!(secrets.len(), 0);
}

#[test]
fn a_compact_summary_unpacks_to_the_same() {
    let full = SecretSummary {
        uid: "u".to_owned(),
        resource_version: "odd\n7".to_owned(),
        request: Some("a".to_owned()),
        request_uid: Some("\"\n\u{0}".to_owned()),
        token_hash: Some("t".to_owned()),
        render_hash: Some("r".to_owned()),
        token_fingerprint: Some("d".to_owned()),
        issued_at: "2026-01-01T00:00:00.123456789Z".parse().ok(),
        expires_at: "2026-01-01T01:00:00Z".parse().ok(),
        managed: true,
        adopted: true,
        handled_renew: Some("h".to_owned()),
    };
    for summary in [full, SecretSummary::default()] {
        let compact = CompactSummary::new(&summary);
        assert_eq!(compact.resource_version(), summary.resource_version);
        assert_eq!(compact.unpack(), Some(summary));
    }
}
