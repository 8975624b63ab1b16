//! The connections of the admin server: each pod may open as many as it likes, so their number, size and time are bounded here.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tower::Service;

use crate::sync::lock;

/// Most connections.
pub(super) const MAX: usize = 128;
/// Most connections of one address. The rest is for others: the kubelet, whose probes come from the node's address, has a place whatever
/// one pod does.
pub(super) const MAX_PER_ADDRESS: usize = 96;
/// Most connections that read `/metrics`, each of which holds a whole text.
pub(super) const MAX_SCRAPES: usize = 4;
/// Most of them of one address.
pub(super) const MAX_SCRAPES_PER_ADDRESS: usize = 2;
/// Most bytes of the head of a request, and of what is read beyond it.
const MAX_BUFFER: usize = 16 * 1024;
/// Pause after a failed accept, such as one without a free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For the head of its request.
    pub(super) header: Duration,
    /// For the whole connection, which has one request.
    pub(super) connection: Duration,
}

impl Default for Timeouts {
    /// Prometheus takes at most 10 s for a scrape, unless it is configured otherwise.
    fn default() -> Self {
        Self {
            header: Duration::from_secs(5),
            connection: Duration::from_secs(30),
        }
    }
}

/// An open connection.
#[derive(Debug)]
struct Open {
    id: u64,
    address: IpAddr,
    /// Whether its request has arrived. It ends soon then, by itself or at a timeout.
    has_asked: bool,
    scrapes: bool,
    /// Closes the connection when it is dropped.
    _close: oneshot::Sender<Infallible>,
}

/// The open connections, the oldest first.
#[derive(Debug, Default)]
struct Table {
    open: Vec<Open>,
    next: u64,
}

impl Table {
    /// Takes a connection of `address` in, and closes the oldest one without a request if there are too many. Returns its id, and what
    /// resolves when it is to be closed; none if all others have asked and none can be closed.
    fn admit(&mut self, address: IpAddr) -> Option<(u64, oneshot::Receiver<Infallible>)> {
        let of_address = self.open.iter().filter(|open| open.address == address).count();
        let is_closable =
            |open: &Open| !open.has_asked && (of_address < MAX_PER_ADDRESS || open.address == address);
        if of_address >= MAX_PER_ADDRESS || self.open.len() >= MAX {
            let oldest = self.open.iter().position(is_closable)?;
            self.open.remove(oldest);
        }
        let id = self.next;
        self.next += 1;
        let (close, closed) = oneshot::channel();
        self.open.push(Open {
            id,
            address,
            has_asked: false,
            scrapes: false,
            _close: close,
        });
        Some((id, closed))
    }

    fn get_mut(&mut self, id: u64) -> Option<&mut Open> {
        self.open.iter_mut().find(|open| open.id == id)
    }

    /// Whether the connection may read `/metrics`.
    fn begin_scrape(&mut self, id: u64) -> bool {
        let scraping: Vec<IpAddr> = self
            .open
            .iter()
            .filter(|open| open.scrapes)
            .map(|open| open.address)
            .collect();
        let Some(open) = self.get_mut(id) else {
            return false;
        };
        let of_address = scraping.iter().filter(|address| **address == open.address);
        if scraping.len() >= MAX_SCRAPES || of_address.count() >= MAX_SCRAPES_PER_ADDRESS {
            return false;
        }
        open.scrapes = true;
        true
    }
}

/// A connection in the table, until it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    table: Arc<Mutex<Table>>,
    id: u64,
}

impl Connection {
    /// Whether it may read `/metrics`: not if too many others do. It may until it ends, since it holds the text until then.
    pub(super) fn begin_scrape(&self) -> bool {
        lock(&self.table).begin_scrape(self.id)
    }

    fn ask(&self) {
        if let Some(open) = lock(&self.table).get_mut(self.id) {
            open.has_asked = true;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.table).open.retain(|open| open.id != self.id);
    }
}

/// Serves `router` until the process exits. Handlers find their [`Connection`] in the request's extensions.
pub(super) async fn serve(listener: TcpListener, router: Router, timeouts: Timeouts) {
    let table = Arc::new(Mutex::new(Table::default()));
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some((id, closed)) = lock(&table).admit(from.ip().to_canonical()) else {
            continue;
        };
        let connection = Arc::new(Connection {
            table: table.clone(),
            id,
        });
        let router = router.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = closed => {}
                () = tokio::time::sleep(timeouts.connection) => {}
                () = converse(stream, router, connection, timeouts.header) => {}
            }
        });
    }
}

/// One request and its response.
async fn converse(stream: TcpStream, router: Router, connection: Arc<Connection>, header_timeout: Duration) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        connection.ask();
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(connection.clone());
        let mut router = router.clone();
        async move {
            let response: Result<Response, Infallible> = router.call(request).await;
            response
        }
    });
    // One request for each connection: so a connection without a request is one that has not finished its first, and all others end soon.
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_BUFFER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("a connection of --listen failed: {error}");
    }
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
