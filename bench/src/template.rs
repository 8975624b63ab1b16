//! The Secret and the status that the operator writes for one request, for the baseline to write the same.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::ready_watch::ReadyWatch;
use crate::subject::Program;
use crate::{Arguments, api, workload};

const TIMEOUT: Duration = Duration::from_secs(60);
const NAME: &str = "template";

/// A Secret and a status of the operator.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    secret: Value,
    status: Value,
}

impl Template {
    /// Runs the operator with one request, and reads what it wrote.
    pub(crate) async fn take(arguments: &Arguments) -> Result<Self> {
        let cluster = Cluster::start(arguments).await?;
        let subject = Program::Operator(arguments.operator.clone())
            .start(&cluster)
            .await?;
        let mut watch = ReadyWatch::begin(&cluster.admin).await?;
        let namespace = &cluster.namespaces[0];
        let object = workload::object(namespace, NAME);
        cluster.admin.create(&api::requests(namespace), &object).await?;
        let ready = watch.wait_for(1, TIMEOUT).await;
        ready.with_context(|| subject.log_tail())?;
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
        subject.stop().await?;
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

    /// The patch of the status for this Secret.
    pub(crate) fn status(&self, secret: &Value) -> Value {
        let mut status = self.status.clone();
        status["secret"] = json!({
            "name": secret["metadata"]["name"], "resourceVersion": secret["metadata"]["resourceVersion"],
        });
        json!({ "status": status })
    }
}
