//! The requests that the benchmark creates.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::api;
use crate::cluster::{Cluster, WRITERS};
use crate::emulator::ACCOUNT;

/// The namespace and name of request `n`.
pub(crate) fn key(namespaces: &[String], n: usize) -> (String, String) {
    (namespaces[n % namespaces.len()].clone(), format!("request-{n}"))
}

/// Request `name`, as a user writes it.
pub(crate) fn object(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": "load"}},
        "spec": {"audience": audience(name), "serviceAccount": ACCOUNT},
    })
}

/// The audience of request `name`.
pub(crate) fn audience(name: &str) -> String {
    format!("https://load.example.com/{name}")
}

/// Creates the requests `from..to` as fast as the API server accepts them.
pub(crate) async fn create(cluster: &Cluster, from: usize, to: usize) -> Result<()> {
    let admin = cluster.admin.clone();
    each(&cluster.namespaces, from..to, move |namespace, name| {
        let admin = admin.clone();
        async move {
            admin
                .create(&api::requests(&namespace), &object(&namespace, &name))
                .await
                .map(drop)
        }
    })
    .await
}

/// Calls `work` for each request of `range`, for [`WRITERS`] requests at once.
pub(crate) async fn each<F>(
    namespaces: &[String],
    range: std::ops::Range<usize>,
    work: impl Fn(String, String) -> F + Clone + Send + 'static,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(range.start));
    let namespaces: Arc<[String]> = namespaces.into();
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (next, namespaces, work, end) = (next.clone(), namespaces.clone(), work.clone(), range.end);
        writers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= end {
                    return anyhow::Ok(());
                }
                let (namespace, name) = key(&namespaces, n);
                work(namespace, name).await?;
            }
        });
    }
    while let Some(result) = writers.join_next().await {
        result??;
    }
    Ok(())
}
