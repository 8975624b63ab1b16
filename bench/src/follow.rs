//! A watch that goes on where the API server has ended it, as client-go's do.

use std::time::Duration;

use anyhow::Result;
use reqwest::Response;
use serde::Deserialize;

use crate::api::Api;

/// Where a watch begins that knows of no version yet: with all objects that there are.
const ALL: &str = "0";
const AGAIN: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    type_: &'a str,
    object: Object<'a>,
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(default)]
    resource_version: &'a str,
}

/// A watch that is open.
pub(crate) struct Follow {
    api: Api,
    path: String,
    metadata: bool,
    version: String,
    answer: Response,
}

impl Follow {
    /// Opens a watch of all objects at `path`, of their metadata only where `metadata`.
    pub(crate) async fn begin(api: &Api, path: &str, metadata: bool) -> Result<Self> {
        Ok(Self {
            answer: api.watch(path, metadata, ALL).await?,
            api: api.clone(),
            path: path.to_owned(),
            metadata,
            version: ALL.to_owned(),
        })
    }

    /// Hands each event to `each`, as its line; ends only where an event is not as it should be.
    pub(crate) async fn events(mut self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        loop {
            self.read(&mut each).await?;
            // The API server ends a watch whose reader is slow, when a kind has just been made, and when it stops itself. From the
            // beginning, each would cost it all objects again.
            loop {
                tokio::time::sleep(AGAIN).await;
                if let Ok(answer) = self.api.watch(&self.path, self.metadata, &self.version).await {
                    self.answer = answer;
                    break;
                }
            }
        }
    }

    /// Reads until the API server ends the watch.
    async fn read(&mut self, each: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut rest = Vec::new();
        while let Some(Ok(chunk)) = self.answer.chunk().await.transpose() {
            rest.extend_from_slice(&chunk);
            let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            for line in rest[..end].split(|byte| *byte == b'\n') {
                let event: Event = serde_json::from_slice(line)?;
                // Its version is too old, after which only a new list helps.
                if event.type_ == "ERROR" {
                    self.version = ALL.to_owned();
                    return Ok(());
                }
                event
                    .object
                    .metadata
                    .resource_version
                    .clone_into(&mut self.version);
                each(line)?;
            }
            rest.drain(..=end);
        }
        Ok(())
    }
}
