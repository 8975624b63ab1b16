//! The listener of `--listen`. `[::]` means every address of the node, whatever its kernel makes of IPv6.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};

/// How many connections the kernel holds that are not accepted yet.
const BACKLOG: u32 = 1024;

/// Listens on `address`. `[::]` accepts IPv4 too, and is `0.0.0.0` where the kernel has no IPv6.
///
/// # Errors
/// The address is in use, or is none of this machine's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    listen_by(address, |address| match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    })
}

fn listen_by(
    address: SocketAddr,
    open: impl Fn(SocketAddr) -> io::Result<TcpSocket>,
) -> io::Result<TcpListener> {
    match bind(address, &open) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && lacks_ipv6(&error) => {
            let every = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            tracing::info!("this machine has no IPv6 ({error}): listening on {every} instead of {address}");
            bind(every, &open)
        }
        bound => bound,
    }
}

fn bind(address: SocketAddr, open: &impl Fn(SocketAddr) -> io::Result<TcpSocket>) -> io::Result<TcpListener> {
    let socket = open(address)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        // The default is the node's `net.ipv6.bindv6only`.
        set_ipv6_v6only(&socket, false)?;
    }
    // A restarted process finds connections of the one before it that are not over.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// `ipv6.disable=1` leaves no such family of sockets; a container without IPv6 may have no such address, or a filter of its calls.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL | Errno::PROTONOSUPPORT | Errno::NOPROTOOPT)
    )
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    const EVERY: &str = "[::]:0";

    /// As with `ipv6.disable=1`.
    fn without_ipv6(address: SocketAddr) -> io::Result<TcpSocket> {
        match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => Err(Errno::AFNOSUPPORT.into()),
        }
    }

    /// As with `net.ipv6.bindv6only=1`.
    fn of_ipv6_only(address: SocketAddr) -> io::Result<TcpSocket> {
        match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => {
                let socket = TcpSocket::new_v6()?;
                set_ipv6_v6only(&socket, true)?;
                Ok(socket)
            }
        }
    }

    async fn accepts_ipv4(listener: TcpListener) {
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        assert!(listener.accept().await.is_ok());
    }

    #[tokio::test]
    async fn every_address_is_that_of_ipv4_without_ipv6() {
        let listener = listen_by(EVERY.parse().unwrap(), without_ipv6).unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), Ipv4Addr::UNSPECIFIED);
        accepts_ipv4(listener).await;
        // Who names one address does not get another.
        let error = listen_by("[::1]:0".parse().unwrap(), without_ipv6).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::AFNOSUPPORT));
    }

    #[tokio::test]
    async fn every_address_is_that_of_ipv4_too_whatever_the_node_says() {
        accepts_ipv4(listen_by(EVERY.parse().unwrap(), of_ipv6_only).unwrap()).await;
        accepts_ipv4(listen(EVERY.parse().unwrap()).unwrap()).await;
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error() {
        let taken = listen("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
