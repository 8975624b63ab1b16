//! Waits for conditions, not for fixed times.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const INTERVAL: Duration = Duration::from_millis(50);

/// Calls `check` every 50 ms until it returns a value.
///
/// # Errors
/// The error of `check`, or one with `what` after `limit`.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let started = Instant::now();
    loop {
        if let Some(value) = check().await? {
            return Ok(value);
        }
        if started.elapsed() >= limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The status code of a GET over plain HTTP/1.1 to `address` (`host:port`), within 2 s.
///
/// # Errors
/// When nothing listens there, or the server does not speak HTTP.
pub async fn http_status(address: &str, path: &str) -> Result<u16> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        stream.take(64).read_to_end(&mut head).await?;
        Ok::<_, std::io::Error>(head)
    };
    let head = tokio::time::timeout(Duration::from_secs(2), exchange)
        .await
        .with_context(|| format!("{address} did not respond within 2 s"))?
        .with_context(|| format!("cannot connect to {address}"))?;
    String::from_utf8_lossy(&head)
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("{address} does not speak HTTP"))
}
