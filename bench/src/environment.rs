//! A cluster with the running operator, without requests or with Ready ones.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::ready_watch::ReadyWatch;
use crate::subject::{ProcessUnderTest, Program};
use crate::{Arguments, workload};

const TIMEOUT: Duration = Duration::from_secs(3600);

/// The operator on a cluster of its own.
pub(crate) struct Environment {
    /// The operator.
    pub(crate) subject: ProcessUnderTest,
    /// The watch of Ready requests.
    pub(crate) watch: ReadyWatch,
    /// The cluster.
    pub(crate) cluster: Cluster,
}

impl Environment {
    /// Starts the operator without requests.
    pub(crate) async fn empty(arguments: &Arguments) -> Result<Self> {
        let cluster = Cluster::start(arguments).await?;
        let watch = ReadyWatch::begin(&cluster.admin).await?;
        let subject = Program::Operator(arguments.operator.clone())
            .start(&cluster)
            .await?;
        Ok(Self {
            subject,
            watch,
            cluster,
        })
    }

    /// Starts the operator, and waits until `count` requests are Ready.
    pub(crate) async fn with_requests(arguments: &Arguments, count: usize) -> Result<Self> {
        let mut environment = Self::empty(arguments).await?;
        workload::create(&environment.cluster, 0, count).await?;
        environment.wait_ready(count).await?;
        Ok(environment)
    }

    /// Waits until `count` requests are Ready.
    pub(crate) async fn wait_ready(&mut self, count: usize) -> Result<()> {
        let ready = self.watch.wait_for(count, TIMEOUT).await;
        ready.with_context(|| self.subject.log_tail()).map(drop)
    }

    /// Waits until the request `name` is Ready.
    pub(crate) async fn wait_named(&mut self, name: &str) -> Result<()> {
        let ready = self.watch.wait_for_name(name, TIMEOUT).await;
        ready.with_context(|| self.subject.log_tail())
    }

    /// Stops everything.
    pub(crate) async fn stop(self) -> Result<()> {
        self.subject.stop().await?;
        self.cluster.stop().await
    }
}
