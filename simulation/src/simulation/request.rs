//! The state of one request.

use idtoken_operator::schedule::backoff::Backoff;

use crate::time::Time;
use crate::upstream::Random;

/// What the simulation remembers of one request.
pub(super) struct SimulatedRequest {
    /// When its token expires; 0 for none.
    pub(super) expires: Time,
    /// When its operator issued the token; 0 if the operator restarted since.
    pub(super) issued_at: Time,
    pub(super) backoff: Option<Box<Backoff>>,
    /// When it is reconciled next. Entries of the queue with another time are stale.
    pub(super) wakeup: Time,
    pub(super) shard: u16,
    pub(super) flow: u32,
}

/// Writes the UID of the request with this number, the same in each run.
pub(super) fn write_uid(number: u32, uid: &mut String) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let (high, low) = (
        Random(number.into()).next(),
        Random(u64::from(number) << 32).next(),
    );
    uid.clear();
    for digit in 0..32 {
        if matches!(digit, 8 | 12 | 16 | 20) {
            uid.push('-');
        }
        let half = if digit < 16 { high } else { low };
        uid.push(HEX[(half >> (digit % 16 * 4)) as usize % 16].into());
    }
}
