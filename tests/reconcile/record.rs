//! What is compared: the calls of a case as a text that people can read, without what differs from run to run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::api_server::Call;

/// Set to rewrite what is recorded; the difference is then for `git diff`.
const REWRITE: &str = "IDTOKEN_RECORD";
/// Times of these fields are of the moment of the call.
const MOMENTS: [&str; 3] = ["lastTransitionTime", "eventTime", "lastObservedTime"];
const DIGEST: &str = "idtoken.dev/token-digest";
/// The label of the token that a write is tried with.
const PLACEHOLDER: &str = "placeholder";

/// A token that was written to a Secret.
#[derive(Clone, Debug)]
struct Token {
    label: String,
    raw: String,
    issued: Timestamp,
    expires: Timestamp,
    digest: String,
}

/// The tokens of a case, by which its times and digests have names.
#[derive(Debug, Default)]
struct Tokens(Vec<Token>);

impl Tokens {
    /// Takes in the token of a Secret, or of a patch of one, as the newest.
    fn add(&mut self, label: &str, secret: &Value) {
        for value in secret["data"].as_object().into_iter().flatten() {
            let text = decoded(value.1);
            let Some((issued, expires)) = times(&text) else {
                continue;
            };
            if let Some(known) = self.0.iter().position(|token| token.raw == text) {
                let known = self.0.remove(known);
                self.0.push(known);
                continue;
            }
            let digest = secret["metadata"]["annotations"][DIGEST].as_str();
            let same = self
                .0
                .iter()
                .filter(|token| token.label.starts_with(label))
                .count();
            self.0.push(Token {
                // Placeholders differ only in the second in which they are made, so a number would differ from run to run.
                label: match same {
                    _ if label == PLACEHOLDER => label.to_owned(),
                    0 => label.to_owned(),
                    _ => format!("{label} {}", same + 1),
                },
                raw: text,
                issued,
                expires,
                digest: digest.unwrap_or("none").to_owned(),
            });
        }
    }

    /// The same JSON, sorted, with names in place of tokens, digests, times and messages.
    fn named(&self, key: &str, value: &Value) -> Value {
        match value {
            Value::Object(map) if key == "data" => {
                let entries = map.iter().map(|(key, value)| {
                    let text = match value {
                        Value::Null => Value::Null,
                        value => Value::String(self.without_tokens(decoded(value))),
                    };
                    (key.clone(), text)
                });
                entries.collect()
            }
            Value::Object(map) => {
                let sorted: BTreeMap<&String, &Value> = map.iter().collect();
                let entries = sorted
                    .into_iter()
                    .map(|(key, value)| (key.clone(), self.named(key, value)));
                entries.collect()
            }
            Value::Array(items) => items.iter().map(|item| self.named(key, item)).collect(),
            Value::String(text) => Value::String(self.name(key, text)),
            other => other.clone(),
        }
    }

    fn name(&self, key: &str, text: &str) -> String {
        if ["message", "note"].contains(&key) && !text.is_empty() {
            return format!("<{key}>");
        }
        // The status has twice as many digits of it.
        if let Some(token) = self.0.iter().find(|token| text.starts_with(&token.digest)) {
            return format!("<digest of the {} token>", token.label);
        }
        let Ok(at) = text.parse::<Timestamp>() else {
            return self.without_tokens(text.to_owned());
        };
        if MOMENTS.contains(&key) {
            let age = Timestamp::now().duration_since(at).abs();
            return match age < SignedDuration::from_mins(5) {
                true => "<now>".to_owned(),
                false => text.to_owned(),
            };
        }
        // The newest first: two may have been issued in the same second.
        for Token {
            label,
            issued,
            expires,
            ..
        } in self.0.iter().rev()
        {
            let age = at.duration_since(*issued);
            if at == *issued {
                return format!("<issue time of the {label} token>");
            }
            if at == *expires {
                return format!("<expiration time of the {label} token>");
            }
            if age.is_positive() && at < *expires {
                return format!(
                    "<{:.3} s after the issue of the {label} token>",
                    age.as_secs_f64()
                );
            }
        }
        text.to_owned()
    }

    fn without_tokens(&self, text: String) -> String {
        self.0.iter().fold(text, |text, token| {
            text.replace(&token.raw, &format!("<the {} token>", token.label))
        })
    }
}

fn decoded(value: &Value) -> String {
    let bytes = STANDARD.decode(value.as_str().unwrap_or_default());
    String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
}

/// When a token was issued and when it expires; none where the text is no token.
fn times(text: &str) -> Option<(Timestamp, Timestamp)> {
    let (_, payload) = text.strip_prefix("eyJ")?.split_once('.')?;
    let payload = payload.split('.').next()?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    let time = |claim: &str| Timestamp::from_second(claims[claim].as_i64()?).ok();
    Some((time("iat")?, time("exp")?))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("JSON")
}

/// The text of a case: what it is about, each call, and what is there in the end. `old` is the Secret that was there before, or null.
pub(crate) fn text(about: &str, old: &Value, calls: &[Call], end: &[(String, Value)]) -> String {
    let mut tokens = Tokens::default();
    tokens.add("old", old);
    let mut text = format!("# {about}\n");
    for call in calls {
        let label = match call.path.contains("dryRun") {
            true => PLACEHOLDER,
            false => "new",
        };
        tokens.add(label, &call.body);
        let mut body = tokens.named("", &call.body);
        // It ends with the time in nanoseconds.
        if call.is("POST", "/events") {
            body["metadata"]["name"] = "<name>".into();
        }
        text += &format!("\n{} {}\n", call.method, call.path);
        if !["", "application/json"].contains(&call.content_type.as_str()) {
            text += &format!("as {}\n", call.content_type);
        }
        if call.metadata_only {
            text += "for the metadata alone\n";
        }
        if !body.is_null() {
            text += &format!("{}\n", pretty(&body));
        }
        text += &match call.status {
            Some(code) => format!("=> {code}\n"),
            None => "=> no answer\n".to_owned(),
        };
    }
    for (what, value) in end {
        text += &format!("\n# {what} in the end\n{}\n", pretty(&tokens.named("", value)));
    }
    text
}

/// What is recorded of a case; none where it is to be recorded now.
pub(crate) fn recorded(case: &str) -> Option<String> {
    match std::env::var_os(REWRITE) {
        Some(_) => None,
        None => Some(std::fs::read_to_string(file(case)).unwrap_or_default()),
    }
}

/// Records a case.
pub(crate) fn rewrite(case: &str, text: &str) {
    std::fs::write(file(case), text).expect("the record can be written");
}

fn file(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/reconcile/recorded/{case}.txt"))
}

/// Fails with the first lines that differ, where any do.
pub(crate) fn compare(case: &str, recorded: &str, text: &str) {
    if recorded == text {
        return;
    }
    let lines: Vec<&str> = text.lines().collect();
    let expected: Vec<&str> = recorded.lines().collect();
    let same = lines.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    let from = |lines: &[&str]| {
        lines[same.saturating_sub(4)..]
            .iter()
            .take(14)
            .map(|line| format!("  {line}\n"))
            .collect::<String>()
    };
    panic!(
        "{case}: the calls are others than recorded, from line {} of {} on.\nRecorded:\n{}Now:\n{}\nIn full:\n{text}\n\
         If that is intended: {REWRITE}=1 cargo test --test reconcile, then git diff",
        same + 1,
        file(case).display(),
        from(&expected),
        from(&lines),
    );
}
