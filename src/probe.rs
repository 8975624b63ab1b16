//! `idtoken-operator probe`: asks one URL, for images that hold no other program.

use std::time::Duration;

use thiserror::Error;
use url::Url;

/// Time for the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of an answer that are shown.
const MAX_SHOWN: usize = 200;

/// Why the probe fails.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No answer.
    #[error("{url} does not answer: {source}")]
    NoAnswer {
        /// What was asked.
        url: Url,
        /// Why not.
        source: reqwest::Error,
    },
    /// An answer other than 2xx.
    #[error("{url} answers {status}: {text}")]
    Refused {
        /// What was asked.
        url: Url,
        /// The status.
        status: reqwest::StatusCode,
        /// The beginning of the answer.
        text: String,
    },
}

/// Asks `url` once, through no proxy.
///
/// # Errors
/// It does not answer with 2xx within 10 seconds.
pub async fn probe(url: Url) -> Result<(), ProbeError> {
    let ask = async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()?;
        let answer = client.get(url.clone()).send().await?;
        let status = answer.status();
        Ok((status, answer.text().await.unwrap_or_default()))
    };
    match ask.await {
        Ok((status, _)) if status.is_success() => Ok(()),
        Ok((status, text)) => Err(ProbeError::Refused {
            url,
            status,
            text: crate::text::redacted(text.trim(), MAX_SHOWN),
        }),
        Err(source) => Err(ProbeError::NoAnswer { url, source }),
    }
}
