//! The client of the Kubernetes API: one connection for all calls and watches, by HTTP/2.

use std::time::Duration;

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::InferConfigError;
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use crate::leader::Fence;

/// Longest time until an answer begins. The API server ends whatever is no watch after 60 seconds.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest time for a connection of HTTP/1.1 to say nothing: longer than a watch lasts.
const IDLE_TIMEOUT: Duration = Duration::from_secs(295);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The silence after which a ping is sent, and the wait for its answer: as client-go's, by which a connection that died without a word
/// is found within 45 seconds.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// What the API server may send ahead on one stream, and on all, in bytes. Each watch is read at once, and a page of a list is smaller
/// than this or comes in a few turns.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Where the cluster is, by KUBECONFIG or the pod's ServiceAccount.
///
/// # Errors
/// Where neither is there.
pub async fn config() -> Result<Config, InferConfigError> {
    let mut config = Config::infer().await?;
    // Its own retries would wait behind our backs, where no deadline and no Retry-After rule reaches.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(IDLE_TIMEOUT);
    Ok(config)
}

/// A client whose writes pass only while `fence` is open.
///
/// kube's own client speaks HTTP/1.1, which takes a connection for each call under way and each watch, and with them TLS's buffers on
/// both sides. Behind a proxy, and where the certificate has another name than the address, it is used nevertheless.
///
/// # Errors
/// Where the credentials or certificates of `config` cannot be used.
pub fn client(config: Config, fence: &Fence) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() || config.tls_server_name.is_some() {
        return Ok(ClientBuilder::try_from(config)?
            .with_layer(&fence.layer())
            .build());
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(config.connect_timeout);
    tcp.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(tcp);
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .timeout(RESPONSE_TIMEOUT)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace)
        .with_layer(&fence.layer())
        .build())
}
