//! What a process has used, as `/proc` says: <https://man7.org/linux/man-pages/man5/proc.5.html>.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The kernel's unit of CPU time for user space, a hundredth of a second on every architecture of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What one process has used up to now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time, in seconds.
    pub(crate) cpu: f64,
    /// The most memory it had, in KiB.
    pub(crate) peak_kib: u64,
    /// The memory it has, in KiB.
    pub(crate) kib: u64,
    /// Open files and sockets.
    pub(crate) files: usize,
    /// Threads.
    pub(crate) threads: u64,
}

impl Usage {
    /// Of the process `pid`.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let stat = std::fs::read_to_string(proc.join("stat")).context("the process is gone")?;
        // The name in brackets may hold anything.
        let (_, rest) = stat
            .rsplit_once(')')
            .context("/proc/PID/stat is not as it should be")?;
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

    /// CPU time of `pids` together, in seconds.
    pub(crate) fn cpu(pids: &[u32]) -> Result<f64> {
        pids.iter().map(|pid| Ok(Self::of(*pid)?.cpu)).sum()
    }
}
