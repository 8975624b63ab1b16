//! What the operator writes for one request, for the floor to write the same.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::seen::Seen;
use crate::system::Program;
use crate::{Arguments, api, load};

const LIMIT: Duration = Duration::from_secs(60);
const NAME: &str = "sample";

/// A Secret and a status as the operator wrote them.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    secret: Value,
    status: Value,
}

impl Sample {
    /// Lets the operator serve one request, and keeps what it wrote.
    pub(crate) async fn take(arguments: &Arguments) -> Result<Self> {
        let cluster = Cluster::start(arguments).await?;
        let system = Program::Operator(arguments.operator.clone())
            .start(&cluster)
            .await?;
        let mut seen = Seen::begin(&cluster.admin).await?;
        let namespace = &cluster.namespaces[0];
        let object = load::object(namespace, NAME);
        cluster.admin.create(&api::requests(namespace), &object).await?;
        let ready = seen.until(1, LIMIT).await;
        ready.with_context(|| system.log_tail())?;
        let request = cluster.admin.get(&api::request(namespace, NAME)).await?;
        let path = format!("{}/{NAME}", api::secrets(namespace));
        let mut secret = cluster.admin.get(&path).await?;
        let metadata = secret["metadata"]
            .as_object_mut()
            .context("the Secret has no metadata")?;
        for field in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "managedFields",
            "name",
            "namespace",
        ] {
            metadata.remove(field);
        }
        system.stop().await?;
        cluster.stop().await?;
        Ok(Self {
            secret,
            status: request["status"].clone(),
        })
    }

    /// The Secret of the request `name`, whose UID is `uid`.
    pub(crate) fn secret(&self, name: &str, uid: &str, token: &str) -> Value {
        let mut secret = self.secret.clone();
        secret["metadata"]["name"] = name.into();
        secret["metadata"]["ownerReferences"][0]["name"] = name.into();
        secret["metadata"]["ownerReferences"][0]["uid"] = uid.into();
        if let Some(data) = secret.as_object_mut() {
            data.remove("data");
        }
        secret["stringData"] = json!({ "token": token });
        secret
    }

    /// The patch of the status, where the Secret has this resourceVersion.
    pub(crate) fn status(&self, secret: &Value) -> Value {
        let mut status = self.status.clone();
        status["secret"] = json!({
            "name": secret["metadata"]["name"], "resourceVersion": secret["metadata"]["resourceVersion"],
        });
        json!({ "status": status })
    }
}
