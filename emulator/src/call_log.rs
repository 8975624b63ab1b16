//! The calls received: a bounded log, and a count for each endpoint.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// Older entries are dropped. Their counts stay.
const MAX_ENTRIES: usize = 200_000;

/// An endpoint of the emulator, for counts, logs and faults. Written in camelCase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Endpoint {
    /// The metadata server's `token`.
    MetadataToken,
    /// The metadata server's `identity`.
    MetadataIdentity,
    /// Every other path of the metadata server.
    Metadata,
    /// IAM Credentials `generateIdToken`.
    GenerateIdToken,
    /// IAM Credentials `generateAccessToken`.
    GenerateAccessToken,
    /// IAM Credentials `allowedLocations`, always 404.
    AllowedLocations,
    /// Security Token Service `/v1/token`.
    SecurityToken,
    /// GKE's `/v1/identitybindingtoken`.
    IdentityBindingToken,
    /// OAuth 2.0 `/token`.
    OauthToken,
    /// Security Token Service `/v1/oauthtoken`: the refresh grant of a workforce pool's users.
    WorkforceToken,
    /// EC2's metadata server.
    Ec2Metadata,
    /// The published keys, `/oauth2/v3/certs` and `/oauth2/v1/certs`.
    Certs,
    /// The proxy itself: a CONNECT, or a request that it rejects.
    Proxy,
    /// A path that no endpoint of Google's has, or that another host serves.
    Unknown,
}

/// One received call. A call in flight, or one whose client went away, has no status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallRecord {
    /// When it arrived, in milliseconds since 1970.
    pub time_unix_ms: i64,
    /// The endpoint called.
    pub endpoint: Endpoint,
    /// The service account as the caller named it; for an exchange, the identity provider's resource name;
    /// for `/token`, the assertion's issuer or the client id; for what the metadata server says of no account, the path below
    /// `/computeMetadata/v1`.
    pub account: Option<String>,
    /// The requested audience.
    pub audience: Option<String>,
    /// The authenticated caller, as IAM names it.
    pub principal: Option<String>,
    /// HTTP status of the response.
    pub status: Option<u16>,
    /// The `X-Goog-Request-Reason` header.
    pub request_reason: Option<String>,
    /// The `X-Goog-User-Project` header: the project whose quota the call counts for.
    #[serde(default)]
    pub user_project: Option<String>,
    /// The host of a call through the proxy; none otherwise.
    #[serde(default)]
    pub host: Option<String>,
}

impl CallRecord {
    /// A call that arrives now. Everything else is unknown yet.
    pub(crate) fn now(endpoint: Endpoint) -> Self {
        Self {
            time_unix_ms: jiff::Timestamp::now().as_millisecond(),
            endpoint,
            account: None,
            audience: None,
            principal: None,
            status: None,
            request_reason: None,
            user_project: None,
            host: None,
        }
    }
}

#[derive(Default)]
struct Log {
    first: u64,
    calls: VecDeque<CallRecord>,
    counts: BTreeMap<Endpoint, u64>,
}

/// The log of all calls.
#[derive(Default)]
pub(crate) struct CallLog(Mutex<Log>);

impl CallLog {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a call. Returns its number for [`CallLog::update`].
    pub(crate) fn begin(&self, record: CallRecord) -> u64 {
        let mut log = self.log();
        *log.counts.entry(record.endpoint).or_default() += 1;
        if log.calls.len() == MAX_ENTRIES {
            log.calls.pop_front();
            log.first += 1;
        }
        log.calls.push_back(record);
        log.first + log.calls.len() as u64 - 1
    }

    /// Adds what became known later. Does nothing if the call was dropped from the log meanwhile.
    pub(crate) fn update(&self, number: u64, change: impl FnOnce(&mut CallRecord)) {
        let mut log = self.log();
        let index = number
            .checked_sub(log.first)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(call) = index.and_then(|index| log.calls.get_mut(index)) {
            change(call);
        }
    }

    /// The calls in the log, oldest first.
    pub(crate) fn calls(&self) -> Vec<CallRecord> {
        self.log().calls.iter().cloned().collect()
    }

    /// How many calls each endpoint had.
    pub(crate) fn counts(&self) -> BTreeMap<Endpoint, u64> {
        self.log().counts.clone()
    }

    /// Drops all calls and counts.
    pub(crate) fn reset(&self) {
        let mut log = self.log();
        log.first += log.calls.len() as u64;
        log.calls.clear();
        log.counts.clear();
    }
}
