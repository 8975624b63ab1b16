//! A real run: operator, Google's endpoints, API server, kube-state-metrics and Prometheus. Everything that is shipped for monitoring must
//! work on it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use idtoken_emulator::{Endpoint, Fault};
use idtoken_testenv::{Prometheus, RunDir, until};
use regex::Regex;
use serde_json::json;

use crate::alerts::alerts;
use crate::common::{CALLER, LIMIT, LOCKED, Setup, World, has};
use crate::dashboard::{dashboard, queries};
use crate::page::{documented, read, scraped};
use crate::programs::{KubeStateMetrics, prometheus, promtool};

/// Shorter than the 15 minutes of the alerts.
const LIFETIME: u64 = 600;
/// What a kube-state-metrics may do, as its configuration says.
const RIGHTS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kube-state-metrics}
rules:
- {apiGroups: [idtoken.dev], resources: [idtokenrequests], verbs: [get, list, watch]}
- {apiGroups: [apiextensions.k8s.io], resources: [customresourcedefinitions], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kube-state-metrics}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kube-state-metrics}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: kube-state-metrics}]
";

/// The running programs.
struct Run {
    world: World,
    prometheus: Prometheus,
    exporter: KubeStateMetrics,
    dir: RunDir,
}

/// Starts everything, with requests in each state that alerts and dashboard show.
async fn run() -> Result<Run> {
    let flags = [
        "--leader-elect",
        "--lease-namespace=idtoken-system",
        "--metrics-per-request",
    ];
    let world = World::with(Setup {
        log: "info",
        flags: flags.map(str::to_owned).into(),
        grants_file: Some("[]".to_owned()),
        ..Setup::lifetime(LIFETIME)
    })
    .await?;
    world.granted("shop").await?;
    for name in ["fresh", "failing", "outdated", "suspended"] {
        world.issued("shop", name, json!({})).await?;
    }
    world
        .request("shop", "locked", json!({"serviceAccount": LOCKED}))
        .await?;
    world
        .request(
            "shop",
            "invalid",
            json!({"target": {"template": {"data": {"x": "$(nothing)"}}}}),
        )
        .await?;
    let suspend = json!({"spec": {"suspend": true}});
    world.change("shop", "suspended", suspend).await?;
    // Its token no longer matches the spec, and the new spec is not granted.
    let other = json!({"spec": {"audience": "https://elsewhere.example.com"}});
    world.change("shop", "outdated", other).await?;
    let outage = Fault::status(503)
        .on(Endpoint::GenerateIdToken)
        .for_account(CALLER);
    world.google.fault(outage)?;
    world.renew("shop", "failing", "now").await?;
    for (name, type_, status) in [
        ("failing", "RenewalFailing", "True"),
        ("outdated", "Ready", "False"),
        ("invalid", "Stalled", "True"),
        ("locked", "Reconciling", "True"),
    ] {
        world
            .until("shop", name, "its condition is set", |object| {
                has(object, type_, status, "")
            })
            .await?;
    }

    // The metric of a file that cannot be used is absent until then.
    std::fs::write(world.grants_file(), "- name: broken\n")?;
    until("the broken file is reported", LIMIT, async || {
        let scrape = world.scrape().await?;
        Ok(scrape
            .contains("idtoken_grants_file_failing_since_timestamp_seconds{")
            .then_some(()))
    })
    .await?;

    world.cluster.apply(RIGHTS).await?;
    let dir = RunDir::create("telemetry")?;
    let user = world.cluster.kubeconfig_for("kube-state-metrics", &[])?;
    let exporter = KubeStateMetrics::start(dir.path(), &user).await?;
    let operator = world.running()?.address.clone();
    let jobs = [
        ("idtoken-operator", operator.as_str()),
        ("kube-state-metrics", exporter.address.as_str()),
    ];
    let prometheus = prometheus(dir.path(), &jobs).await?;
    Ok(Run {
        prometheus,
        exporter,
        dir,
        world,
    })
}

