use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// An admin server on a socket, in a thread of its own as in the process.
pub(crate) struct Server {
    pub(super) address: SocketAddr,
    sync_state: SyncState,
    grants: Arc<GrantStore>,
}

impl Server {
    /// One that is ready.
    pub(super) async fn start(liveness: &Liveness, metrics: Metrics, timeouts: Timeouts) -> Self {
        let server = Self::unready(liveness, metrics, timeouts).await;
        server.sync_state.set_ready();
        server
    }

    async fn unready(liveness: &Liveness, metrics: Metrics, timeouts: Timeouts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sync_state = SyncState::default();
        let grants = Arc::<GrantStore>::default();
        let shared = Shared {
            metrics: Arc::new(metrics),
            writer: Arc::new(Semaphore::new(1)),
            grants: grants.clone(),
            sync_state: sync_state.clone(),
            overlaps: crate::leader::Overlaps::default(),
            liveness: liveness.clone(),
            clock: Clock::system(),
        };
        // Dropped: the server runs until the process ends.
        let _stop = spawn(listener, shared, timeouts).unwrap();
        Self {
            address,
            sync_state,
            grants,
        }
    }

    async fn new(liveness: &Liveness) -> Self {
        Self::start(liveness, Metrics::default(), Timeouts::default()).await
    }

    /// Status and body of the response to a GET of `path`.
    pub(super) async fn get(&self, path: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        get_by(stream, path).await
    }
}

/// Status and body of the response to a GET of `path`. The server closes the connection, although it is not asked to.
pub(super) async fn get_by(mut stream: TcpStream, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

pub(super) fn healthy() -> Liveness {
    Liveness::new(Duration::from_secs(150), Clock::system().monotonic())
}

/// Status and body of the response to a GET of `path`; `synced` is whether the caches are synced.
pub(crate) async fn get(path: &str, synced: bool, liveness: &Liveness) -> (u16, String) {
    let server = Server::unready(liveness, Metrics::default(), Timeouts::default()).await;
    if synced {
        server.sync_state.set_ready();
    }
    server.get(path).await
}

#[tokio::test]
async fn a_silent_loop_fails_livez_and_caches_that_are_not_synced_fail_readyz() {
    let now = Clock::system().monotonic();
    let liveness = Liveness::new(Duration::from_secs(150), now);
    let server = Server::unready(&liveness, Metrics::default(), Timeouts::default()).await;
    assert_eq!(server.get("/livez").await, (200, "ok\n".to_owned()));
    let long_ago = now.checked_sub(Duration::from_secs(40)).unwrap();
    liveness.heartbeat(long_ago, None);
    let (status, text) = server.get("/livez").await;
    assert_eq!(status, 500);
    assert!(text.contains("no heartbeat for 4"), "{text}");
    let (status, text) = server.get("/readyz").await;
    assert_eq!((status, text.as_str()), (503, "the caches are not synced yet\n"));
    let (_, text) = server.get("/readyz?verbose").await;
    assert_eq!(
        text,
        "[-]caches the caches are not synced yet\n[+]grants-file ok\n"
    );
    server.sync_state.set_ready();
    assert_eq!(server.get("/readyz").await, (200, "ok\n".to_owned()));
}

#[tokio::test]
async fn readyz_says_since_when_the_grants_file_cannot_be_used() {
    let server = Server::new(&healthy()).await;
    let ok = "[+]caches ok\n[+]grants-file ok\n".to_owned();
    assert_eq!(server.get("/readyz?verbose").await, (200, ok.clone()));
    let kind = "is no valid list of grants";
    server.grants.fail_file(kind, Timestamp::UNIX_EPOCH);
    let (status, text) = server.get("/readyz?verbose").await;
    assert_eq!(status, 200);
    assert!(
        text.contains("[-]grants-file is no valid list of grants since 1970-01-01T00:00:00Z"),
        "{text}"
    );
    assert_eq!(server.get("/readyz").await, (200, "ok\n".to_owned()));
    server.grants.set_file(Vec::new());
    assert_eq!(server.get("/readyz?verbose").await, (200, ok));
}

#[tokio::test]
async fn a_scrape_without_an_accept_header_gets_the_older_format() {
    let (status, text) = get("/metrics", true, &healthy()).await;
    assert_eq!(status, 200);
    assert!(text.contains("# TYPE idtoken_build_info gauge\n"), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
}
