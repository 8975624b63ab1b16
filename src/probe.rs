//! `idtoken-operator probe`: requests one URL, for images without another program.

use std::time::Duration;

use thiserror::Error;
use url::Url;

/// Longest time until the response is complete.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest part of a response body that is shown, in characters.
const MAX_SHOWN: usize = 200;

/// Why the probe failed.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// There was no response.
    #[error("{url} does not answer: {source}")]
    NoAnswer {
        /// The URL.
        url: Url,
        /// The error.
        source: reqwest::Error,
    },
    /// The status of the response is not 2xx.
    #[error("{url} answers {status}: {text}")]
    Rejected {
        /// The URL.
        url: Url,
        /// The status of the response.
        status: reqwest::StatusCode,
        /// The start of the response body, redacted.
        text: String,
    },
}

/// Sends one GET to `url`, through no proxy.
///
/// # Errors
/// There is no response with a 2xx status within 10 seconds.
pub async fn probe(url: Url) -> Result<(), ProbeError> {
    let response = async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()?;
        let response = client.get(url.clone()).send().await?;
        let status = response.status();
        Ok((status, response.text().await.unwrap_or_default()))
    };
    match response.await {
        Ok((status, _)) if status.is_success() => Ok(()),
        Ok((status, text)) => Err(ProbeError::Rejected {
            url,
            status,
            text: crate::text::redacted(text.trim(), MAX_SHOWN),
        }),
        Err(source) => Err(ProbeError::NoAnswer { url, source }),
    }
}
