//! Which TCP connections a process has, as `/proc` says.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// `TCP_ESTABLISHED` (Linux, include/net/tcp_states.h).
const ESTABLISHED: &str = "01";

/// How many connections the process `pid` has to the port `port`.
pub(crate) fn connections(pid: u32, port: u16) -> Result<usize> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let mut inodes = HashSet::new();
    for file in std::fs::read_dir(proc.join("fd")).context("the process is gone")? {
        // Closed since.
        let Ok(target) = std::fs::read_link(file?.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        let inode = target
            .strip_prefix("socket:[")
            .map(|rest| rest.trim_end_matches(']'));
        inodes.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    let mut count = 0;
    for table in ["net/tcp", "net/tcp6"] {
        let text = std::fs::read_to_string(proc.join(table)).unwrap_or_default();
        let to_port = text.lines().skip(1).filter_map(|line| inode_to(line, port));
        count += to_port.filter(|inode| inodes.contains(inode)).count();
    }
    Ok(count)
}

/// The inode of the connection of a line of `/proc/PID/net/tcp`, where it is one to `port`.
fn inode_to(line: &str, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, remote) = fields.get(2)?.rsplit_once(':')?;
    let matches = u16::from_str_radix(remote, 16) == Ok(port) && *fields.get(3)? == ESTABLISHED;
    matches.then(|| fields.get(9)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn own_connections_are_counted_until_they_are_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let count = || connections(std::process::id(), address.port()).unwrap();
        assert_eq!(count(), 0);
        let first = TcpStream::connect(address).unwrap();
        let second = TcpStream::connect(address).unwrap();
        assert_eq!(count(), 2);
        drop(first);
        assert_eq!(count(), 1);
        drop(second);
    }
}
