//! Programs in pods that read the token of a Secret, while everything else happens.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::google::{Google, account};
use crate::images;
use crate::suite::{Suite, condition, namespace, text};

/// How many renewals the callers are watched for.
const RENEWALS: usize = 3;

/// Starts all of them. Their pods wait for the Secrets.
pub(crate) async fn start(suite: &Suite<'_>, google: &Google) -> Result<()> {
    let cluster = suite.cluster;
    for name in ["shop", "monitoring"] {
        namespace(cluster, name, "").await?;
    }
    cluster.apply(&suite.manifest("callers.yaml", &[])?).await?;
    suite
        .wait(
            "a pod without its Secret waits in ContainerCreating",
            async || {
                let status = pod(suite, "shop", "caller").await?["status"].clone();
                let waiting = &status["containerStatuses"][0]["state"]["waiting"]["reason"];
                Ok((waiting == "ContainerCreating").then_some(()))
            },
        )
        .await?;
    cluster
        .apply(&suite.file(Path::new("examples/idtokenrequest.yaml"), &[])?)
        .await?;

    let command = format!("image: {}\n            command: [/usr/bin/curl]", images::TOOLS);
    let cronjob = [
        ("image: curlimages/curl:8.16.0", command.as_str()),
        ("0 3 * * *", "* * * * *"),
        (
            "- https://billing-x.run.app/reports",
            "- http://billing.cloud-run.svc/reports",
        ),
    ];
    cluster
        .apply(&suite.file(Path::new("examples/consumers/cronjob-curl.yaml"), &cronjob)?)
        .await?;

    let image = format!("image: {}", images::PROMETHEUS);
    let prometheus = [
        ("image: prom/prometheus:v3.16.0", image.as_str()),
        (
            "    scrape_configs:",
            "    global:\n      scrape_interval: 2s\n    scrape_configs:",
        ),
        ("scheme: https", "scheme: http"),
        (
            "targets: [billing-x.run.app]",
            "targets: [billing.cloud-run.svc:80]",
        ),
    ];
    cluster
        .apply(&suite.file(Path::new("examples/consumers/prometheus.yaml"), &prometheus)?)
        .await?;

    for (namespace, name) in [
        ("shop", "billing"),
        ("shop", "nightly-report"),
        ("monitoring", "scrape-billing"),
    ] {
        suite.wait_ready(namespace, name, "True").await?;
    }
    for name in ["caller", "caller-env", "caller-subpath"] {
        cluster
            .kubectl(&format!(
                "rollout status -n shop deployment/{name} --timeout=300s"
            ))
            .await?;
    }
    suite
        .wait("the service has accepted a call", async || {
            let seen = google.seen(suite).await?;
            Ok(seen["accounts"][account("caller")]["accepted"]
                .as_u64()
                .filter(|count| *count > 0)
                .map(drop))
        })
        .await
}

/// The one pod of a Deployment.
async fn pod(suite: &Suite<'_>, namespace: &str, app: &str) -> Result<Value> {
    let list = suite
        .cluster
        .kubectl(&format!("get pods -n {namespace} -l app={app} -o json"))
        .await?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"][0].clone())
}

/// What a caller has said, a line each.
async fn lines(suite: &Suite<'_>, namespace: &str, app: &str) -> Result<Vec<Value>> {
    let log = suite
        .cluster
        .kubectl(&format!("logs -n {namespace} deployment/{app}"))
        .await?;
    log.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{app} says: {line}")))
        .collect()
}

fn events<'l>(lines: &'l [Value], event: &str) -> Vec<&'l Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

/// The caller with the mounted file had every renewed token in time, in one pod that never restarted, and no call failed.
pub(crate) async fn followed(suite: &Suite<'_>, google: &Google) -> Result<()> {
    let lines = suite
        .wait("three renewals have reached the file", async || {
            let lines = lines(suite, "shop", "caller").await?;
            Ok((events(&lines, "token").len() > RENEWALS).then_some(lines))
        })
        .await?;
    no_failure(&lines)?;
    never_restarted(suite, "shop", "caller").await?;
    let seen = google.seen(suite).await?;
    let caller = &seen["accounts"][account("caller")];
    ensure!(
        caller["tokens"].as_u64() > Some(RENEWALS as u64),
        "the service saw {caller}"
    );
    ensure!(
        seen["refused"] == serde_json::json!({}),
        "the service refused calls: {seen}"
    );
    for name in ["a", "b"] {
        ensure!(
            seen["accounts"][account(name)]["accepted"].as_u64() > Some(0),
            "the service saw {seen}"
        );
    }

    let mut delays = Vec::new();
    // The pod came after the first token.
    for token in events(&lines, "token").into_iter().skip(1) {
        delays.push(seconds_after_issue(token)?);
    }
    delays.sort_by(f64::total_cmp);
    suite.report.note(format!(
        "from a token's issue to its file in the pod: {:.1} to {:.1} s in {} renewals (kubelet's syncFrequency 10 s), \
         {} calls without a failure",
        delays.first().copied().unwrap_or_default(),
        delays.last().copied().unwrap_or_default(),
        delays.len(),
        lines.iter().filter_map(|line| line["calls"].as_u64()).max().unwrap_or(0),
    ));
    Ok(())
}

