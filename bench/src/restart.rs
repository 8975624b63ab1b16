//! A restart with Ready requests: the operator issues and writes nothing, and is steady soon.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use crate::api::METADATA;
use crate::cluster::Cluster;
use crate::environment::Environment;
use crate::report::{Report, median};
use crate::subject::Program;
use crate::{Arguments, api};

/// Measures each count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let operator = Program::Operator(arguments.operator.clone());
    for &count in &arguments.counts {
        let scenario = format!("restart with {count}");
        let Environment {
            subject,
            watch,
            cluster,
        } = Environment::with_requests(arguments, count).await?;
        subject.wait_idle().await?;
        subject.stop().await?;
        drop(watch);
        let (minted, versions) = (cluster.google.minted().await?, versions(&cluster).await?);
        let (mut steady, mut lists) = (Vec::new(), Vec::new());
        for round in 0..arguments.pairs {
            let started = Instant::now();
            cluster
                .admin
                .list(&api::all_requests(), "application/json")
                .await?;
            cluster.admin.list(&api::labelled_secrets(), METADATA).await?;
            lists.push(started.elapsed().as_secs_f64());
            // The last operator released the Lease when it stopped, so the start includes only the time to acquire it.
            let started = Instant::now();
            let subject = operator.start(&cluster).await?;
            subject.wait_reconciled(count).await?;
            steady.push(started.elapsed().as_secs_f64());
            report.progress(&format!(
                "{scenario}, round {}: steady after {:.2} s, bare lists {:.2} s",
                round + 1,
                steady[round],
                lists[round]
            ));
            subject.stop().await?;
        }
        let more = cluster.google.minted().await? - minted;
        report.at_most(&scenario, "tokens issued", Some(more as f64), 0.0);
        let changed = changed(&versions, &self::versions(&cluster).await?);
        report.at_most(&scenario, "writes", Some(changed as f64), 0.0);
        let middle = median(steady.iter().copied());
        report.at_most(
            &scenario,
            "seconds from the start until steady",
            Some(middle),
            5.0,
        );
        let ratios = steady.iter().zip(&lists).map(|(steady, list)| steady / list);
        report.at_most(&scenario, "time, ratio to bare lists", Some(median(ratios)), 2.0);
        report.raw(
            &scenario,
            json!({"steadySeconds": steady, "bareListSeconds": lists}),
        );
        cluster.stop().await?;
    }
    Ok(())
}

/// The resourceVersion of each request and each Secret, by UID.
async fn versions(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    for path in [api::all_requests(), api::labelled_secrets()] {
        let list = cluster.admin.get(&path).await?;
        for object in list["items"].as_array().into_iter().flatten() {
            let metadata = &object["metadata"];
            versions.insert(
                metadata["uid"].to_string(),
                metadata["resourceVersion"].to_string(),
            );
        }
    }
    Ok(versions)
}

fn changed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> usize {
    let differs = after
        .iter()
        .filter(|(uid, version)| before.get(*uid) != Some(version));
    differs.count() + before.len().saturating_sub(after.len())
}
