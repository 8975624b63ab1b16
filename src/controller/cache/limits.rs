//! How much memory the cache may use, and what each object counts for.

use super::compressed_request::CompressedRequest;
use crate::request::ValidateError;

/// Bytes that a request counts for besides its spec, however small it is: its key, its state, its claim, its place in the queue and in the
/// metrics, its status, and its Secret.
const REQUEST: usize = 2560;
/// What a compressed request may have besides its spec before that counts too: a status, usually.
const STATUS: usize = 2048;
/// In such steps, so that a status that changes a little never decides which requests are served.
const STATUS_STEP: usize = 4096;
/// Bytes that a marker counts for: what is left of a request that is not served for lack of memory.
pub(super) const MARKER: usize = 1536;
/// Most bytes of a compressed marker.
pub(super) const MAX_MARKER: usize = 2048;
/// Bytes that a Secret counts for besides its compact summary.
pub(super) const SECRET: usize = 256;
/// Most bytes of the compact summary of a Secret. One of ours has less than half of it.
pub(super) const MAX_SECRET: usize = 1024;

/// Most bytes that are kept of requests and Secrets, in all and of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// In all.
    pub total: usize,
    /// Of one namespace.
    pub namespace: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self::from_mib(192, 96)
    }
}

impl CacheLimits {
    /// From numbers of MiB.
    pub fn from_mib(total: u32, namespace: u32) -> Self {
        let bytes = |mib: u32| usize::try_from(mib).unwrap_or(usize::MAX).saturating_mul(MIB);
        Self {
            total: bytes(total),
            namespace: bytes(namespace),
        }
    }

    /// What requests with their Secrets may take: three quarters.
    pub(super) fn of_requests(self) -> Self {
        self.eighths(6)
    }

    /// What markers may take: an eighth.
    pub(super) fn of_markers(self) -> Self {
        self.eighths(1)
    }

    /// What Secrets may take that no request claims: an eighth.
    pub(super) fn of_secrets(self) -> Self {
        self.eighths(1)
    }

    fn eighths(self, count: usize) -> Self {
        Self {
            total: self.total / 8 * count,
            namespace: self.namespace / 8 * count,
        }
    }
}

const MIB: usize = 1024 * 1024;

/// The limit that a request exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// Of its namespace.
    Namespace,
    /// In all.
    Total,
}

impl Limit {
    /// The error of a request that exceeds this one of `limits`, which are those of requests.
    pub(super) fn error(self, limits: CacheLimits) -> ValidateError {
        let (whose, flag, bytes) = match self {
            Self::Namespace => ("of this namespace", "max-namespace-cache-mib", limits.namespace),
            Self::Total => ("of all namespaces", "max-cache-mib", limits.total),
        };
        ValidateError::CacheFull {
            whose,
            flag,
            mib: bytes / MIB,
        }
    }
}

/// What a request counts for, with so many bytes of texts in its spec. It does not depend on the length of a usual status, so that a restart
/// serves the same requests.
pub(super) fn request_cost(spec_bytes: usize, compressed: &CompressedRequest) -> u32 {
    let rest = compressed.len().saturating_sub(spec_bytes + STATUS);
    // Compressed, and once more while it is reconciled.
    let cost = REQUEST + 2 * spec_bytes + rest.next_multiple_of(STATUS_STEP);
    u32::try_from(cost).unwrap_or(u32::MAX)
}
