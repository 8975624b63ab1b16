//! Clients of the Kubernetes API, each with one HTTP/2 connection. All calls share one; watches have others ([`super::Connections`]).

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use rustls::ClientConfig;
use thiserror::Error;
use tower::filter::FilterLayer;
use tower::{BoxError, ServiceBuilder};

use super::proxy::proxy_url;

/// Longest time until a response starts. The API server aborts what is not a watch after 60 seconds.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest silence on an HTTP/1.1 connection: longer than a watch lasts.
const IDLE_TIMEOUT: Duration = Duration::from_secs(295);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence on an HTTP/2 connection after which a ping is sent. With [`PING_TIMEOUT`], as in client-go, a connection that broke unnoticed is
/// found within 45 seconds.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Flow-control window of a stream, in bytes. Each watch is read without delay, and a page of a list fits or takes a few round trips.
const STREAM_WINDOW: u32 = 128 << 10;
/// Flow-control window of the connection, in bytes: that of as many streams as an API server takes, so that answers which wait to be read
/// hold up no other.
const CONNECTION_WINDOW: u32 = 128 * STREAM_WINDOW;

/// Why there is no configuration of a cluster.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Neither a kubeconfig nor a ServiceAccount can be used.
    #[error(
        "no Kubernetes cluster is configured: set KUBECONFIG, or run in a pod with a ServiceAccount: {kubeconfig}; {in_cluster}"
    )]
    None {
        /// What is wrong with the kubeconfig.
        kubeconfig: KubeconfigError,
        /// What is wrong with the ServiceAccount.
        in_cluster: InClusterError,
    },
    /// The proxy to the API server cannot be used. Its URL is not shown, since it can contain a password.
    #[error("the proxy of {0} cannot be used: its URL must begin with http:// or https://")]
    Proxy(&'static str),
}

/// The configuration of the cluster, from KUBECONFIG or the pod's ServiceAccount.
///
/// # Errors
/// There is neither, or the proxy cannot be used.
pub async fn config() -> Result<Config, ConfigError> {
    let mut config = match from_kubeconfig().await {
        Ok((mut config, proxy)) => {
            config.proxy_url = proxy_to(&config.cluster_url, proxy.as_deref())?;
            config
        }
        Err(kubeconfig) => Config::incluster().map_err(|in_cluster| ConfigError::None {
            kubeconfig,
            in_cluster,
        })?,
    };
    // Retries of the client itself would ignore our deadlines and Retry-After.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(IDLE_TIMEOUT);
    Ok(config)
}

/// The configuration of the kubeconfig's current context, and its own proxy.
async fn from_kubeconfig() -> Result<(Config, Option<String>), KubeconfigError> {
    let kubeconfig = Kubeconfig::read()?;
    let current = kubeconfig.current_context.as_deref();
    let context = kubeconfig
        .contexts
        .iter()
        .find(|context| Some(&*context.name) == current);
    let name = context
        .and_then(|context| context.context.as_ref())
        .map(|context| &context.cluster);
    let cluster = kubeconfig
        .clusters
        .iter()
        .find(|cluster| Some(&cluster.name) == name);
    let proxy = cluster.and_then(|cluster| cluster.cluster.as_ref()?.proxy_url.clone());
    let proxy = proxy.filter(|url| !url.is_empty());
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok((config, proxy))
}

/// The proxy to the API server. As in Go, a URL without a scheme is that of an HTTP proxy.
fn proxy_to(server: &Uri, configured: Option<&str>) -> Result<Option<Uri>, ConfigError> {
    let Some((source, url)) = proxy_url(server, configured, |name| std::env::var(name).ok()) else {
        return Ok(None);
    };
    let url = match url.contains("://") {
        true => url,
        false => format!("http://{url}"),
    };
    let proxy: Option<Uri> = url.parse().ok();
    let proxy = proxy.filter(|url| matches!(url.scheme_str(), Some("http" | "https")));
    proxy.map(Some).ok_or(ConfigError::Proxy(source))
}

/// Makes clients of one cluster.
pub struct Clients {
    config: Config,
    /// Shared, so that a further connection resumes the TLS session of the first (RFC 8446, section 2.2). Then no signature is made or
    /// verified. None where the clients are kube's own.
    tls: Option<ClientConfig>,
}

type MayWrite = Arc<dyn Fn() -> Result<(), BoxError> + Send + Sync>;

