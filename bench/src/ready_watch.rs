//! A watch of the requests: which are Ready, and since when.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{self, Api};
use crate::resuming_watch::ResumingWatch;

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    type_: String,
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    generation: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    observed_generation: i64,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

/// When each request was first seen Ready.
type Ready = Arc<Mutex<HashMap<String, Instant>>>;

/// A watch of all requests.
pub(crate) struct ReadyWatch {
    ready: Ready,
    count: watch::Receiver<usize>,
    task: JoinHandle<Result<()>>,
}

impl ReadyWatch {
    /// Starts the watch.
    pub(crate) async fn begin(api: &Api) -> Result<Self> {
        let watch = ResumingWatch::begin(api, &api::all_requests(), false).await?;
        let ready = Ready::default();
        let (sender, count) = watch::channel(0);
        let shared = ready.clone();
        let task = tokio::spawn(watch.events(move |line| {
            let event: Event = serde_json::from_slice(line)?;
            let mut ready = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if event.type_ == "DELETED" {
                ready.remove(&event.object.metadata.name);
            } else if event.object.is_ready() {
                ready
                    .entry(event.object.metadata.name)
                    .or_insert_with(Instant::now);
            }
            sender.send_replace(ready.len());
            Ok(())
        }));
        Ok(Self { ready, count, task })
    }

    /// Waits until `count` requests are Ready. Fails after `limit`.
    pub(crate) async fn wait_for(&mut self, count: usize, limit: Duration) -> Result<Instant> {
        let result = tokio::time::timeout(limit, self.count.wait_for(|ready| *ready >= count)).await;
        match result.map(|result| result.map(drop)) {
            Ok(Ok(())) => Ok(Instant::now()),
            Ok(Err(_)) => {
                (&mut self.task)
                    .await?
                    .context("the watch of the requests failed")?;
                bail!("the watch of the requests stopped")
            }
            Err(_) => bail!(
                "{} of {count} requests are Ready after {} s",
                *self.count.borrow(),
                limit.as_secs()
            ),
        }
    }

    /// Waits until the request `name` is Ready. Fails after `limit`.
    pub(crate) async fn wait_for_name(&mut self, name: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.ready_at(name).is_none() {
            let one_more = *self.count.borrow_and_update() + 1;
            // Seen between the check and the count.
            if self.ready_at(name).is_some() {
                break;
            }
            self.wait_for(one_more, deadline.saturating_duration_since(Instant::now()))
                .await?;
        }
        Ok(())
    }

    /// When the request `name` was first seen Ready.
    pub(crate) fn ready_at(&self, name: &str) -> Option<Instant> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.get(name).copied()
    }
}

impl Drop for ReadyWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Object {
    fn is_ready(&self) -> bool {
        let ready = self
            .status
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Ready");
        self.status.observed_generation == self.metadata.generation
            && ready.is_some_and(|condition| condition.status == "True")
    }
}
