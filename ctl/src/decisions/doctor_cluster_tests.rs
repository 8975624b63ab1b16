use serde_json::json;

use super::*;
use crate::decisions::checkup::Level;

fn level(check: &Check) -> Level {
    check.level
}

fn levels(checks: &[Check]) -> Vec<Level> {
    checks.iter().map(level).collect()
}

#[test]
fn a_definition_is_absent_older_or_as_the_plugins() {
    let crd = |fields: &[&str], established: &str| {
        let properties: serde_json::Map<String, Value> = fields
            .iter()
            .map(|field| ((*field).to_owned(), json!({"type": "string"})))
            .collect();
        json!({
            "spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {"spec": {"items": {"properties": properties}}}}}}]},
            "status": {"conditions": [{"type": "Established", "status": established}]},
        })
    };
    let own = crd(&["audience", "suspend"], "True");
    let check = |found: Seen<Option<Value>>| definition("x.idtoken.dev", &found, &own);
    assert_eq!(
        level(&check(Ok(Some(crd(&["audience", "suspend", "newer"], "True"))))),
        Level::Ok
    );
    let older = check(Ok(Some(crd(&["audience"], "True"))));
    assert_eq!(level(&older), Level::Warning);
    assert!(older.message.ends_with("it lacks spec.suspend"), "{older:?}");
    assert_eq!(
        level(&check(Ok(Some(crd(&["audience"], "False"))))),
        Level::Failure
    );
    assert_eq!(level(&check(Ok(None))), Level::Failure);
    assert_eq!(level(&check(Err("you may not".to_owned()))), Level::Unseen);
}

#[test]
fn each_policy_has_to_be_bound_to_deny() {
    let policy = |kind: &str| -> ValidatingAdmissionPolicy {
        serde_json::from_value(json!({"metadata": {"name": kind, "labels": {POLICY_LABEL: kind}}})).unwrap()
    };
    let binding = |kind: &str, action: &str| -> ValidatingAdmissionPolicyBinding {
        serde_json::from_value(json!({
            "metadata": {"name": kind}, "spec": {"policyName": kind, "validationActions": [action]},
        }))
        .unwrap()
    };
    let all: Vec<_> = POLICIES.iter().map(|kind| policy(kind)).collect();
    let bound: Vec<_> = POLICIES.iter().map(|kind| binding(kind, "Deny")).collect();
    assert_eq!(level(&policies(&Ok((all.clone(), bound.clone())))), Level::Ok);
    let mut audited = bound.clone();
    audited[0] = binding(POLICIES[0], "Audit");
    for found in [
        (all[1..].to_vec(), bound.clone()),
        (all.clone(), bound[1..].to_vec()),
        (all, audited),
    ] {
        let check = policies(&Ok(found));
        assert_eq!(level(&check), Level::Warning);
        assert!(check.message.ends_with("federation-authors"), "{check:?}");
    }
    assert_eq!(level(&policies(&Err(String::new()))), Level::Unseen);
}

fn grant(name: &str, from: &str) -> Grant {
    let text =
        format!("[{{name: {name}, from: [{from}], to: [{{serviceAccounts: ['1'], audiences: [a]}}]}}]");
    idtoken_operator::grants::file::parse_file(&text)
        .unwrap()
        .remove(0)
}

#[test]
fn grants_for_nothing_and_for_everything_are_told() {
    let namespaces: Namespaces = ["shop", "yard"]
        .map(|name| {
            (
                name.to_owned(),
                BTreeMap::from([("team".to_owned(), name.to_owned())]),
            )
        })
        .into();
    let told = |froms: &[&str]| {
        let all = froms.iter().map(|from| grant("g", from)).collect();
        grants(&Ok((all, Vec::new())), &Ok(namespaces.clone()))
    };
    assert_eq!(levels(&told(&["{namespace: shop}"])), [Level::Ok]);
    for (from, says) in [
        ("{namespace: gone}", "no namespace that exists matches file:g"),
        (
            "{namespaceSelector: {matchLabels: {team: gone}}}",
            "no namespace that exists matches file:g",
        ),
        ("{allNamespaces: true}", "every namespace matches file:g"),
        (
            "{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}}",
            "every namespace matches file:g",
        ),
    ] {
        let checks = told(&[from]);
        assert_eq!(levels(&checks), [Level::Warning], "{checks:?}");
        assert_eq!(checks[0].message, says);
    }
    assert_eq!(
        levels(&told(&["{namespaceSelector: {}}"])),
        [Level::Failure, Level::Warning]
    );
    assert_eq!(levels(&told(&[])), [Level::Warning]);
    let blind = grants(
        &Ok((vec![grant("g", "{namespace: gone}")], Vec::new())),
        &Err("no".to_owned()),
    );
    assert_eq!(levels(&blind), [Level::Unseen]);
    let newer = grants(
        &Ok((Vec::new(), vec![("n\u{1b}".to_owned(), "x".to_owned())])),
        &Ok(namespaces.clone()),
    );
    assert_eq!(levels(&newer), [Level::Failure]);
    assert!(!newer[0].message.contains('\u{1b}'));
}

