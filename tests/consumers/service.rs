//! The service that the programs call: it accepts one token at a time and remembers who came with which.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A call that was answered.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// `METHOD path`.
    pub(crate) what: String,
    /// What the answer was.
    pub(crate) status: u16,
    /// The `Authorization` header; empty where there was none.
    pub(crate) authorization: String,
}

#[derive(Default)]
struct Book {
    tokens: Vec<String>,
    calls: Vec<Call>,
}

/// An HTTP server that answers 401 to all but the tokens that were set last.
pub(crate) struct Service {
    address: SocketAddr,
    book: Arc<Mutex<Book>>,
    server: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Service {
    /// Starts it on a port of its own.
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let book = Arc::<Mutex<Book>>::default();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&book));
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self {
            address,
            book,
            server,
        })
    }

    /// Its `host:port`.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on only this token is accepted.
    pub(crate) fn accept(&self, token: &str) {
        self.accept_all(&[token]);
    }

    /// From now on only these tokens are accepted.
    pub(crate) fn accept_all(&self, tokens: &[&str]) {
        self.book.lock().unwrap().tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
    }

    /// All calls, oldest first.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.book.lock().unwrap().calls.clone()
    }

    /// How many calls had this token and were answered 200.
    pub(crate) fn served(&self, token: &str) -> usize {
        let wanted = format!("Bearer {token}");
        let calls = self.calls();
        calls
            .iter()
            .filter(|call| call.status == 200 && call.authorization == wanted)
            .count()
    }
}

async fn answer(State(book): State<Arc<Mutex<Book>>>, request: Request) -> (StatusCode, &'static str) {
    let authorization = request.headers().get(header::AUTHORIZATION);
    let authorization = authorization
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let mut book = book.lock().unwrap();
    let accepted = book
        .tokens
        .iter()
        .any(|token| authorization == format!("Bearer {token}"));
    let status = if accepted {
        StatusCode::OK
    } else {
        StatusCode::UNAUTHORIZED
    };
    book.calls.push(Call {
        what: format!("{} {}", request.method(), request.uri().path()),
        status: status.as_u16(),
        authorization: authorization.to_owned(),
    });
    // What Prometheus can read, and what nobody else minds.
    (status, "# TYPE sold counter\nsold 1\n")
}
