//! A hostile server in Google's place: it learns nothing but the bearer that it gets anyway, and its responses cost neither memory nor time.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idtoken_operator::google::Impersonation;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{CALLER, LIMIT, Setup, asking, rejected, setup};

/// What the server does after it has read the request.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// Sends this text as the whole response.
    Answer(&'static str),
    /// Redirects to another server.
    Redirect(u16, SocketAddr),
    /// The body never ends.
    EndlessBody,
    /// The headers never end.
    EndlessHeaders,
    /// Sends a byte of the body now and then.
    Drip,
}

/// The requests that a server got, and how much of its response was read.
#[derive(Default)]
struct Seen {
    requests: Vec<String>,
    bytes_taken: usize,
    closed: usize,
}

struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(harm: Harm) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, harm, Arc::clone(&seen)));
                }
            }
        });
        Self { address, seen, task }
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").requests.clone()
    }

    async fn until_closed(&self) {
        let closed = async {
            while self.seen.lock().expect("no panic").closed == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, closed)
            .await
            .expect("the connection is closed");
    }
}

async fn serve(mut stream: TcpStream, harm: Harm, seen: Arc<Mutex<Seen>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    // Until the JSON of the body is complete.
    while !request.ends_with(b"}") {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    seen.lock().expect("no panic").requests.push(text);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let (first, rest, pause) = match harm {
        Harm::Answer(text) => (text.to_owned(), None, Duration::ZERO),
        Harm::Redirect(code, to) => (
            format!("HTTP/1.1 {code} Moved\r\nLocation: http://{to}/x\r\nContent-Length: 0\r\n\r\n"),
            None,
            Duration::ZERO,
        ),
        Harm::EndlessBody => (
            format!("{head}Transfer-Encoding: chunked\r\n\r\n"),
            Some(format!("1000\r\n{}\r\n", " ".repeat(4096))),
            Duration::ZERO,
        ),
        Harm::EndlessHeaders => (
            head.to_owned(),
            Some(format!("X-Filler: {}\r\n", "x".repeat(4096))),
            Duration::ZERO,
        ),
        Harm::Drip => (
            format!("{head}Content-Length: 1000\r\n\r\n"),
            Some(" ".to_owned()),
            Duration::from_millis(50),
        ),
    };
    let mut sent = stream.write_all(first.as_bytes()).await;
    if let Some(rest) = rest {
        while sent.is_ok() {
            seen.lock().expect("no panic").bytes_taken += rest.len();
            sent = stream.write_all(rest.as_bytes()).await;
            tokio::time::sleep(pause).await;
        }
    } else {
        // Until the client has closed the connection, so that the response is not cut off.
        while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {}
    }
    seen.lock().expect("no panic").closed += 1;
}

async fn against(harm: Harm) -> (Server, Setup) {
    let server = Server::start(harm).await;
    let address = server.address;
    let setup = setup(|config| {
        config.iam_credentials_url = Some(format!("http://{address}").parse().expect("a URL"));
        config.timeout = Duration::from_secs(2);
    })
    .await;
    (server, setup)
}

#[tokio::test]
async fn the_bearer_follows_no_redirect() {
    for code in [301, 302, 303, 307, 308] {
        let elsewhere = Server::start(Harm::Answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")).await;
        let (server, setup) = against(Harm::Redirect(code, elsewhere.address)).await;
        let error = rejected(&setup.minter, &asking(CALLER)).await;
        assert_eq!(error.reason().as_str(), "UnexpectedResponse", "{code}: {error}");
        assert_eq!(error.status(), Some(code));
        assert_eq!(server.requests().len(), 1);
        assert_eq!(elsewhere.requests(), Vec::<String>::new(), "{code} was followed");
    }
}

#[tokio::test]
async fn a_response_without_end_is_not_read_to_its_end() {
    for harm in [Harm::EndlessBody, Harm::EndlessHeaders] {
        let (server, setup) = against(harm).await;
        rejected(&setup.minter, &asking(CALLER)).await;
        server.until_closed().await;
        let taken = server.seen.lock().expect("no panic").bytes_taken;
        // The content of the kernel's buffers on both sides comes on top of the client's own limit.
        assert!(taken < 16 * 1024 * 1024, "{harm:?}: {taken} bytes were taken");
    }
}

#[tokio::test]
async fn a_response_that_drips_times_out() {
    let (server, setup) = against(Harm::Drip).await;
    let error = rejected(&setup.minter, &asking(CALLER)).await;
    assert_eq!(error.reason().as_str(), "UpstreamTimeout", "{error}");
    server.until_closed().await;
}

#[tokio::test]
async fn odd_responses_are_reported_and_never_taken_for_a_token() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"token\": null}",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\u{1}\u{2}\u{3}\u{4}",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: evil\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let (_server, setup) = against(Harm::Answer(answer)).await;
        let error = rejected(&setup.minter, &asking(CALLER)).await;
        assert!(
            ["UnexpectedResponse", "UpstreamUnreachable"].contains(&error.reason().as_str()),
            "{answer:?}: {error}"
        );
    }
}

/// What a tenant chooses is in the body or in one segment of the path; the reason of the request is one harmless header.
#[tokio::test]
async fn no_requested_value_becomes_a_header() {
    let (server, setup) = against(Harm::Answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")).await;
    let request = Impersonation {
        audience: "https://a.io/\r\nX-Evil: audience\r\n\r\n",
        request_reason: "shop/billing\r\nX-Evil: reason",
        ..asking(CALLER)
    };
    rejected(&setup.minter, &request).await;
    let requests = server.requests();
    let (head, body) = requests[0].split_once("\r\n\r\n").expect("a head and a body");
    assert!(!head.contains("X-Evil: ") && !head.contains("a.io"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).expect("one JSON object");
    assert_eq!(body["audience"], "https://a.io/\r\nX-Evil: audience\r\n\r\n");
    assert!(
        head.to_ascii_lowercase()
            .contains("x-goog-request-reason: shop/billing__x-evil:_reason"),
        "{head}"
    );

    // An account is one segment of the path, or rejected before anything is sent.
    for account in [
        "../../x@p.iam.gserviceaccount.com",
        "a@b.c?x=y",
        "a@b.c#",
        "a@b.c/../d",
        "a@b.c\r\nX-Evil: 1",
    ] {
        rejected(&setup.minter, &asking(account)).await;
    }
    for request in server.requests() {
        let path = request.split(' ').nth(1).expect("a path");
        assert_eq!(path.matches('/').count(), 5, "{path}");
        assert!(
            path.ends_with(":generateIdToken") && !path.contains(['?', '#']) && !path.contains(".."),
            "{path}"
        );
        assert!(!request.to_ascii_lowercase().contains("\nx-evil: 1"), "{request}");
    }
}