/// An operator of all namespaces has no such metric. The tests of an operator of some have it, and those of the alerts its alert.
const ABSENT: &str = "idtoken_namespace_failing_since_timestamp_seconds";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shipped_works_on_a_real_run() -> Result<()> {
    let run = run().await?;
    the_scrape_is_legal_and_documented(&run).await?;
    kube_state_metrics_exports_the_status(&run).await?;
    every_metric_of_the_alerts_exists_and_every_alert_is_evaluated(&run).await?;
    the_right_alerts_fire(&run).await?;
    every_query_of_the_dashboard_has_an_answer(&run).await?;
    every_metric_but_a_dead_operators_is_gone_with_it(&run).await
}

async fn the_scrape_is_legal_and_documented(run: &Run) -> Result<()> {
    let text = run.dir.path().join("metrics.txt");
    std::fs::write(&text, run.world.scrape().await?)?;
    promtool(&["check", "metrics"], run.dir.path(), Some(&text)).await?;
    let exported = reqwest::Client::builder().no_proxy().build()?;
    let exported = exported.get(format!("http://{}/metrics", run.exporter.address));
    std::fs::write(&text, exported.send().await?.text().await?)?;
    promtool(&["check", "metrics"], run.dir.path(), Some(&text)).await?;

    let client = reqwest::Client::builder().no_proxy().build()?;
    let open = client
        .get(format!("http://{}/metrics", run.world.running()?.address))
        .header("accept", "application/openmetrics-text; version=1.0.0");
    let exported = scraped(&open.send().await?.text().await?);
    let page = documented(&read("docs/metrics.md"));
    let names = |metrics: &crate::page::Metrics| metrics.keys().cloned().collect::<BTreeSet<_>>();
    let (exported_names, documented_names) = (names(&exported), names(&page));
    let undocumented: Vec<_> = exported_names.difference(&documented_names).collect();
    assert!(
        undocumented.is_empty(),
        "not in docs/metrics.md: {undocumented:?}"
    );
    let is_here = |name: &&String| *name != ABSENT;
    let gone: Vec<_> = documented_names
        .difference(&exported_names)
        .filter(is_here)
        .collect();
    assert!(gone.is_empty(), "only in docs/metrics.md: {gone:?}");
    for (name, (kind, labels)) in exported {
        let (documented_kind, documented_labels) = &page[&name];
        assert_eq!(*documented_kind, kind, "{name}");
        assert!(
            labels.is_empty() || labels == *documented_labels,
            "{name} has the labels {labels:?}"
        );
    }
    Ok(())
}

async fn kube_state_metrics_exports_the_status(run: &Run) -> Result<()> {
    let of = |metric: &str, name: &str| {
        format!("kube_idtokenrequest_{metric}{{namespace=\"shop\",name=\"{name}\"}}")
    };
    let one = async |query: String| {
        until(&query, LIMIT, async || {
            Ok(run
                .prometheus
                .query(&query)
                .await?
                .first()
                .map(|(_, value)| *value))
        })
        .await
        .with_context(|| run.exporter.log())
    };
    let status = run.world.get("shop", "fresh").await?.status.context("a status")?;
    let expires = status
        .token
        .and_then(|token| token.expiration_time)
        .context("a token")?;
    let seen = one(of("status_token_expiration_timestamp_seconds", "fresh")).await?;
    assert_eq!(seen, expires.0.as_second() as f64);
    let seen = one(of("status_renewal_timestamp_seconds", "fresh")).await?;
    assert_eq!(
        seen,
        status.renewal_time.context("a renewal")?.0.as_second() as f64
    );
    assert_eq!(one(of("spec_suspend", "fresh")).await?, 0.0);
    assert_eq!(one(of("spec_suspend", "suspended")).await?, 1.0);
    let failing =
        r#"kube_idtokenrequest_status_condition{name="failing",type="RenewalFailing",reason!="Renewed"}"#;
    assert_eq!(one(failing.to_owned()).await?, 1.0);
    let ready = r#"kube_idtokenrequest_status_condition{name="locked",type="Ready"}"#;
    assert_eq!(one(ready.to_owned()).await?, 0.0);
    let never = run
        .prometheus
        .query(&of("status_token_expiration_timestamp_seconds", "locked"))
        .await?;
    assert!(never.is_empty(), "{never:?}");
    Ok(())
}

