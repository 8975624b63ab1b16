//! A relay in front of a server that records what it is sent and answers.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Passes bytes on and keeps a copy of them.
pub(crate) struct Relay {
    address: SocketAddr,
    target: SocketAddr,
    passed: Arc<Mutex<Vec<Passed>>>,
    task: Mutex<JoinHandle<()>>,
}

/// What one connection has passed on.
#[derive(Default)]
struct Passed {
    questions: Vec<u8>,
    answers: Vec<u8>,
    /// Whether it passes on nothing any more.
    silent: bool,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.lock().unwrap().abort();
    }
}

impl Relay {
    /// Starts a relay to `target`.
    pub(crate) async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let passed: Arc<Mutex<Vec<Passed>>> = Arc::default();
        let task = Mutex::new(tokio::spawn(serve(listener, target, passed.clone())));
        Ok(Self {
            address,
            target,
            passed,
            task,
        })
    }

    /// Ends all connections and frees the port, as the death of the process behind it does.
    pub(crate) async fn kill(&self) {
        let task = std::mem::replace(&mut *self.task.lock().unwrap(), tokio::spawn(async {}));
        task.abort();
        // The error is the cancellation just asked for.
        let _ = task.await;
    }

    /// Listens again after [`Relay::kill`].
    pub(crate) async fn revive(&self) -> Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        *self.task.lock().unwrap() = tokio::spawn(serve(listener, self.target, self.passed.clone()));
        Ok(())
    }

    /// Has the connections of now pass on nothing any more and end neither, as a firewall does that has forgotten them. Returns how many
    /// there were.
    pub(crate) fn silence(&self) -> usize {
        let mut passed = self.passed.lock().unwrap();
        passed.iter_mut().for_each(|passed| passed.silent = true);
        passed.len()
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.passed.lock().unwrap().len()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What each connection was sent so far.
    pub(crate) fn questions(&self) -> Vec<String> {
        let passed = self.passed.lock().unwrap();
        let text = |passed: &Passed| String::from_utf8_lossy(&passed.questions).into_owned();
        passed.iter().map(text).collect()
    }

    /// Every ID token and access token in the answers so far, true ones and spoilt ones, and every token that was sent to be exchanged,
    /// in the order of their connections.
    pub(crate) fn tokens(&self) -> Vec<String> {
        let questions = self.questions();
        let passed = self.passed.lock().unwrap();
        let answers = passed
            .iter()
            .map(|passed| String::from_utf8_lossy(&passed.answers));
        let mut tokens: Vec<String> = questions
            .iter()
            .zip(answers)
            .flat_map(|(question, answer)| {
                let mut tokens = sent(question);
                tokens.extend(found(&answer));
                tokens
            })
            .collect();
        tokens.dedup();
        tokens
    }
}

/// The values of `"token"` and `"access_token"` in the JSON of HTTP answers.
fn found(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    for field in ["\"token\":\"", "\"access_token\":\""] {
        for rest in text.split(field).skip(1) {
            tokens.extend(rest.split('"').next().map(str::to_owned));
        }
    }
    tokens
}

/// The tokens to be exchanged in forms, where another field follows.
fn sent(text: &str) -> Vec<String> {
    let tokens = text.split("subject_token=").skip(1);
    tokens
        .filter_map(|rest| rest.split_once('&'))
        .map(|(token, _)| token.to_owned())
        .collect()
}

async fn serve(listener: TcpListener, target: SocketAddr, passed: Arc<Mutex<Vec<Passed>>>) {
    // Ends its connections when it is dropped.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(pass(stream, target, passed.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(client: TcpStream, target: SocketAddr, passed: Arc<Mutex<Vec<Passed>>>) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let number = {
        let mut passed = passed.lock().unwrap();
        passed.push(Passed::default());
        passed.len() - 1
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asked = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            if !record(&passed, number, |passed| &mut passed.questions, &buffer[..count]) {
                pending::<()>().await;
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    let answered = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            if !record(&passed, number, |passed| &mut passed.answers, &buffer[..count]) {
                pending::<()>().await;
            }
            if to_client.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = asked => {}
        () = answered => {}
    }
}

/// Whether it is to be passed on.
fn record(
    passed: &Mutex<Vec<Passed>>,
    number: usize,
    side: fn(&mut Passed) -> &mut Vec<u8>,
    bytes: &[u8],
) -> bool {
    let passed = &mut passed.lock().unwrap()[number];
    if !passed.silent {
        side(passed).extend_from_slice(bytes);
    }
    !passed.silent
}
