//! The peak of memory: with many requests including a relist, and with many foreign Secrets.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::apiserver_calls::Calls;
use crate::cluster::Cluster;
use crate::environment::Environment;
use crate::report::Report;
use crate::subject::{ProcessUnderTest, Program};
use crate::{Arguments, api, workload};

/// The number of Secrets without the operator's label, and the size of each in bytes.
const FOREIGN: (usize, usize) = (20_000, 10 * 1024);
const TIMEOUT: Duration = Duration::from_secs(120);
/// The operator's watches: requests, Secrets, grants and namespaces.
const WATCHES: f64 = 4.0;
/// The target of memory, in MiB, for up to so many requests.
const TARGETS: [(usize, f64); 3] = [(1_000, 20.0), (10_000, 45.0), (100_000, 300.0)];

/// Measures each count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let operator = Program::Operator(arguments.operator.clone());
    for &count in &arguments.counts {
        let scenario = format!("memory with {count}");
        let target = TARGETS.iter().find(|(up_to, _)| count <= *up_to);
        let mut environment = Environment::with_requests(arguments, count).await?;
        relist(&mut environment, count).await?;
        let Environment {
            subject,
            watch,
            cluster,
        } = environment;
        let issued = peak(&subject)?;
        report.progress(&format!("{scenario}: peak {issued:.1} MiB, relist included"));
        subject.stop().await?;
        let after = restarted(&operator, &cluster, count).await?;
        report.progress(&format!("{scenario}: peak {after:.1} MiB after a restart"));
        let most = issued.max(after);
        match target {
            Some((_, target)) => {
                report.at_most(&scenario, "peak memory with lists, MiB", Some(most), *target)
            }
            None => report.record(&scenario, "peak memory with lists, MiB", Some(most)),
        }
        report.record(
            &scenario,
            "memory a request after a restart, KiB",
            Some(after * 1024.0 / count as f64),
        );
        drop(watch);
        if Some(&count) == arguments.counts.first() {
            let ours = cluster.admin.clone();
            workload::each(&cluster.namespaces, 0..FOREIGN.0, move |namespace, name| {
                let ours = ours.clone();
                async move {
                    let secret = json!({
                        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("foreign-{name}")},
                        "stringData": {"data": "x".repeat(FOREIGN.1)},
                    });
                    ours.create(&api::secrets(&namespace), &secret).await.map(drop)
                }
            })
            .await?;
            let more = restarted(&operator, &cluster, count).await? - after;
            report.at_most(
                &scenario,
                "additional memory for 20,000 foreign Secrets, MiB",
                Some(more.max(0.0)),
                2.0,
            );
        }
        cluster.stop().await?;
    }
    Ok(())
}

fn peak(subject: &ProcessUnderTest) -> Result<f64> {
    Ok(subject.usage()?.peak_kib as f64 / 1024.0)
}

/// The peak of memory of an operator that starts with Ready requests.
async fn restarted(operator: &Program, cluster: &Cluster, count: usize) -> Result<f64> {
    let subject = operator.start(cluster).await?;
    subject.wait_reconciled(count).await?;
    let most = peak(&subject)?;
    subject.stop().await?;
    Ok(most)
}

/// Makes the operator relist everything, as after a time in which it could not start a watch.
async fn relist(environment: &mut Environment, count: usize) -> Result<()> {
    let (cluster, subject) = (&environment.cluster, &environment.subject);
    cluster.plane.stop_apiserver().await?;
    idtoken_testenv::until("no watch can be started", TIMEOUT, async || {
        let failing = subject.metric("idtoken_watches_failing").await?;
        Ok((failing == Some(WATCHES)).then_some(()))
    })
    .await?;
    cluster.plane.start_apiserver().await?;
    workload::create(cluster, count, count + 1).await?;
    environment.wait_ready(count + 1).await?;
    // The restarted API server counts from 0.
    let calls = Calls::read(&environment.cluster.admin)
        .await?
        .since(&Calls::default());
    for list in ["LIST idtokenrequests", "LIST secrets"] {
        ensure!(
            calls.contains_key(list),
            "the operator has relisted nothing: {calls:?}"
        );
    }
    Ok(())
}
