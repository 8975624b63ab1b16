//! Virtual time.

use anyhow::Result;
use jiff::Timestamp;

/// Milliseconds. [`START`] is long after 0, so that tokens from before the start have times too, and 0 can mean none.
pub(crate) type Time = u64;

pub(crate) const SECOND: Time = 1000;
pub(crate) const MINUTE: Time = 60 * SECOND;
pub(crate) const HOUR: Time = 60 * MINUTE;
#[cfg(test)]
pub(crate) const DAY: Time = 24 * HOUR;

/// When the simulation starts.
pub(crate) const START: Time = 2 * HOUR;
/// The clock at time 0, in milliseconds since 1970.
const EPOCH: i64 = 1_800_000_000_000;

pub(crate) fn to_timestamp(time: Time) -> Result<Timestamp> {
    Ok(Timestamp::from_millisecond(EPOCH + time as i64)?)
}

/// The first millisecond at or after `timestamp`.
pub(crate) fn from_timestamp(timestamp: Timestamp) -> Time {
    let nanoseconds = timestamp.as_nanosecond() - i128::from(EPOCH) * 1_000_000;
    (nanoseconds.max(0) as u64).div_ceil(1_000_000)
}
