use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::*;
use crate::admin::tests::{Server, get_by, healthy};
use crate::api::ObjectKey;
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::metrics::{Metrics, Options, RequestState};

/// Long, because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

async fn server(timeouts: Timeouts) -> Server {
    Server::start(&healthy(), Metrics::default(), timeouts).await
}

/// A connection from an address of this machine.
async fn connect(server: &Server, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // Small, so that a slow reader is slow.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    socket.connect(server.address).await.unwrap()
}

/// How many are still open, and reads what they have got.
fn still_open(streams: &mut [TcpStream]) -> usize {
    let is_open = |stream: &&mut TcpStream| match stream.try_read(&mut [0; 1024]) {
        Ok(0) => false,
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    streams.iter_mut().filter(is_open).count()
}

async fn until_open(streams: &mut [TcpStream], wanted: RangeInclusive<usize>) {
    let waiting = async {
        while !wanted.contains(&still_open(streams)) {
            tokio::task::yield_now().await;
        }
    };
    if timeout(LIMIT, waiting).await.is_err() {
        panic!("{} are open, not {wanted:?}", still_open(streams));
    }
}

/// Connections with the beginning of a request.
async fn half(server: &Server, from: [u8; 4], count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = connect(server, from).await;
        let head = format!("GET /livez HTTP/1.1\r\nX-Filler: {}", "x".repeat(4096));
        // Fails if it is closed already.
        let _ = stream.write_all(head.as_bytes()).await;
        streams.push(stream);
    }
    streams
}

#[tokio::test]
async fn of_many_unfinished_requests_few_stay_open_and_probes_are_answered() {
    let server = server(Timeouts {
        header: LIMIT * 10,
        connection: LIMIT * 10,
    })
    .await;
    let mut flood = half(&server, [127, 0, 0, 1], 200).await;
    until_open(&mut flood, MAX_PER_ADDRESS..=MAX_PER_ADDRESS).await;
    // The newest stay.
    assert_eq!(still_open(&mut flood[200 - MAX_PER_ADDRESS..]), MAX_PER_ADDRESS);
    // The kubelet has another address, and so costs the flood nothing; even one from the same address gets a place.
    assert_eq!(
        get_by(connect(&server, [127, 0, 0, 2]).await, "/livez").await.0,
        200
    );
    assert_eq!(still_open(&mut flood), MAX_PER_ADDRESS);
    assert_eq!(server.get("/livez").await.0, 200);
    assert_eq!(server.get("/metrics").await.0, 200);
    // Nor do floods of several addresses keep a place for themselves.
    let mut more = half(&server, [127, 0, 0, 3], 120).await;
    until_open(&mut more, MAX_PER_ADDRESS..=MAX_PER_ADDRESS).await;
    until_open(&mut flood, 0..=MAX - MAX_PER_ADDRESS).await;
    assert_eq!(
        get_by(connect(&server, [127, 0, 0, 2]).await, "/readyz").await.0,
        200
    );
}

#[tokio::test]
async fn a_request_that_is_never_finished_is_closed_in_time() {
    let server = server(Timeouts {
        header: Duration::from_millis(50),
        connection: LIMIT * 10,
    })
    .await;
    let mut silent = vec![connect(&server, [127, 0, 0, 1]).await];
    let mut slow = half(&server, [127, 0, 0, 1], 3).await;
    until_open(&mut silent, 0..=0).await;
    until_open(&mut slow, 0..=0).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = server(Timeouts::default()).await;
    let mut stream = connect(&server, [127, 0, 0, 1]).await;
    let mut written = stream.write_all(b"GET /livez HTTP/1.1\r\nX-Filler: ").await;
    let mut sent = 0;
    // Until it is closed: what is in flight is not what the server keeps.
    while written.is_ok() && sent < 64 << 20 {
        written = stream.write_all(&[b'x'; 4096]).await;
        sent += 4096;
    }
    assert!(written.is_err(), "{sent} bytes of a head were read");
}

