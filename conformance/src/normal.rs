//! The normal form of an answer: what differs from run to run is replaced, so that two answers can be compared field by field, and nothing
//! secret is left.
//!
//! | In an answer | In its normal form |
//! |---|---|
//! | the value of a variable, such as an e-mail | `${target}` |
//! | an ID token | its claims, and whether a published key has signed it |
//! | another token | `<token>` |
//! | a time in a token | `now`, `iat + 3600` |
//! | another time | `now + 600`, `<time>` |
//! | `expires_in` | `about 600`, in whole minutes |
//! | the id, modulus and certificate of a key | `<kid>`, `<modulus>`, `<certificate>` |
//! | equal elements of a list, one after another | one |
//! | a header of an answer or a front end, not of the protocol | absent |

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{HeaderMap, HeaderName};
use serde_json::{Map, Value, json};

use crate::world::World;

/// Headers that say nothing of the protocol: they differ from answer to answer, or from front end to front end.
const VOLATILE: [&str; 14] = [
    "age",
    "alt-svc",
    "connection",
    "content-encoding",
    "content-length",
    "date",
    "expires",
    "keep-alive",
    "last-modified",
    "server-timing",
    "transfer-encoding",
    "vary",
    "via",
    "x-cloud-trace-context",
];
/// Fields that hold a token.
const TOKENS: [&str; 6] = [
    "accessToken",
    "access_token",
    "id_token",
    "refresh_token",
    "signedJwt",
    "token",
];
/// How far clocks may differ, in seconds.
const SKEW: i64 = 120;

/// An answer as it came.
pub(crate) struct Raw {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// The normal form: `{status, headers, body}`.
pub(crate) fn answer(world: &World, raw: &Raw) -> Value {
    let normal = Normal {
        world,
        now: jiff::Timestamp::now().as_second(),
    };
    let text = String::from_utf8_lossy(&raw.body);
    // Text is no JSON, even if it is a number.
    let body = match serde_json::from_str(&text) {
        Ok(json @ (Value::Object(_) | Value::Array(_))) => normal.value("", &json),
        _ => normal.text("", &text),
    };
    json!({"status": raw.status, "headers": normal.headers(&raw.headers), "body": body})
}

struct Normal<'w> {
    world: &'w World,
    now: i64,
}

impl Normal<'_> {
    /// All but the volatile ones. A header that occurs twice has both values.
    fn headers(&self, headers: &HeaderMap) -> Map<String, Value> {
        let names = headers.keys().map(HeaderName::as_str);
        names
            .filter(|name| !VOLATILE.contains(name))
            .map(|name| {
                let values = headers.get_all(name).iter();
                let values: Vec<_> = values
                    .map(|value| self.header(name, &String::from_utf8_lossy(value.as_bytes())))
                    .collect();
                (name.to_owned(), Value::String(values.join(", ")))
            })
            .collect()
    }

    fn header(&self, name: &str, value: &str) -> String {
        match name {
            "cache-control" => without_digits(value),
            _ => self.plain(value),
        }
    }

    fn value(&self, name: &str, value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| {
                    let shown = if is_key_id(name) {
                        "<kid>".to_owned()
                    } else {
                        self.plain(name)
                    };
                    (shown, self.value(name, value))
                });
                Value::Object(fields.collect())
            }
            Value::Array(items) => {
                let mut items: Vec<_> = items.iter().map(|item| self.value(name, item)).collect();
                items.dedup();
                Value::Array(items)
            }
            Value::Number(_) | Value::Null if name == "organization_number" => json!("<number or null>"),
            Value::Number(seconds) if name == "expires_in" => {
                let minutes = seconds.as_i64().unwrap_or(0) + 59;
                json!(format!("about {}", minutes - minutes % 60))
            }
            Value::String(text) => self.text(name, text),
            other => other.clone(),
        }
    }

    fn text(&self, name: &str, text: &str) -> Value {
        let is_token = TOKENS.contains(&name);
        if is_token {
            self.world.hide(text);
        }
        let is_access_token = matches!(name, "accessToken" | "access_token" | "signedJwt");
        if let Some(jwt) = Jwt::parse(text).filter(|_| !is_access_token) {
            self.world.hide(text);
            return self.jwt(&jwt);
        }
        let replaced = match name {
            _ if is_token => "<token>".to_owned(),
            "kid" => "<kid>".to_owned(),
            "n" => "<modulus>".to_owned(),
            "expireTime" => match text.parse::<jiff::Timestamp>() {
                Ok(time) => {
                    let seconds = time.as_second() - self.now + SKEW / 2;
                    format!("now + {}", seconds - seconds % SKEW)
                }
                Err(_) => self.plain(text),
            },
            _ if text.starts_with("-----BEGIN CERTIFICATE") => "<certificate>".to_owned(),
            _ => self.plain(text),
        };
        Value::String(replaced)
    }

    fn jwt(&self, jwt: &Jwt) -> Value {
        let mut keys = self.world.published.iter();
        let signed = keys.any(|key| {
            key.kid.as_deref() == jwt.header["kid"].as_str()
                && key.verifies("RS256", jwt.message.as_bytes(), &jwt.signature)
        });
        let issued = jwt.claims["iat"].as_i64();
        let claims: Map<String, Value> = jwt
            .claims
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| {
                let value = match (name.as_str(), value.as_i64(), issued) {
                    ("iat", Some(time), _) if (time - self.now).abs() <= SKEW => json!("now"),
                    ("iat", Some(time), _) => json!(format!("now + {}", time - self.now)),
                    ("exp" | "nbf", Some(time), Some(issued)) => json!(format!("iat + {}", time - issued)),
                    _ => self.value(name, value),
                };
                (name.clone(), value)
            })
            .collect();
        let signature = match signed {
            true => "RS256 by a published key",
            false => "by no published key",
        };
        json!({"signature": signature, "claims": claims})
    }

    /// A text without secrets, with variables instead of their values.
    fn plain(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self.world.secrets() {
            text = text.replace(&secret, "<secret>");
        }
        for (value, name) in self.world.shown() {
            text = replace_whole(&text, value, &format!("${{{name}}}"));
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || "._-/+=".contains(c);
        let (mut out, mut word) = (String::new(), String::new());
        for c in text.chars().map(Some).chain([None]) {
            match c {
                Some(c) if is_part(c) => word.push(c),
                other => {
                    out.push_str(&self.word(&word));
                    word.clear();
                    out.extend(other);
                }
            }
        }
        out
    }

    fn word(&self, word: &str) -> String {
        if is_token(word) {
            return "<token>".to_owned();
        }
        match word.parse::<i64>() {
            Ok(time) if word.len() == 10 && (time - self.now).abs() < 7 * 86_400 => "<time>".to_owned(),
            _ => word.to_owned(),
        }
    }
}

