//! What a process uses, as `/proc` reports it: <https://man7.org/linux/man-pages/man5/proc.5.html>.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The kernel's unit of CPU time for user space, a hundredth of a second on every architecture of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// `TCP_ESTABLISHED` (Linux, include/net/tcp_states.h).
const ESTABLISHED: &str = "01";

/// The resources of one process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time, in seconds.
    pub(crate) cpu: f64,
    /// The peak of its resident memory, in KiB.
    pub(crate) peak_kib: u64,
    /// Its resident memory, in KiB.
    pub(crate) kib: u64,
    /// Open files and sockets.
    pub(crate) files: usize,
    /// Threads.
    pub(crate) threads: u64,
}

impl Usage {
    /// Reads the resources of the process `pid`.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let stat = std::fs::read_to_string(proc.join("stat")).context("the process is gone")?;
        // The name in parentheses can contain any character.
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat is malformed")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok());
        let cpu = ticks(11)
            .zip(ticks(12))
            .context("no CPU time in /proc/PID/stat")?;
        let status = std::fs::read_to_string(proc.join("status"))?;
        let line = |name: &str| -> Result<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            let value = value.and_then(|text| text.split_whitespace().next()?.parse().ok());
            value.with_context(|| format!("no {name} in /proc/PID/status"))
        };
        Ok(Self {
            cpu: (cpu.0 + cpu.1) / TICKS_PER_SECOND,
            peak_kib: line("VmHWM:")?,
            kib: line("VmRSS:")?,
            threads: line("Threads:")?,
            files: std::fs::read_dir(proc.join("fd"))?.count(),
        })
    }

    /// The CPU time of `pids` together, in seconds.
    pub(crate) fn cpu(pids: &[u32]) -> Result<f64> {
        pids.iter().map(|pid| Ok(Self::of(*pid)?.cpu)).sum()
    }
}

/// The number of connections of the process `pid` to the port `port`.
pub(crate) fn connections(pid: u32, port: u16) -> Result<usize> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let mut inodes = HashSet::new();
    for file in std::fs::read_dir(proc.join("fd")).context("the process is gone")? {
        // Closed meanwhile.
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

/// The inode of the connection in a line of `/proc/PID/net/tcp`, if it is a connection to `port`.
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
