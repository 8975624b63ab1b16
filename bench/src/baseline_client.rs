//! The baseline: a bare client that makes the same writes and calls as the operator and its users, with the same watches open.

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::resuming_watch::ResumingWatch;
use crate::template::Template;
use crate::{api, workload};

/// Creates `count` requests, and writes their Secrets and statuses.
pub(crate) async fn run(cluster: &Cluster, template: &Template, count: usize) -> Result<()> {
    let mut watches = JoinSet::new();
    for (path, metadata) in [
        (api::all_requests(), false),
        (api::labelled_secrets(), true),
        (api::grants(), false),
        ("api/v1/namespaces".to_owned(), true),
    ] {
        let watch = ResumingWatch::begin(&cluster.admin, &path, metadata).await?;
        watches.spawn(watch.events(|_| Ok(())));
    }
    let access_token = cluster.google.access_token().await?;
    let (admin, google, template) = (cluster.admin.clone(), cluster.google.clone(), template.clone());
    workload::each(&cluster.namespaces, 0..count, move |namespace, name| {
        let (admin, google, template) = (admin.clone(), google.clone(), template.clone());
        let access_token = access_token.clone();
        async move {
            let object = workload::object(&namespace, &name);
            let request = admin.create(&api::requests(&namespace), &object).await?;
            let token = google.id_token(&access_token, &workload::audience(&name)).await?;
            let uid = request["metadata"]["uid"]
                .as_str()
                .context("the request has no UID")?;
            let secret = template.secret(&name, uid, &token);
            let secret = admin.create(&api::secrets(&namespace), &secret).await?;
            let path = format!("{}/status", api::request(&namespace, &name));
            admin.merge(&path, &template.status(&secret)).await.map(drop)
        }
    })
    .await
}