#[tokio::test]
async fn a_connection_has_one_request_and_no_body() {
    let server = server(Timeouts::default()).await;
    for request in [
        "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100),
        // The body never comes.
        "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx".to_owned(),
        "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\nx".to_owned(),
    ] {
        let mut stream = connect(&server, [127, 0, 0, 1]).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let mut read = [0; 4096];
        // What was not read resets the connection after the answer.
        while let Ok(count @ 1..) = timeout(LIMIT, stream.read(&mut read))
            .await
            .expect("it is closed")
        {
            answer.extend_from_slice(&read[..count]);
        }
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(
            answer.matches("HTTP/1.1 200 OK").count(),
            1,
            "{request}: {answer}"
        );
    }
}

/// Metrics whose text does not fit into the buffers of a socket.
fn large() -> Metrics {
    let metrics = Metrics::new(Options { per_request: true });
    let status: IdTokenRequestStatus = serde_json::from_value(serde_json::json!({
        "conditions": [{"type": "Ready", "status": "True", "reason": "Issued", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }))
    .unwrap();
    for n in 0..10_000 {
        let state = RequestState::new(&status, false);
        metrics.set_request(
            &ObjectKey::new("shop", &format!("{n:01000}")),
            state,
            Timestamp::UNIX_EPOCH,
        );
    }
    metrics
}

/// Begins to read `/metrics`: the connection, and the beginning of the answer.
async fn scrape(server: &Server, from: u8) -> (TcpStream, String) {
    let mut stream = connect(server, [127, 0, 0, from]).await;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut status = [0; 12];
    let reading = timeout(LIMIT, stream.read_exact(&mut status)).await;
    reading.expect("it is answered").unwrap();
    (stream, String::from_utf8(status.to_vec()).unwrap())
}

#[tokio::test]
async fn slow_readers_of_metrics_hold_few_texts_and_no_probe() {
    let timeouts = Timeouts {
        header: LIMIT * 10,
        connection: LIMIT * 10,
    };
    let server = Server::start(&healthy(), large(), timeouts).await;
    let mut readers = Vec::new();
    for from in [1, 1, 2, 2] {
        let (stream, status) = scrape(&server, from).await;
        assert_eq!(status, "HTTP/1.1 200");
        readers.push(stream);
    }
    assert_eq!(readers.len(), MAX_SCRAPES);
    for from in [1, 2, 3] {
        assert_eq!(scrape(&server, from).await.1, "HTTP/1.1 503");
    }
    assert_eq!(server.get("/livez").await.0, 200);
    // One that is gone makes place, for another address too.
    readers.pop();
    let waiting = async { while scrape(&server, 3).await.1 != "HTTP/1.1 200" {} };
    timeout(LIMIT, waiting).await.expect("there is a place again");
}

#[tokio::test]
async fn one_address_does_not_take_all_places_of_scrapes_and_a_slow_reader_goes_in_time() {
    let timeouts = Timeouts {
        header: LIMIT,
        connection: Duration::from_secs(5),
    };
    let server = Server::start(&healthy(), large(), timeouts).await;
    // They stay open on this side, and read nothing.
    let first = scrape(&server, 1).await;
    let second = scrape(&server, 1).await;
    assert_eq!(
        (first.1.as_str(), second.1.as_str()),
        ("HTTP/1.1 200", "HTTP/1.1 200")
    );
    let waiting = async { while scrape(&server, 1).await.1 != "HTTP/1.1 200" {} };
    timeout(LIMIT, waiting).await.expect("their time is over");
}

#[test]
fn the_oldest_connection_without_a_request_is_closed() {
    let mut table = Table::default();
    let address = |n: usize| IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(n).unwrap()));
    let mut all: Vec<_> = (0..MAX).map(|n| table.admit(address(n % 2)).unwrap()).collect();
    let is_closed = |receiver: &mut oneshot::Receiver<Infallible>| {
        matches!(receiver.try_recv(), Err(oneshot::error::TryRecvError::Closed))
    };
    table.get_mut(all[0].0).unwrap().has_asked = true;
    let (_, mut new) = table.admit(address(7)).unwrap();
    let closed: Vec<usize> = (0..MAX).filter(|n| is_closed(&mut all[*n].1)).collect();
    assert_eq!(closed, [1]);
    assert!(!is_closed(&mut new) && table.open.len() == MAX);
    // All have asked: none is closed, and nobody comes in.
    table.open.iter_mut().for_each(|open| open.has_asked = true);
    assert!(table.admit(address(8)).is_none());
}
