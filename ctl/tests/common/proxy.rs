//! A proxy by HTTP CONNECT, with and without TLS, and SOCKS5 that leads to one server, whatever the client asks for, and remembers what that was.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

type Asked = Arc<Mutex<BTreeSet<String>>>;

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    server: SocketAddr,
    asked: Asked,
}

impl Proxy {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Asked::default();
        let known = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let known = Arc::clone(&known);
                // A client may go at any time.
                tokio::spawn(async move { serve(client, server, &known).await.ok() });
            }
        });
        Self {
            address,
            server,
            asked,
        }
    }

    /// The same proxy at a further address, by TLS with the certificate and key of these files.
    pub(crate) async fn by_tls(&self, certificate: &Path, key: &Path) -> SocketAddr {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).unwrap().collect();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.unwrap(), key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (server, asked) = (self.server, Arc::clone(&self.asked));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, asked) = (acceptor.clone(), Arc::clone(&asked));
                tokio::spawn(async move { serve(acceptor.accept(client).await?, server, &asked).await });
            }
        });
        ([127, 0, 0, 1], port).into()
    }

    /// What was asked for since the last call: protocol, target and password.
    pub(crate) fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut client: S,
    server: SocketAddr,
    asked: &Asked,
) -> io::Result<()> {
    let request = match client.read_u8().await? {
        5 => socks(&mut client).await?,
        first => connect(&mut client, first).await?,
    };
    asked.lock().unwrap().insert(request);
    copy_bidirectional(&mut client, &mut TcpStream::connect(server).await?).await?;
    Ok(())
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S, first: u8) -> io::Result<String> {
    let mut head = vec![first];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    let target = lines.next().and_then(|line| line.split(' ').nth(1));
    let password = lines.find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("proxy-authorization").then_some(value)
    });
    Ok(format!(
        "CONNECT {} {}",
        target.unwrap_or_default(),
        password.unwrap_or_default()
    ))
}

/// RFC 1928 and, for the password, RFC 1929.
async fn socks<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S) -> io::Result<String> {
    let methods = bytes(client).await?;
    let mut password = String::new();
    if methods.contains(&2) {
        client.write_all(&[5, 2]).await?;
        client.read_u8().await?;
        let (user, secret) = (bytes(client).await?, bytes(client).await?);
        password = format!(
            "{}:{}",
            String::from_utf8_lossy(&user),
            String::from_utf8_lossy(&secret)
        );
        client.write_all(&[1, 0]).await?;
    } else {
        client.write_all(&[5, 0]).await?;
    }
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    let host = match head[3] {
        1 => std::net::Ipv4Addr::from(client.read_u32().await?).to_string(),
        _ => String::from_utf8_lossy(&bytes(client).await?).into_owned(),
    };
    let port = client.read_u16().await?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok(format!("SOCKS5 {host}:{port} {password}"))
}

/// A byte of length and as many bytes.
async fn bytes<S: AsyncRead + Unpin>(client: &mut S) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; client.read_u8().await?.into()];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}
