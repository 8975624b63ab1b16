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
                if !went_on(&mut self.version, line)? {
                    return Ok(());
                }
                each(line)?;
            }
            rest.drain(..=end);
        }
        Ok(())
    }
}

/// Sets `version` to where a watch goes on after the event `line`; false where it does not, and must begin there anew.
fn went_on(version: &mut String, line: &[u8]) -> Result<bool> {
    let event: Event = serde_json::from_slice(line)?;
    // Its version is too old, after which only a new list helps.
    let too_old = event.type_ == "ERROR";
    let next = if too_old {
        ALL
    } else {
        event.object.metadata.resource_version
    };
    next.clone_into(version);
    Ok(!too_old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_after_the_last_event_and_begins_anew_after_an_error() {
        let mut version = ALL.to_owned();
        for (line, goes_on, from) in [
            (
                r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}"#,
                true,
                "7",
            ),
            (
                r#"{"type":"BOOKMARK","object":{"kind":"Secret","metadata":{"resourceVersion":"9"}}}"#,
                true,
                "9",
            ),
            (
                r#"{"type":"ERROR","object":{"kind":"Status","metadata":{},"code":410}}"#,
                false,
                ALL,
            ),
        ] {
            assert_eq!(went_on(&mut version, line.as_bytes()).unwrap(), goes_on, "{line}");
            assert_eq!(version, from, "{line}");
        }
        assert!(went_on(&mut version, b"{\"type\":").is_err());
    }
}