/// Whether a word looks like a token of Google's, or a JWT.
pub(crate) fn is_token(word: &str) -> bool {
    word.starts_with("ya29.") || word.starts_with("1//") || (word.starts_with("eyJ") && word.len() > 20)
}

/// Whether a text is the id of a key: 40 hexadecimal digits.
fn is_key_id(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Replaces `value` where it is not part of a longer word.
fn replace_whole(text: &str, value: &str, by: &str) -> String {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '-');
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(value).filter(|_| !value.is_empty()) {
        let (before, after) = (&rest[..at], &rest[at + value.len()..]);
        out.push_str(before);
        let inside = is_part(out.chars().last()) || is_part(after.chars().next());
        out.push_str(if inside { value } else { by });
        rest = after;
    }
    out + rest
}

fn without_digits(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c.is_ascii_digit() {
            true if out.ends_with("N") => {}
            true => out.push('N'),
            false => out.push(c),
        }
    }
    out
}

struct Jwt {
    header: Value,
    claims: Value,
    message: String,
    signature: Vec<u8>,
}

impl Jwt {
    fn parse(text: &str) -> Option<Self> {
        let (message, signature) = text.trim().rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        let header = json(header).filter(|header| header["alg"].is_string())?;
        Some(Self {
            claims: json(claims).filter(Value::is_object)?,
            header,
            message: message.to_owned(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }
}

/// Stands for any value, where it is expected.
pub(crate) const ANY: &str = "<any>";

/// The fields in which two normal forms differ: path, expected and found. [`ANY`] in `expected` stands for any value.
pub(crate) fn differences(expected: &Value, found: &Value) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    compare("", expected, found, &mut all);
    all
}

fn compare(path: &str, expected: &Value, found: &Value, all: &mut Vec<(String, String, String)>) {
    let absent = || "absent".to_owned();
    match (expected, found) {
        (Value::String(any), _) if any == ANY => {}
        (Value::Object(expected), Value::Object(found)) => {
            for (name, value) in expected {
                let path = format!("{path}.{name}");
                match found.get(name) {
                    Some(found) => compare(&path, value, found, all),
                    None => all.push((path, value.to_string(), absent())),
                }
            }
            for (name, value) in found.iter().filter(|(name, _)| !expected.contains_key(*name)) {
                all.push((format!("{path}.{name}"), absent(), value.to_string()));
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                compare(&format!("{path}[{index}]"), expected, found, all);
            }
        }
        (expected, found) if expected == found => {}
        (expected, found) => all.push((path.to_owned(), expected.to_string(), found.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_replaced_where_it_stands_alone() {
        assert_eq!(
            replace_whole("abc: abc-x, xabc, abc.", "abc", "$"),
            "$: abc-x, xabc, $."
        );
        assert_eq!(without_digits("public, max-age=19800"), "public, max-age=N");
    }

    #[test]
    fn tokens_are_known_by_their_looks() {
        for token in ["ya29.c.b0abc", "1//0abc", "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"] {
            assert!(is_token(token), "{token}");
        }
        assert!(!is_token("eyJ") && !is_token("token"));
    }

    #[test]
    fn differences_are_named_field_by_field() {
        let expected = json!({"a": 1, "b": [{"c": "<any>"}], "d": 1});
        let found = json!({"a": 2, "b": [{"c": 3}], "e": 1});
        let paths: Vec<_> = differences(&expected, &found)
            .into_iter()
            .map(|(path, ..)| path)
            .collect();
        assert_eq!(paths, [".a", ".d", ".e"]);
    }
}
