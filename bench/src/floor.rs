//! The floor: a bare client that makes the same writes and calls as the operator and its users do, with the same watches open.

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::follow::Follow;
use crate::sample::Sample;
use crate::{api, load};

/// Writes `count` requests, their Secrets and their status.
pub(crate) async fn run(cluster: &Cluster, sample: &Sample, count: usize) -> Result<()> {
    let mut watches = JoinSet::new();
    for (path, metadata) in [
        (api::all_requests(), false),
        (api::labelled_secrets(), true),
        (api::grants(), false),
        ("api/v1/namespaces".to_owned(), true),
    ] {
        let watch = Follow::begin(&cluster.admin, &path, metadata).await?;
        watches.spawn(watch.events(|_| Ok(())));
    }
    let access_token = cluster.google.access_token().await?;
    let (admin, google, sample) = (cluster.admin.clone(), cluster.google.clone(), sample.clone());
    load::each(&cluster.namespaces, 0..count, move |namespace, name| {
        let (admin, google, sample) = (admin.clone(), google.clone(), sample.clone());
        let access_token = access_token.clone();
        async move {
            let object = load::object(&namespace, &name);
            let request = admin.create(&api::requests(&namespace), &object).await?;
            let token = google.id_token(&access_token, &load::audience(&name)).await?;
            let uid = request["metadata"]["uid"]
                .as_str()
                .context("the request has no UID")?;
            let secret = sample.secret(&name, uid, &token);
            let secret = admin.create(&api::secrets(&namespace), &secret).await?;
            let path = format!("{}/status", api::request(&namespace, &name));
            admin.merge(&path, &sample.status(&secret)).await.map(drop)
        }
    })
    .await
}