fn request(namespace: &str, name: &str, ready: Option<(&str, &str)>) -> IdTokenRequest {
    let conditions = ready.map_or(json!([]), |(status, reason)| {
        json!([{"type": "Ready", "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-15T11:00:00Z"}])
    });
    serde_json::from_value(json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {"name": name, "namespace": namespace, "generation": 1, "creationTimestamp": "2026-01-15T11:00:00Z"},
        "spec": {"audience": "a", "serviceAccount": "1"},
        "status": {"observedGeneration": 1, "conditions": conditions},
    }))
    .unwrap()
}

fn release(args: &[&str], selected: Option<Seen<BTreeSet<(String, String)>>>) -> Release {
    let deployment = json!({
        "metadata": {"name": "operator", "namespace": "ops"},
        "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "idtoken-operator", "args": args}]}}},
    });
    Release {
        deployment: serde_json::from_value(deployment).unwrap(),
        pods: Ok(Vec::new()),
        lease: Ok(None),
        metrics: Vec::new(),
        health: Vec::new(),
        identity: Default::default(),
        selected,
    }
}

#[test]
fn requests_that_no_release_serves_or_that_are_not_ready() {
    let now = "2026-01-15T12:00:00Z".parse().unwrap();
    let told = |all: Vec<IdTokenRequest>, releases: Vec<Release>| requests(&Ok((all, 0)), &Ok(releases), now);
    let ready = || request("shop", "a", Some(("True", "Issued")));
    let everywhere = || release(&["run"], None);
    assert_eq!(levels(&told(vec![ready()], vec![everywhere()])), [Level::Ok]);
    let elsewhere = told(vec![ready()], vec![release(&["run", "--namespace=yard"], None)]);
    assert_eq!(elsewhere[0].message, "no release serves shop/a");
    assert_eq!(levels(&elsewhere), [Level::Failure]);
    assert_eq!(levels(&told(vec![ready()], Vec::new())), [Level::Failure]);
    let shard = |names: &[&str]| {
        let names = names
            .iter()
            .map(|name| ("shop".to_owned(), (*name).to_owned()))
            .collect();
        release(&["run", "--selector=shard=a"], Some(Ok(names)))
    };
    assert_eq!(levels(&told(vec![ready()], vec![shard(&["a"])])), [Level::Ok]);
    assert_eq!(
        levels(&told(vec![ready()], vec![shard(&["b"])])),
        [Level::Failure]
    );
    let blind = release(&["run", "--selector=shard=a"], Some(Err(String::new())));
    assert_eq!(levels(&told(vec![ready()], vec![blind])), [Level::Ok]);

    let denied = request("shop", "b", Some(("False", "NotGranted")));
    let mut suspended = request("shop", "c", Some(("False", "Suspended")));
    suspended.spec.suspend = Some(true);
    let checks = told(
        vec![ready(), denied, suspended, request("shop", "d", None)],
        vec![everywhere()],
    );
    let messages: Vec<&str> = checks.iter().map(|check| check.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "1 not ready, NotGranted: shop/b",
            "1 not ready, no status: shop/d"
        ]
    );
    let undecodable = requests(&Ok((Vec::new(), 2)), &Ok(Vec::new()), now);
    assert_eq!(levels(&undecodable), [Level::Failure]);
    assert_eq!(
        levels(&requests(&Err(String::new()), &Ok(Vec::new()), now)),
        [Level::Unseen]
    );
}

#[test]
fn monitors_are_missed_only_where_they_could_be() {
    assert_eq!(level(&prometheus(&Ok(None))), Level::Ok);
    assert_eq!(level(&prometheus(&Ok(Some(Vec::new())))), Level::Warning);
    assert_eq!(
        level(&prometheus(&Ok(Some(vec!["ServiceMonitor ops/x".to_owned()])))),
        Level::Ok
    );
    assert_eq!(level(&prometheus(&Err(String::new()))), Level::Unseen);
}
