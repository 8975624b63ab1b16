//! A cluster with the program that is measured, and requests that it has served.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::seen::Seen;
use crate::system::{Program, System};
use crate::{Arguments, load};

const LIMIT: Duration = Duration::from_secs(3600);

/// A running program on a cluster of its own.
pub(crate) struct Served {
    /// What it does.
    pub(crate) system: System,
    /// What is Ready.
    pub(crate) seen: Seen,
    /// Where it works.
    pub(crate) cluster: Cluster,
}

impl Served {
    /// With nothing to do yet.
    pub(crate) async fn nothing(arguments: &Arguments) -> Result<Self> {
        let cluster = Cluster::start(arguments).await?;
        let seen = Seen::begin(&cluster.admin).await?;
        let system = Program::Operator(arguments.operator.clone())
            .start(&cluster)
            .await?;
        Ok(Self {
            system,
            seen,
            cluster,
        })
    }

    /// With `count` Ready requests.
    pub(crate) async fn requests(arguments: &Arguments, count: usize) -> Result<Self> {
        let mut served = Self::nothing(arguments).await?;
        load::create(&served.cluster, 0, count).await?;
        served.until(count).await?;
        Ok(served)
    }

    /// Waits until `count` requests are Ready.
    pub(crate) async fn until(&mut self, count: usize) -> Result<()> {
        let ready = self.seen.until(count, LIMIT).await;
        ready.with_context(|| self.system.log_tail()).map(drop)
    }

    /// Stops everything.
    pub(crate) async fn stop(self) -> Result<()> {
        self.system.stop().await?;
        self.cluster.stop().await
    }
}
