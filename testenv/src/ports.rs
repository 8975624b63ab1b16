//! Free ports for servers that need a fixed one.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail};

use crate::paths;

// Below the ports of outgoing connections on Linux (32768) and macOS (49152), which could otherwise take a port between two starts of
// the same server. Also below Kubernetes' node ports (30000).
const FIRST: u16 = 15_000;
const LAST: u16 = 29_999;

/// A TCP port, reserved among all users of this crate until it is dropped.
#[derive(Debug)]
pub struct Port {
    pub(crate) number: u16,
    _lock: File,
}

impl Port {
    /// Reserves a free port. Programs that do not use this crate may still bind it before the server does.
    ///
    /// # Errors
    /// When none is free, or the lock files cannot be written.
    pub fn reserve() -> Result<Self> {
        let dir = paths::testenv_dir().join("ports");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let span = LAST - FIRST + 1;
        // Each RandomState has different keys, which is random enough for a start.
        let start = (RandomState::new().hash_one(std::process::id()) % u64::from(span)) as u16;
        for step in 0..span {
            let number = FIRST + (start + step) % span;
            if TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_err() {
                continue;
            }
            let path = dir.join(number.to_string());
            let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            if lock.try_lock().is_ok() {
                return Ok(Self { number, _lock: lock });
            }
        }
        bail!("no free TCP port between {FIRST} and {LAST}")
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}
