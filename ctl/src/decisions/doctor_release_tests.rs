use serde_json::{Value, json};

use super::*;
use crate::decisions::checkup::Level;

fn now() -> Timestamp {
    "2026-01-15T12:00:00Z".parse().unwrap()
}

fn deployment(args: &[&str], ready: i32) -> Value {
    json!({
        "metadata": {"name": "idtoken-operator", "namespace": "ops", "labels": {"app.kubernetes.io/version": "0.1.0"}},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "x"}},
            "template": {"spec": {
                "serviceAccountName": "operator",
                "containers": [{"name": "idtoken-operator", "args": args, "ports": [{"containerPort": 8080}]}],
                "volumes": [{"name": "google", "secret": {"secretName": "key"}}],
            }},
        },
        "status": {"readyReplicas": ready},
    })
}

fn lease(holder: &str, renewed: &str) -> Value {
    json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed}})
}

const ELECTS: [&str; 3] = ["run", "--leader-elect=true", "--lease-name=idtoken-operator"];

/// A release that is well.
fn well() -> Release {
    let pod = json!({"metadata": {"name": "operator-a"}, "status": {
        "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "idtoken-operator", "image": "", "imageID": "", "ready": true, "restartCount": 0}],
    }});
    Release {
        deployment: serde_json::from_value(deployment(&ELECTS, 2)).unwrap(),
        pods: Ok(vec![serde_json::from_value(pod).unwrap()]),
        lease: Ok(serde_json::from_value(lease("operator-a_1", "2026-01-15T11:59:55.000000Z")).unwrap()),
        metrics: vec![(
            "operator-a".to_owned(),
            Ok(doctor_metrics::parse("idtoken_leader 1\n")),
        )],
        health: vec![(
            "operator-a".to_owned(),
            Ok(doctor_health::parse("[+]caches ok\n[+]grants-file ok\n")),
        )],
        identity: IdentityFacts::default(),
        selected: None,
    }
}

fn levels(release: &Release, plugin: &str) -> Vec<(&'static str, Level)> {
    let all = checks(release, plugin, now());
    all.iter().map(|check| (check.area, check.level)).collect()
}

