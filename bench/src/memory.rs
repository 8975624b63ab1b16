//! Memory: with many requests, a list of all of them included, and with many Secrets of others.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::calls::Calls;
use crate::cluster::Cluster;
use crate::report::Report;
use crate::served::Served;
use crate::system::{Program, System};
use crate::{Arguments, api, load};

/// Secrets of others, and how large each is in bytes.
const FOREIGN: (usize, usize) = (20_000, 10 * 1024);
const LIMIT: Duration = Duration::from_secs(120);
/// Requests, Secrets, grants and namespaces.
const WATCHES: f64 = 4.0;
/// How much memory is allowed, in MiB, for up to so many requests.
const ALLOWED: [(usize, f64); 3] = [(1_000, 20.0), (10_000, 45.0), (100_000, 300.0)];

/// Measures it for each count.
pub(crate) async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let operator = Program::Operator(arguments.operator.clone());
    for &count in &arguments.counts {
        let scenario = format!("memory with {count}");
        let allowed = ALLOWED.iter().find(|(up_to, _)| count <= *up_to);
        let mut served = Served::requests(arguments, count).await?;
        relist(&mut served, count).await?;
        let Served {
            system,
            seen,
            cluster,
        } = served;
        let issued = peak(&system)?;
        report.progress(&format!(
            "{scenario}: {issued:.1} MiB at most, up to a new list of all"
        ));
        system.stop().await?;
        let after = restarted(&operator, &cluster, count).await?;
        report.progress(&format!("{scenario}: {after:.1} MiB at most after a restart"));
        let most = issued.max(after);
        match allowed {
            Some((_, allowed)) => report.at_most(&scenario, "peak MiB, lists included", Some(most), *allowed),
            None => report.told(&scenario, "peak MiB, lists included", Some(most)),
        }
        report.told(
            &scenario,
            "KiB a request after a restart",
            Some(after * 1024.0 / count as f64),
        );
        drop(seen);
        if Some(&count) == arguments.counts.first() {
            let ours = cluster.admin.clone();
            load::each(&cluster.namespaces, 0..FOREIGN.0, move |namespace, name| {
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
                "MiB more with 20,000 Secrets of others",
                Some(more.max(0.0)),
                2.0,
            );
        }
        cluster.stop().await?;
    }
    Ok(())
}

fn peak(system: &System) -> Result<f64> {
    Ok(system.usage()?.peak_kib as f64 / 1024.0)
}

/// The most memory of an operator that starts and finds everything in order.
async fn restarted(operator: &Program, cluster: &Cluster, count: usize) -> Result<f64> {
    let system = operator.start(cluster).await?;
    system.looked_at(count).await?;
    let most = peak(&system)?;
    system.stop().await?;
    Ok(most)
}

/// Has the operator list everything anew, as it does where no watch could be begun while the API server was away.
async fn relist(served: &mut Served, count: usize) -> Result<()> {
    let (cluster, system) = (&served.cluster, &served.system);
    cluster.plane.stop_apiserver().await?;
    idtoken_testenv::until("no watch can be begun", LIMIT, async || {
        let failing = system.metric("idtoken_watches_failing").await?;
        Ok((failing == Some(WATCHES)).then_some(()))
    })
    .await?;
    cluster.plane.start_apiserver().await?;
    load::create(cluster, count, count + 1).await?;
    served.until(count + 1).await?;
    // Its counts began anew with it.
    let calls = Calls::read(&served.cluster.admin).await?.since(&Calls::default());
    for list in ["LIST idtokenrequests", "LIST secrets"] {
        ensure!(
            calls.contains_key(list),
            "the operator has listed nothing anew: {calls:?}"
        );
    }
    Ok(())
}