async fn every_metric_of_the_alerts_exists_and_every_alert_is_evaluated(run: &Run) -> Result<()> {
    let name = Regex::new(r"\b(?:idtoken|kube_idtokenrequest)_[a-z_]+")?;
    for alert in alerts()? {
        let expr = alert["expr"].as_str().unwrap_or_default();
        let metrics = name.find_iter(expr).map(|found| found.as_str());
        for metric in metrics.filter(|metric| *metric != ABSENT) {
            until(metric, LIMIT, async || {
                Ok((!run.prometheus.query(metric).await?.is_empty()).then_some(()))
            })
            .await?;
        }
    }
    until("every alert is evaluated", LIMIT, async || {
        let data = run.prometheus.api("rules", &[]).await?;
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        let rules = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
        let healths: Vec<_> = rules
            .map(|rule| (rule["health"].clone(), rule["lastError"].clone()))
            .collect();
        ensure!(!healths.iter().any(|(health, _)| health == "err"), "{healths:?}");
        let good = healths.iter().filter(|(health, _)| health == "ok").count();
        Ok((good == alerts()?.len()).then_some(()))
    })
    .await
}

async fn the_right_alerts_fire(run: &Run) -> Result<()> {
    // No renewal of its token is planned, and less than 15 minutes are left.
    for alert in [
        r#"ALERTS{alertname="IdTokenExpiringSoon",alertstate="firing",namespace="shop",severity="critical"}"#,
        r#"ALERTS{alertname="IdTokenRequestExpiringSoon",alertstate="firing",namespace="shop",name="outdated"}"#,
        r#"ALERTS{alertname="IdTokenRequestStalled",alertstate="pending",namespace="shop"}"#,
        r#"ALERTS{alertname="IdTokenRequestRenewalFailing",alertstate="pending",name="failing"}"#,
    ] {
        until(alert, LIMIT, async || {
            Ok((!run.prometheus.query(alert).await?.is_empty()).then_some(()))
        })
        .await?;
    }
    let firing = run
        .prometheus
        .query(r#"ALERTS{alertstate="firing",name!="outdated"}"#)
        .await?;
    let names: BTreeSet<String> = firing
        .iter()
        .map(|(labels, _)| labels["alertname"].to_string())
        .collect();
    assert_eq!(names, BTreeSet::from([r#""IdTokenExpiringSoon""#.to_owned()]));
    Ok(())
}

async fn every_query_of_the_dashboard_has_an_answer(run: &Run) -> Result<()> {
    for (panel, query) in queries(&dashboard()?) {
        let query = query
            .replace("$namespace", ".*")
            .replace("$__rate_interval", "20s");
        until(
            &format!("{panel}: {query}"),
            Duration::from_secs(30),
            async || Ok((!run.prometheus.query(&query).await?.is_empty()).then_some(())),
        )
        .await?;
    }
    let metadata = [("metric", "idtoken_token_remaining_seconds")];
    let metadata = run.prometheus.api("metadata", &metadata).await?;
    assert_eq!(
        metadata["idtoken_token_remaining_seconds"][0]["type"],
        "gaugehistogram"
    );
    // Four have a token, and the suspended one does not count.
    let counted = run
        .prometheus
        .query("idtoken_token_remaining_seconds_gcount")
        .await?;
    assert_eq!(counted.first().map(|(_, value)| *value), Some(3.0));
    let of_one = r#"idtoken_request_expiration_timestamp_seconds{namespace="shop",name="fresh"}"#;
    assert_eq!(run.prometheus.query(of_one).await?.len(), 1);
    Ok(())
}

/// The operator dies: its metrics disappear at once, and only those of kube-state-metrics remain.
async fn every_metric_but_a_dead_operators_is_gone_with_it(run: &Run) -> Result<()> {
    run.world.stop_operator(true).await?;
    until("Prometheus has noticed", LIMIT, async || {
        let absent = r#"ALERTS{alertname="IdTokenOperatorAbsent",alertstate="pending"}"#;
        Ok((!run.prometheus.query(absent).await?.is_empty()).then_some(()))
    })
    .await?;
    let page = r#"ALERTS{alertname="IdTokenRequestExpiringSoon",alertstate="firing",name="outdated"}"#;
    assert_eq!(run.prometheus.query(page).await?.len(), 1);
    Ok(())
}
