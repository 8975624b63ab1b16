//! One endpoint: its URL, its limiter, and the observer of its calls.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use rustls::sign::CertifiedKey;
use tokio::time::Instant;
use url::Url;

use super::http::Http;
use super::limiter::{EndpointLoad, Limiter};
use super::response::Response;
use crate::clock::Clock;
use crate::google::vocabulary::{CallPriority, ConfigError, Endpoint, Error, GoogleConfig};

/// One call that was made, or rejected by the limiter, for metrics. No field has an unbounded number of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    /// Where it went, such as `iamcredentials`.
    pub endpoint: &'static str,
    /// The HTTP status if it is a common one, `2xx` to `5xx` for the others; without a response the
    /// [reason](crate::google::Error::reason).
    pub code: &'static str,
    /// From sending the request to the last byte; zero if it was not sent.
    pub duration: Duration,
    /// How long the rate limit and the in-flight cap held it back.
    pub waited: Duration,
}

/// Is called with each call that has ended; must not block.
pub type Observer = Arc<dyn Fn(&CallRecord) + Send + Sync>;

/// The client of an endpoint.
pub(crate) struct EndpointClient {
    endpoint: Endpoint,
    base: Url,
    http: Http,
    limiter: Limiter,
    /// The time limit of a call.
    timeout: Duration,
    clock: Clock,
    observer: Option<Observer>,
}

impl EndpointClient {
    pub(crate) fn new(endpoint: Endpoint, base: Url, http: Http, config: &GoogleConfig) -> Self {
        let limiter = Limiter::new(
            endpoint,
            config.rate_per_second,
            config.max_in_flight,
            config.max_wait,
            config.recoveries.clone(),
            config.clock.clone(),
        );
        Self {
            endpoint,
            base,
            http,
            limiter,
            timeout: config.timeout,
            clock: config.clock.clone(),
            observer: None,
        }
    }

    pub(crate) fn set_observer(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// How much the endpoint has to do.
    pub(crate) fn load(&self) -> EndpointLoad {
        self.limiter.load()
    }

    /// How many callers are of use at the moment.
    pub(crate) fn useful_callers(&self) -> usize {
        self.limiter.useful_callers()
    }

    /// How many calls too many started at once.
    pub(crate) fn surge(&self) -> usize {
        self.limiter.surge()
    }

    /// Whether another call of this flow would only wait for its turn.
    pub(crate) fn is_congested(&self, flow: &str) -> bool {
        self.limiter.is_congested(flow)
    }

    /// A URL below the base URL; each segment is percent-encoded, so that none can become two.
    pub(crate) fn url<'s>(&self, segments: impl IntoIterator<Item = &'s str>) -> Url {
        let mut url = self.base.clone();
        // Only URLs without a host have no path segments, and those are rejected as base URLs.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// The HTTP client for the base URL.
    pub(crate) fn http(&self) -> Client {
        self.http.client(&self.base, self.limiter.in_flight())
    }

    /// The HTTP client for another URL.
    pub(crate) fn http_for(&self, url: &Url) -> Client {
        self.http.client(url, 0)
    }

    /// The HTTP client for another URL that shows a certificate to a server which asks for one.
    pub(crate) fn http_as(&self, certificate: Arc<CertifiedKey>, url: &Url) -> Result<Client, ConfigError> {
        self.http.client_as(certificate, url)
    }

    /// Waits for the limiter, builds and sends the request, and turns an unsuccessful response of a Google API into an error. A call that
    /// waits holds no request: its headers and its body are most of what a call takes.
    ///
    /// # Errors
    /// Those of the limiter, of `request` and of Google.
    pub(crate) async fn call(
        &self,
        priority: CallPriority<'_>,
        request: impl FnOnce() -> Result<RequestBuilder, Error>,
    ) -> Result<Response, Error> {
        self.call_with(priority, request, |endpoint, response| response.error(endpoint))
            .await
    }

    /// As [`Self::call`]; `to_error` turns an unsuccessful response into an error.
    pub(crate) async fn call_with(
        &self,
        priority: CallPriority<'_>,
        request: impl FnOnce() -> Result<RequestBuilder, Error>,
        to_error: impl FnOnce(Endpoint, Response) -> Error,
    ) -> Result<Response, Error> {
        let began = self.clock.monotonic();
        let permit = self.limiter.acquire(priority).await.inspect_err(|error| {
            self.record(error.reason().as_str(), Duration::ZERO, self.since(began));
        })?;
        let request = request()?.timeout(priority.time_limit(self.timeout));
        let sent = self.clock.monotonic();
        let result = self.http.send(self.endpoint, request).await.and_then(|response| {
            if response.status.is_success() {
                return Ok(response);
            }
            Err(to_error(self.endpoint, response))
        });
        let code = match &result {
            Ok(response) => status_label(response.status.as_u16()),
            Err(error) => error.status().map_or(error.reason().as_str(), status_label),
        };
        self.record(code, self.since(sent), permit.waited());
        permit.finish(result.as_ref().err());
        result
    }

    fn since(&self, start: Instant) -> Duration {
        self.clock.monotonic().saturating_duration_since(start)
    }

    fn record(&self, code: &'static str, duration: Duration, waited: Duration) {
        if let Some(observer) = &self.observer {
            observer(&CallRecord {
                endpoint: self.endpoint.as_str(),
                code,
                duration,
                waited,
            });
        }
    }
}

impl fmt::Debug for EndpointClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointClient")
            .field("endpoint", &self.endpoint)
            .field("base", &self.base.as_str())
            .finish()
    }
}

fn status_label(status: u16) -> &'static str {
    match status {
        200 => "200",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        408 => "408",
        429 => "429",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        201..=299 => "2xx",
        300..=399 => "3xx",
        405..=499 | 402 => "4xx",
        _ => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_stay_one() {
        let config = GoogleConfig::default();
        let http = Http::new(&config).expect("a client");
        let base = |url: &str| {
            EndpointClient::new(
                Endpoint::IamCredentials,
                Url::parse(url).expect("a URL"),
                http.clone(),
                &config,
            )
        };
        let url = base("https://h/").url(["v1", "-", "a@b.c:generateIdToken"]);
        assert_eq!(url.as_str(), "https://h/v1/-/a@b.c:generateIdToken");
        let url = base("https://h/p/").url(["v1", "../x?y#z%2f:go"]);
        assert_eq!(url.as_str(), "https://h/p/v1/..%2Fx%3Fy%23z%252f:go");
        let url = base("https://h/p").url(["v1"]);
        assert_eq!(url.as_str(), "https://h/p/v1");
    }
}
