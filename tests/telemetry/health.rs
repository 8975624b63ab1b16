//! `/livez` and `/readyz` of the process. The tests of the loop itself cover `/livez` of a stuck loop.

use anyhow::Result;
use idtoken_testenv::until;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::common::{LIMIT, Operator, Setup, Wire, World};

async fn status(operator: &Operator, path: &str) -> Result<u16> {
    Ok(operator.get(path).await?.status().as_u16())
}

async fn world() -> Result<World> {
    World::with(Setup {
        operator: false,
        log: "info",
        ..Setup::default()
    })
    .await
}

/// Waits until a metric is `value`.
async fn metric(operator: &Operator, series: &str, value: f64) -> Result<()> {
    until(&format!("{series} is {value}"), LIMIT, async || {
        Ok((operator.metric(series).await? == value).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_ready_once_it_has_seen_the_cluster_and_stays_so() -> Result<()> {
    let world = world().await?;
    let api = world.cluster.url();
    let wire = Wire::to(api.trim_start_matches("https://").parse()?).await?;
    wire.cut();
    let kubeconfig = std::fs::read_to_string(&world.kubeconfig)?;
    let path = world.cluster.dir().join("wire.kubeconfig");
    let through = format!("https://{}", wire.address());
    std::fs::write(&path, kubeconfig.replace(&api, &through))?;
    let operator = world.replica(world.google.address(), &path, &[], &[]).await?;

    metric(
        &operator,
        r#"idtoken_watches_failing{resource="idtokengrants"}"#,
        1.0,
    )
    .await?;
    assert_eq!(status(&operator, "/readyz").await?, 503);
    assert_eq!(status(&operator, "/livez").await?, 200);
    assert_eq!(operator.metric("idtoken_synced").await?, 0.0);
    wire.mend();
    operator.ready().await?;
    metric(&operator, "idtoken_synced", 1.0).await?;
    metric(&operator, "idtoken_watches_failing", 0.0).await?;

    // As with other controllers: no traffic is routed to it, and a restart would not bring the API server back.
    wire.cut();
    world.cluster.stop_apiserver().await?;
    metric(
        &operator,
        r#"idtoken_watches_failing{resource="idtokengrants"}"#,
        1.0,
    )
    .await?;
    assert_eq!(status(&operator, "/readyz").await?, 200);
    assert_eq!(status(&operator, "/livez").await?, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_not_ready_without_the_right_to_list() -> Result<()> {
    let world = world().await?;
    let nobody = world.cluster.kubeconfig_for("nobody", &[])?;
    let operator = world.replica(world.google.address(), &nobody, &[], &[]).await?;
    for resource in ["idtokenrequests", "secrets", "idtokengrants", "namespaces"] {
        let series = format!("idtoken_watches_failing{{resource=\"{resource}\"}}");
        metric(&operator, &series, 1.0).await?;
    }
    assert_eq!(status(&operator, "/readyz").await?, 503);
    assert_eq!(status(&operator, "/livez").await?, 200);
    let restarts = operator.metric("idtoken_watch_restarts_total").await?;
    assert!(restarts >= 4.0, "{restarts}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stands_by_is_ready() -> Result<()> {
    let world = world().await?;
    let flags = ["--leader-elect", "--lease-namespace=idtoken-system"].map(str::to_owned);
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let replica = world
            .replica(world.google.address(), &world.kubeconfig, &flags, &[])
            .await?;
        replica.ready().await?;
        replicas.push(replica);
    }
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let mut leaders = 0.0;
    for replica in &replicas {
        let leads = replica.metric("idtoken_leader").await?;
        leaders += leads;
        // A standby exports no requests, so that none is counted twice.
        assert_eq!(replica.metric("idtoken_requests{").await?, leads);
        assert_eq!(status(replica, "/readyz").await?, 200);
    }
    assert_eq!(leaders, 1.0);
    Ok(())
}

/// From any pod: requests that are never finished, each with a large head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_hundred_unfinished_requests_take_little_memory_and_no_probe() -> Result<()> {
    let world = world().await?;
    let operator = world
        .replica(world.google.address(), &world.kubeconfig, &[], &[])
        .await?;
    operator.ready().await?;
    let before = operator.metric("process_resident_memory_bytes").await?;
    let head = format!("GET /livez HTTP/1.1\r\nX-Filler: {}", "x".repeat(300 << 10));
    let mut flood = Vec::new();
    for _ in 0..700 {
        let mut stream = tokio::net::TcpStream::connect(&operator.address).await?;
        let head = head.clone();
        flood.push(tokio::spawn(async move {
            // Fails where the head is too large or the connection is closed; then it stays as it is.
            let _ = stream.write_all(head.as_bytes()).await;
            std::future::pending::<()>().await;
        }));
        if flood.len() % 100 == 0 {
            assert_eq!(status(&operator, "/livez").await?, 200);
        }
    }
    let mut most = before;
    for _ in 0..20 {
        assert_eq!(status(&operator, "/readyz").await?, 200);
        most = most.max(operator.metric("process_resident_memory_bytes").await?);
    }
    for task in flood {
        task.abort();
    }
    let grown = (most - before) / f64::from(1 << 20);
    assert!(grown < 32.0, "it has grown by {grown} MiB");
    Ok(())
}
