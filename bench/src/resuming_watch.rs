//! A watch that resumes after the API server closes it, as client-go's do.

use std::time::Duration;

use anyhow::Result;
use reqwest::Response;
use serde::Deserialize;

use crate::api::Api;

/// The resourceVersion of a watch that starts with all objects.
const ALL: &str = "0";
const RETRY_DELAY: Duration = Duration::from_millis(50);

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

/// An open watch.
pub(crate) struct ResumingWatch {
    api: Api,
    path: String,
    metadata: bool,
    version: String,
    response: Response,
}

impl ResumingWatch {
    /// Opens a watch of all objects at `path`, of their metadata only if `metadata`.
    pub(crate) async fn begin(api: &Api, path: &str, metadata: bool) -> Result<Self> {
        Ok(Self {
            response: api.watch(path, metadata, ALL).await?,
            api: api.clone(),
            path: path.to_owned(),
            metadata,
            version: ALL.to_owned(),
        })
    }

    /// Calls `each` with the line of each event. Returns only if an event is malformed.
    pub(crate) async fn events(mut self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        loop {
            self.read(&mut each).await?;
            // The API server closes a watch of a slow client, a watch of a new kind, and all watches when it stops. A restart from the
            // beginning would send all objects again.
            loop {
                tokio::time::sleep(RETRY_DELAY).await;
                if let Ok(response) = self.api.watch(&self.path, self.metadata, &self.version).await {
                    self.response = response;
                    break;
                }
            }
        }
    }

    /// Reads until the API server closes the watch.
    async fn read(&mut self, each: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut rest = Vec::new();
        while let Some(Ok(chunk)) = self.response.chunk().await.transpose() {
            rest.extend_from_slice(&chunk);
            let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            for line in rest[..end].split(|byte| *byte == b'\n') {
                if !advance(&mut self.version, line)? {
                    return Ok(());
                }
                each(line)?;
            }
            rest.drain(..=end);
        }
        Ok(())
    }
}

/// Sets `version` to the resourceVersion after the event `line`. Returns false if the watch cannot resume and must start again with all
/// objects.
fn advance(version: &mut String, line: &[u8]) -> Result<bool> {
    let event: Event = serde_json::from_slice(line)?;
    // The version is too old, so that a relist is necessary.
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
    fn resumes_after_the_last_event_and_relists_after_an_error() {
        let mut version = ALL.to_owned();
        for (line, resumes, from) in [
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
            assert_eq!(advance(&mut version, line.as_bytes()).unwrap(), resumes, "{line}");
            assert_eq!(version, from, "{line}");
        }
        assert!(advance(&mut version, b"{\"type\":").is_err());
    }
}
