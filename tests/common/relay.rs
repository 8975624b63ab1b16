//! A relay in front of Google's endpoints that records what they answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Passes bytes on and keeps a copy of the answers.
pub(crate) struct Relay {
    address: SocketAddr,
    answers: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Starts a relay to `target`.
    pub(crate) async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let answers: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let kept = answers.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass(stream, target, kept.clone()));
            }
        });
        Ok(Self {
            address,
            answers,
            task,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every ID token and access token in the answers so far, true ones and spoilt ones, in the order of their connections.
    pub(crate) fn tokens(&self) -> Vec<String> {
        let answers = self.answers.lock().unwrap();
        let mut tokens: Vec<String> = answers
            .iter()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .flat_map(|text| found(&text))
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

async fn pass(client: TcpStream, target: SocketAddr, answers: Arc<Mutex<Vec<Vec<u8>>>>) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let number = {
        let mut answers = answers.lock().unwrap();
        answers.push(Vec::new());
        answers.len() - 1
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asked = async {
        // Ends with either side; how is told by the other half.
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let answered = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            answers.lock().unwrap()[number].extend_from_slice(&buffer[..count]);
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
