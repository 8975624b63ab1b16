//! Jitter that depends on a request's UID alone, so that a restart keeps it; its callers say how large it is.

use jiff::SignedDuration;

/// `duration` times `fraction / 2^16`.
pub(super) fn scale(duration: SignedDuration, fraction: u16) -> SignedDuration {
    let millis = duration.as_millis() * i128::from(fraction) / 65536;
    SignedDuration::from_millis(millis.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
}

/// FNV-1a of `text` and `salt` with a final mix, folded to 16 bits. It is stable across versions and platforms, which std's hashers do not
/// promise.
pub(super) fn hash(text: &str, salt: u32) -> u16 {
    let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325, add);
    let fnv = salt.to_le_bytes().into_iter().fold(fnv, add);
    let mixed = (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 48) as u16
}
