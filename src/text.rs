//! Makes outside text safe to show: redacts secrets, escapes control characters and bounds the length. Joins an error with its sources.
//!
//! Imports nothing. Never knows what a text means: its callers say how long it may be and whether it may hold secrets.

use std::borrow::Cow;

/// Replaces a secret.
const REDACTED: &str = "[redacted]";

/// A run of mixed letters and digits of this length counts as key material.
const OPAQUE_RUN: usize = 64;

/// Escapes control characters, marks of direction and invisible characters, and truncates after `max_chars`, what is escaped counted as it is
/// shown. For values that are not secret.
#[must_use]
pub fn printable(text: &str, max_chars: usize) -> String {
    // Most texts are printable ASCII.
    if text.len() <= max_chars && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len().min(max_chars));
    let mut room = max_chars;
    for c in text.chars() {
        let needed = if is_unsafe(c) { c.escape_default().len() } else { 1 };
        if needed > room {
            out.push('…');
            break;
        }
        room -= needed;
        match needed {
            1 => out.push(c),
            _ => out.extend(c.escape_default()),
        }
    }
    out
}

/// Escapes in lines of text what [`printable`] escapes, but for the ends of lines. For a whole output whose parts were bounded.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c, out| out.extend(c.escape_default()))
}

/// Escapes in JSON what [`printable`] escapes. Whoever parses it gets the same strings.
#[must_use]
pub fn printable_json(json: &str) -> Cow<'_, str> {
    escape(json, |c, out| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    })
}

/// A line break in JSON is between values: within strings it is escaped already.
fn escape(text: &str, escape_char: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let is_escaped = |c: char| c != '\n' && is_unsafe(c);
    let Some(first) = text.find(is_escaped) else {
        return Cow::Borrowed(text);
    };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        match is_escaped(c) {
            true => escape_char(c, &mut out),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// As [`printable`], with everything redacted that looks like a credential.
#[must_use]
pub fn redacted(text: &str, max_chars: usize) -> String {
    // Redacted first, since a truncated token would not be recognized.
    printable(&redact(text, max_chars), max_chars)
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Redacts `text` as far as its first `max_chars` characters need it, and one more: what is shown costs little however long `text` is.
fn redact(text: &str, max_chars: usize) -> String {
    // A character has at most four bytes.
    let enough = max_chars.saturating_mul(4);
    let mut out = String::with_capacity(text.len().min(enough));
    let mut rest = text;
    while !rest.is_empty() && out.len() <= enough {
        let run_end = rest.find(|c: char| !is_token_char(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(run_end);
        let cut = if follows_scheme(&out) && run.len() >= 8 {
            Some(0)
        } else {
            secret_start(run)
        };
        match cut {
            Some(start) => {
                out.push_str(&run[..start]);
                out.push_str(REDACTED);
            }
            None if after.starts_with('@') || after.starts_with(':') => {
                push_unless_userinfo(&mut out, run, after, &mut rest);
                continue;
            }
            None => out.push_str(run),
        }
        let gap_end = after.find(is_token_char).unwrap_or(after.len());
        out.push_str(&after[..gap_end]);
        rest = &after[gap_end..];
    }
    out
}

/// Redacts `user:password@` after `://`, as in the URL of a proxy.
fn push_unless_userinfo<'t>(out: &mut String, run: &str, after: &'t str, rest: &mut &'t str) {
    let mut gap_end = after.find(is_token_char).unwrap_or(after.len());
    let in_authority = out.ends_with(':') && run.starts_with("//");
    if in_authority {
        let authority_end = after
            .find(|c: char| c.is_whitespace() || c == '/')
            .unwrap_or(after.len());
        if let Some(at) = after[..authority_end].rfind('@') {
            out.push_str("//");
            out.push_str(REDACTED);
            out.push('@');
            *rest = &after[at + 1..];
            return;
        }
    }
    out.push_str(run);
    if gap_end == 0 {
        gap_end = after.chars().next().map_or(0, char::len_utf8);
    }
    out.push_str(&after[..gap_end]);
    *rest = &after[gap_end..];
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~' | '+' | '=' | '%' | '/')
}

/// Whether `before` ends in `Bearer `, `Basic ` or a key that names a secret.
fn follows_scheme(before: &str) -> bool {
    let tail: String = before
        .chars()
        .rev()
        .take(24)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    let tail = tail.to_ascii_lowercase();
    let word = tail.trim_end_matches([' ', ':', '"', '\'', '\\', '=']);
    word.len() < tail.len()
        && [
            "bearer",
            "basic",
            "_token",
            "assertion",
            "client_secret",
            "private_key",
            "password",
        ]
        .iter()
        .any(|scheme| word.ends_with(scheme))
}

/// Where a credential starts in a run of token characters.
fn secret_start(run: &str) -> Option<usize> {
    // Google's access tokens, refresh tokens, OAuth client secrets and API keys. They count in the middle of a run too, since
    // percent-encoded text may precede them.
    let marked = ["ya29.", "1//0", "GOCSPX-", "AIza"]
        .iter()
        .filter_map(|mark| run.find(mark).filter(|i| run.len() - i >= 12))
        .min();
    let jwt = jwt_start(run);
    let opaque = || {
        run.split(['/', '.', '=', '%'])
            .any(|part| {
                part.len() >= OPAQUE_RUN
                    && part.bytes().any(|b| b.is_ascii_digit())
                    && part.bytes().any(|b| b.is_ascii_uppercase())
                    && part.bytes().any(|b| b.is_ascii_lowercase())
            })
            .then_some(0)
    };
    match (marked, jwt) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b).or_else(opaque),
    }
}

/// Where in a run of token characters a JWT begins. In one pass over the dots, since another client may have chosen the run.
fn jwt_start(run: &str) -> Option<usize> {
    let mut starts = run.match_indices("ey").map(|(start, _)| start).peekable();
    starts.peek()?;
    let ends: Vec<usize> = run
        .match_indices('.')
        .map(|(end, _)| end)
        .chain([run.len()])
        .collect();
    let mut next = 0;
    starts.find(|&start| {
        next += ends[next..].iter().take_while(|end| **end < start).count();
        let mut begin = start;
        let long_enough = [16, 16, 4].iter().enumerate().all(|(part, least)| {
            let Some(end) = ends.get(next + part) else {
                return false;
            };
            let length = end - begin;
            begin = end + 1;
            length >= *least
        });
        // `eyJ` is `{"` in base64. The header of a JWT may also begin with a space or a line break after the brace.
        long_enough || (run[start..].starts_with("eyJ") && run.len() - start >= 16)
    })
}

/// `bytes` as hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(2 * bytes.len());
    for digit in bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
        out.push(DIGITS[usize::from(digit)].into());
    }
    out
}