impl Clients {
    /// Clients with the credentials of `config`.
    ///
    /// kube's own client speaks HTTP/1.1, which needs a connection with TLS buffers for each call in flight and each watch. It is used only
    /// where ours cannot be: behind a proxy, and if the certificate has another name than the address.
    ///
    /// # Errors
    /// The credentials or certificates of `config` cannot be used.
    pub fn new(config: Config) -> Result<Self, kube::Error> {
        let needs_kubes_own = config.proxy_url.is_some() || config.tls_server_name.is_some();
        let tls = match needs_kubes_own {
            true => None,
            false => Some(config.rustls_client_config()?),
        };
        Ok(Self { config, tls })
    }

    /// A client with a connection of its own. It calls `may_write` right before it sends a write, and fails with that error instead of
    /// sending it.
    ///
    /// # Errors
    /// The credentials or certificates of the configuration cannot be used.
    pub fn client<E: Into<BoxError>>(
        &self,
        may_write: impl Fn() -> Result<(), E> + Send + Sync + 'static,
    ) -> Result<Client, kube::Error> {
        // One type for all callers, so that the stack of services is compiled once.
        self.build(Arc::new(move || may_write().map_err(Into::into)))
    }

    fn build(&self, may_write: MayWrite) -> Result<Client, kube::Error> {
        let (config, fence) = (self.config.clone(), fence_writes(may_write));
        let Some(tls) = self.tls.clone() else {
            return Ok(ClientBuilder::try_from(config)?.with_layer(&fence).build());
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(config.connect_timeout);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
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
            .with_layer(&fence)
            .build())
    }
}

/// A layer that lets a write pass only if `may_write` does. Reads always pass: a standby keeps its caches synced, too.
fn fence_writes(
    may_write: MayWrite,
) -> FilterLayer<impl Fn(Request<Body>) -> Result<Request<Body>, BoxError> + Clone> {
    FilterLayer::new(move |request: Request<Body>| match *request.method() {
        Method::GET | Method::HEAD | Method::OPTIONS => Ok(request),
        _ => may_write().map(|()| request),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustls::pki_types::PrivateKeyDer;
    use rustls::{HandshakeKind, ServerConfig, ServerConnection};
    use tower::{Layer, Service, ServiceExt};

    use super::*;

    /// Answers one call on each of so many connections. Returns the kinds of their handshakes.
    fn serve(
        listener: &TcpListener,
        config: &Arc<ServerConfig>,
        connections: usize,
    ) -> Vec<Option<HandshakeKind>> {
        let one = |_| {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut tls = ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            stream.write_all(answer).unwrap();
            stream.flush().unwrap();
            tls.handshake_kind()
        };
        (0..connections).map(one).collect()
    }

    #[tokio::test]
    async fn a_further_client_resumes_the_tls_session() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
        let certificate = issued.cert.der().clone();
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || serve(&listener, &Arc::new(server), 2));
        let mut config = Config::new(url.parse().unwrap());
        config.root_cert = Some(vec![certificate.to_vec()]);
        let clients = Clients::new(config).unwrap();
        for _ in 0..2 {
            let client = clients.client(|| Ok::<(), BoxError>(())).unwrap();
            let answer = client.request_text(Request::get("/version").body(Vec::new()).unwrap());
            assert_eq!(answer.await.unwrap(), "{}");
        }
        let handshakes = server.join().unwrap();
        assert_eq!(
            handshakes,
            [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]
        );
    }

    #[tokio::test]
    async fn only_reads_pass_a_closed_fence() {
        let open = Arc::new(AtomicBool::new(false));
        let is_open = Arc::clone(&open);
        let may_write = move || {
            is_open
                .load(Ordering::SeqCst)
                .then_some(())
                .ok_or("closed".into())
        };
        let inner =
            tower::service_fn(async |request: Request<Body>| Ok::<_, BoxError>(request.method().clone()));
        let mut client = fence_writes(Arc::new(may_write)).layer(inner);
        let mut call = async |method: Method| {
            let request = Request::builder().method(method).body(Body::empty()).unwrap();
            client.ready().await.unwrap().call(request).await
        };
        let writes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        assert!(call(Method::GET).await.is_ok());
        for method in &writes {
            let error = call(method.clone()).await.unwrap_err();
            assert_eq!(error.to_string(), "closed", "{method}");
        }
        open.store(true, Ordering::SeqCst);
        for method in writes {
            assert!(call(method).await.is_ok());
        }
    }
}
