//! `idtoken-operator probe`: requests one URL, for images without another program.
//!
//! May import [`crate::text`] only. Knows nothing of the operator that it asks.

use std::time::Duration;

use thiserror::Error;
use url::Url;

/// Longest time until the response is complete.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

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

/// Sends a GET to `url`, through no proxy, again and again until the response has a 2xx status or `patience` is over. There is at least one
/// attempt.
///
/// # Errors
/// The last attempt had no response with a 2xx status within 10 seconds.
pub async fn probe(url: &Url, patience: Duration) -> Result<(), ProbeError> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT)
        // Each attempt resolves the name and connects again.
        .pool_max_idle_per_host(0)
        .build()
        .map_err(|source| ProbeError::NoAnswer {
            url: url.clone(),
            source,
        })?;
    let over = tokio::time::sleep(patience);
    tokio::pin!(over);
    loop {
        let outcome = attempt(&client, url).await;
        if outcome.is_ok() {
            return outcome;
        }
        tokio::select! {
            biased;
            () = &mut over => return outcome,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn attempt(client: &reqwest::Client, url: &Url) -> Result<(), ProbeError> {
    let response = async {
        let response = client.get(url.clone()).send().await?;
        let status = response.status();
        Ok((status, response.text().await.unwrap_or_default()))
    };
    match response.await {
        Ok((status, _)) if status.is_success() => Ok(()),
        Ok((status, text)) => Err(ProbeError::Rejected {
            url: url.clone(),
            status,
            text: crate::text::redacted(text.trim(), MAX_SHOWN),
        }),
        Err(source) => Err(ProbeError::NoAnswer {
            url: url.clone(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each connection with the next of `answers`; none ends the connection without one.
    async fn serve(listener: TcpListener, answers: &[Option<&str>]) {
        for answer in answers {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            let mut head = [0; 1024];
            let read = connection.read(&mut head).await.expect("a request");
            assert!(read > 0);
            if let Some(status) = answer {
                let text = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                connection.write_all(text.as_bytes()).await.expect("an answer");
            }
        }
    }

    async fn listen() -> (TcpListener, Url) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let url = format!("http://{address}/readyz").parse().expect("a URL");
        (listener, url)
    }

    #[tokio::test]
    async fn with_patience_it_asks_until_it_is_ready() {
        let (listener, url) = listen().await;
        let answers = [None, Some("503 Service Unavailable"), Some("200 OK")];
        let (outcome, ()) = tokio::join!(probe(&url, Duration::from_secs(300)), serve(listener, &answers));
        outcome.expect("the third answer");
    }

    #[tokio::test]
    async fn without_patience_the_first_answer_counts() {
        let (listener, url) = listen().await;
        let answers = [Some("503 Service Unavailable")];
        let (outcome, ()) = tokio::join!(probe(&url, Duration::ZERO), serve(listener, &answers));
        let said = outcome.expect_err("not ready").to_string();
        assert!(said.contains("503"), "{said}");
    }
}