fn no_failure(lines: &[Value]) -> Result<()> {
    let failed = events(lines, "failed");
    ensure!(
        failed.is_empty(),
        "{} calls failed, such as {}",
        failed.len(),
        failed[0]
    );
    Ok(())
}

async fn never_restarted(suite: &Suite<'_>, namespace: &str, app: &str) -> Result<()> {
    let pod = pod(suite, namespace, app).await?;
    let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
    ensure!(*restarts == 0, "the pod of {app} has restarted {restarts} times");
    Ok(())
}

fn seconds_after_issue(token: &Value) -> Result<f64> {
    let seen: jiff::Timestamp = text(&token["time"]).parse()?;
    let issued = token["issued"].as_i64().context("a token without iat")?;
    Ok(seen.as_millisecond() as f64 / 1000.0 - issued as f64)
}

/// Environment variables and subPath mounts have the token of the pod's start still, which by now is not the Secret's.
pub(crate) async fn unfollowed(suite: &Suite<'_>) -> Result<()> {
    let newest = events(&lines(suite, "shop", "caller").await?, "token")
        .last()
        .map(|line| line["issued"].clone());
    for app in ["caller-env", "caller-subpath"] {
        never_restarted(suite, "shop", app).await?;
        let lines = lines(suite, "shop", app).await?;
        let tokens = events(&lines, "token");
        ensure!(tokens.len() == 1, "{app} has seen {} tokens", tokens.len());
        ensure!(
            Some(&tokens[0]["issued"]) != newest.as_ref(),
            "{app} has the newest token"
        );
    }
    Ok(())
}

/// The CronJob's last runs went well, with more than one token.
pub(crate) async fn cronjob(suite: &Suite<'_>, _google: &Google) -> Result<()> {
    let jobs = suite
        .wait("three runs of the CronJob are over", async || {
            let list = suite.cluster.kubectl("get jobs -n shop -o json").await?;
            let list: Value = serde_json::from_str(&list)?;
            let jobs = list["items"].as_array().cloned().unwrap_or_default();
            let failed = jobs
                .iter()
                .find(|job| condition(job, "Failed")["status"] == "True");
            ensure!(failed.is_none(), "a run of the CronJob failed");
            let over = jobs
                .iter()
                .filter(|job| condition(job, "Complete")["status"] == "True")
                .count();
            Ok((over >= 3).then_some(jobs))
        })
        .await?;
    let retried = jobs
        .iter()
        .filter(|job| job["status"]["failed"].as_u64() > Some(0))
        .count();
    ensure!(
        retried == 0,
        "{retried} runs of the CronJob had to be tried again"
    );
    Ok(())
}

/// Prometheus has scraped since its start without one failure, with more than one token.
pub(crate) async fn prometheus(suite: &Suite<'_>) -> Result<()> {
    never_restarted(suite, "monitoring", "prometheus").await?;
    let pod = text(&pod(suite, "monitoring", "prometheus").await?["metadata"]["name"]);
    let ask = async |query: &str| -> Result<f64> {
        let path = format!("/api/v1/namespaces/monitoring/pods/{pod}:9090/proxy/api/v1/query?query={query}");
        let answer = suite.cluster.kubectl_with(&["get", "--raw", &path], "").await?;
        let answer: Value = serde_json::from_str(&answer)?;
        let value = answer["data"]["result"][0]["value"][1].as_str();
        value
            .with_context(|| format!("Prometheus answers {query} with {answer}"))?
            .parse()
            .context("no number")
    };
    let scrapes = ask("count_over_time(up%5B1h%5D)").await?;
    let worst = ask("min_over_time(up%5B1h%5D)").await?;
    ensure!(worst == 1.0, "a scrape failed");
    ensure!(scrapes >= 30.0, "Prometheus has scraped {scrapes} times only");
    suite
        .report
        .note(format!("Prometheus: {scrapes} scrapes without a failure"));
    Ok(())
}