#[test]
fn a_release_that_is_well_and_what_can_be_wrong_with_it() {
    let good = levels(&well(), "0.1.0");
    assert!(good.iter().all(|(_, level)| *level == Level::Ok), "{good:?}");
    let broken = |change: &dyn Fn(&mut Release)| {
        let mut release = well();
        change(&mut release);
        let mut all = levels(&release, "0.1.0");
        all.retain(|one| !good.contains(one));
        all
    };
    let set = |value: Value| {
        move |release: &mut Release| release.deployment = serde_json::from_value(value.clone()).unwrap()
    };
    assert_eq!(
        broken(&set(deployment(&ELECTS, 1))),
        [("replicas", Level::Warning)]
    );
    assert_eq!(
        broken(&set(deployment(&ELECTS, 0))),
        [("replicas", Level::Failure)]
    );
    let mut scaled = deployment(&ELECTS, 0);
    scaled["spec"]["replicas"] = json!(0);
    assert_eq!(broken(&set(scaled)), [("replicas", Level::Failure)]);
    let pod = |status: Value| {
        move |release: &mut Release| {
            let mut full = json!({"name": "idtoken-operator", "image": "", "imageID": "", "ready": false, "restartCount": 3});
            full.as_object_mut()
                .unwrap()
                .extend(status.as_object().unwrap().clone());
            let ready = json!([{"type": "Ready", "status": "True"}]);
            let status = json!({"phase": "Running", "conditions": ready, "containerStatuses": [full]});
            let pod = json!({"metadata": {"name": "operator-a"}, "status": status});
            release.pods = Ok(vec![serde_json::from_value(pod).unwrap()]);
        }
    };
    assert_eq!(
        broken(&pod(
            json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}})
        )),
        [("pods", Level::Failure)]
    );
    assert_eq!(
        broken(&pod(
            json!({"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}})
        )),
        [("pods", Level::Warning)]
    );
    assert_eq!(
        broken(&|release: &mut Release| release.pods = Err("you may not".to_owned())),
        [("pods", Level::Unseen)]
    );
    let held = |holder: &'static str, renewed: &'static str| {
        move |release: &mut Release| {
            release.lease = Ok(serde_json::from_value(lease(holder, renewed)).unwrap())
        }
    };
    for (holder, renewed, level) in [
        ("", "2026-01-15T11:59:55.000000Z", Level::Failure),
        ("operator-a_1", "2026-01-15T11:50:00.000000Z", Level::Failure),
        ("another", "2026-01-15T11:59:55.000000Z", Level::Warning),
    ] {
        assert_eq!(
            broken(&held(holder, renewed)),
            [("leader", level)],
            "{holder} {renewed}"
        );
    }
    assert_eq!(
        broken(&|release: &mut Release| release.lease = Ok(None)),
        [("leader", Level::Failure)]
    );
    let unseen = broken(&|release: &mut Release| release.metrics[0].1 = Err("no route".to_owned()));
    assert_eq!(unseen, [("metrics", Level::Unseen)]);
    assert_eq!(levels(&well(), "0.2.0")[0], ("version", Level::Warning));
}

#[test]
fn the_version_is_what_runs_or_else_what_was_installed() {
    let of = |labels: Value, image: &str, metrics: &str| {
        let mut value = deployment(&ELECTS, 2);
        value["metadata"]["labels"] = labels;
        value["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
        let release = Release {
            deployment: serde_json::from_value(value).unwrap(),
            metrics: vec![("operator-a".to_owned(), Ok(doctor_metrics::parse(metrics)))],
            ..well()
        };
        version(&release, "0.1.0").level
    };
    let labels = |version: &str| json!({"app.kubernetes.io/version": version});
    let runs = "idtoken_build_info{version=\"0.2.0\"} 1\n";
    assert_eq!(
        of(labels("0.1.0"), "r.example:5000/i:0.1.0", runs),
        Level::Warning
    );
    assert_eq!(of(labels("0.2.0"), "r.example:5000/i:0.1.0", ""), Level::Warning);
    assert_eq!(of(json!({}), "r.example:5000/i:v0.1.0", ""), Level::Ok);
    assert_eq!(of(json!({}), "r.example:5000/i:0.2.0", ""), Level::Warning);
    assert_eq!(of(json!({}), "r.example:5000/i", ""), Level::Unseen);
    assert_eq!(of(json!({}), "r.example/i@sha256:0", ""), Level::Unseen);
}

#[test]
fn flags_say_whom_a_release_serves() {
    let read = |args: &[&str]| flags(&serde_json::from_value(deployment(args, 1)).unwrap());
    let found = read(&[
        "run",
        "--namespace=shop,yard",
        "--selector=shard=a",
        "--lease-name=x",
        "--leader-elect=true",
        "--lease-name=y",
    ]);
    assert_eq!(found.namespaces, ["shop", "yard"]);
    assert_eq!(found.selector.as_deref(), Some("shard=a"));
    assert_eq!(found.lease, Some(("ops".to_owned(), "y".to_owned())));
    assert_eq!(
        read(&["run", "--leader-elect=false", "--lease-name=x"]).lease,
        None
    );
    assert!(read(&["run"]).namespaces.is_empty());
    // The flag may be repeated, and a value may be an argument of its own.
    let several = [
        "run",
        "--namespace=shop,yard",
        "--namespace",
        "mall",
        "--leader-elect",
        "--lease-name=x",
    ];
    assert_eq!(read(&several).namespaces, ["shop", "yard", "mall"]);
    assert_eq!(read(&several).lease, Some(("ops".to_owned(), "x".to_owned())));
}

#[test]
fn what_a_pod_says_of_itself_is_shown_once() {
    let mut release = well();
    let file = "idtoken_leader 1\nidtoken_grants_file_failing_since_timestamp_seconds 1\n";
    release.metrics[0].1 = Ok(doctor_metrics::parse(file));
    let failing = "[+]caches ok\n[-]grants-file cannot be read since 1970-01-01T00:00:00Z, so\n";
    release.health[0].1 = Ok(doctor_health::parse(failing));
    let failures = |release: &Release| {
        let mut all = levels(release, "0.1.0");
        all.retain(|(_, level)| *level == Level::Failure);
        all
    };
    assert_eq!(failures(&release), [("health", Level::Failure)]);
    // An operator that does not say it has the metric still.
    release.health[0].1 = Err("no route".to_owned());
    assert_eq!(failures(&release), [("grants file", Level::Failure)]);
}