/// The messages of an error and its sources, each once.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !out.contains(&message) {
            out.push_str(": ");
            out.push_str(&message);
        }
        source = error.source();
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JWT: &str = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2lnbmF0dXJl";

    #[test]
    fn redacts_credentials() {
        for secret in [
            JWT,
            "ya29.a0AfH6SMBxyz-_123456",
            "ya29.d.c0ASRK0GZ",
            "eyAiYWxnIjoiUlMyNTYifQ.eyAiYXVkIjoieCJ9AAAA.c2lnbmF0dXJl",
            "1//0gAbCdEfGhIjKlMn",
            "GOCSPX-abcdefghijkl",
            "eyJhbGciOiJSUzI1NiIsImtpZCI6",
        ] {
            for text in [
                secret.to_owned(),
                format!("got {secret}, sorry"),
                format!("token={secret}"),
                format!("[{secret}]"),
                format!("https://x.example/?t={secret}&u=1"),
                format!("{{\"access_token\":\"{secret}\"}}"),
                format!("Authorization: Bearer {secret}"),
                format!("bob:{secret}"),
                format!("@{secret}@"),
            ] {
                let safe = redacted(&text, 512);
                assert!(!safe.contains(&secret[3..12]), "{text} became {safe}");
                assert!(safe.contains(REDACTED), "{text} became {safe}");
            }
        }
        assert!(!redacted("Bearer opaque-secret", 512).contains("opaque"));
        let key = format!("MII{}9aZ", "Ab3".repeat(30));
        assert_eq!(redacted(&key, 512), REDACTED);
    }

    #[test]
    fn redacts_userinfo() {
        assert_eq!(
            redacted("proxy http://bob:pa55@proxy:3128 says no", 512),
            "proxy http://[redacted]@proxy:3128 says no"
        );
        assert_eq!(redacted("http://bob@proxy/", 512), "http://[redacted]@proxy/");
        assert_eq!(redacted("http://proxy:3128/a@b", 512), "http://proxy:3128/a@b");
    }

    #[test]
    fn leaves_plain_text_alone() {
        for text in [
            "Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist).",
            "Not found; Gaia id not found for email caller@p.iam.gserviceaccount.com",
            "IAM Service Account Credentials API has not been used in project 1234567890 before or it is disabled. Enable it \
             by visiting https://console.developers.google.com/apis/api/iamcredentials.googleapis.com/overview?project=12 then retry.",
            "the keys eye and they.eat.more",
        ] {
            assert_eq!(redacted(text, 512), text);
        }
    }

    #[test]
    fn bounds_and_escapes() {
        assert_eq!(printable("a\nb\u{202e}c", 16), "a\\nb\\u{202e}c");
        // Of both sets of control characters, and every mark that changes the direction.
        for c in [
            '\u{1b}',
            '\u{7f}',
            '\u{9b}',
            '\u{61c}',
            '\u{200f}',
            '\u{2066}',
            '\u{fff9}',
            '\u{e0041}',
        ] {
            assert!(!printable(&format!("a{c}b"), 16).contains(c), "{c:?}");
        }
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable("abc", 3), "abc");
        let cut = format!("{} {JWT}", "x".repeat(500));
        assert!(!redacted(&cut, 512).contains("eyJ"));
    }

    #[test]
    fn nothing_unsafe_is_left() {
        let marks = "\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{e0041}";
        let controls = ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}');
        for c in controls.chain(marks.chars()) {
            let text = format!("a{c}b");
            assert!(!printable(&text, 100).contains(c), "{:?}", c);
            assert!(!redacted(&text, 100).contains(c), "{:?}", c);
            if c != '\n' {
                assert!(!printable_lines(&text).contains(c), "{:?}", c);
            }
            let json = serde_json::to_string(&text).expect("JSON");
            let shown = printable_json(&json);
            assert!(!shown.contains(c), "{shown:?}");
            assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), text);
        }
        let plain = "naïve – 日本語 🦀, \"quoted\"\nnext";
        assert_eq!(printable_lines(plain), plain);
        assert_eq!(printable_json(plain), plain);
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_hides_jwts(before in "\\PC{0,40}", after in "[^A-Za-z0-9._~+=%/-]\\PC{0,40}") {
            let safe = redacted(&format!("{before} {JWT}{after}"), 4096);
            proptest::prop_assert!(!safe.contains("c2lnbmF0dXJl"));
        }

        #[test]
        fn any_text_is_bounded(text in proptest::prelude::any::<String>()) {
            let safe = redacted(&text, 64);
            proptest::prop_assert!(safe.chars().count() <= 64 + 1);
            proptest::prop_assert!(!safe.contains(char::is_control));
        }
    }

    /// What [`jwt_start`] looks for, tried at each place.
    fn looks_like_jwt(text: &str) -> bool {
        let mut parts = text.split('.');
        let long_enough = [16, 16, 4]
            .iter()
            .all(|&least| parts.next().is_some_and(|part| part.len() >= least));
        long_enough || (text.starts_with("eyJ") && text.len() >= 16)
    }

    proptest! {
        #[test]
        fn a_jwt_is_found_where_a_search_at_each_place_finds_it(run in "(ey|eyJ|a{1,20}|[.]){0,24}") {
            let expected = run.match_indices("ey").map(|(at, _)| at).find(|&at| looks_like_jwt(&run[at..]));
            prop_assert_eq!(jwt_start(&run), expected);
        }

        #[test]
        fn a_text_is_redacted_as_a_whole_one_is(text in "(Bearer |ya29[.]|eyJ|[a-z]{1,9}|[ :@/\u{1F600}.]){0,60}", max in 0_usize..80) {
            prop_assert_eq!(redacted(&text, max), printable(&redact(&text, usize::MAX), max));
        }
    }
}
