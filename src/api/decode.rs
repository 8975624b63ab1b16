//! Pure: the JSON of a spec → the spec, or the field that cannot be decoded.

use std::fmt::{self, Write};

use serde::de::DeserializeOwned;

/// Most bytes that are kept of an error of serde, which may quote the whole object.
const MAX_ERROR: usize = 4096;
/// Most bytes that are kept of the path of a field, which can hold keys of a template.
const MAX_PATH: usize = 256;

/// Decodes the JSON of a spec.
///
/// # Errors
/// The field that cannot be decoded, and why, as `publishable` says it; bounded.
pub fn decode_spec<T: DeserializeOwned>(json: &str, publishable: fn(&str) -> String) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| {
        // To know the field costs more, so it is asked only of what failed.
        let traced: Result<T, _> =
            serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(json));
        let path = traced.err().map(|error| error.path().to_string());
        let field = path.filter(|path| path.as_str() != ".");
        let field = field.map_or_else(String::new, |field| format!(".{}", bounded(&field)));
        format!("spec{field}: {}", publishable(&shown(&error)))
    })
}

/// The beginning of `text`.
fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_PATH)]
}

/// The beginning of the text of `error`, without the position in the JSON, which is of no use to a user who sees the object as YAML.
fn shown(error: &serde_json::Error) -> String {
    struct Bounded(String);

    impl Write for Bounded {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let left = MAX_ERROR.saturating_sub(self.0.len());
            self.0.push_str(&text[..text.floor_char_boundary(left)]);
            match text.len() <= left {
                true => Ok(()),
                false => Err(fmt::Error),
            }
        }
    }

    let mut text = Bounded(String::new());
    // Fails if the text is longer.
    let _ = write!(text, "{error}");
    let position = format!(" at line {} column {}", error.line(), error.column());
    match text.0.strip_suffix(&position) {
        Some(short) => short.to_owned(),
        None => text.0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::v1alpha1::{IdTokenGrantSpec, IdTokenRequestSpec};

    fn refused<T: DeserializeOwned>(spec: &Value) -> String {
        let decoded: Result<T, _> = decode_spec(&spec.to_string(), str::to_owned);
        decoded.err().unwrap_or_default()
    }

    #[test]
    fn the_field_is_named() {
        for (spec, field) in [
            (json!({"audience": null}), "spec.audience: "),
            (
                json!({"audience": "a", "source": {"impersonation": {"delegates": ["b", {}]}}}),
                "spec.source.impersonation.delegates[1]: ",
            ),
            (
                json!({"audience": "a", "target": {"creationPolicy": ""}}),
                "spec.target.creationPolicy: ",
            ),
            (Value::Null, "spec: "),
        ] {
            let error = refused::<IdTokenRequestSpec>(&spec);
            assert!(
                error.starts_with(field) && !error.contains(" at line "),
                "{error}"
            );
        }
        let grant = json!({"from": [], "to": [{"serviceAccounts": ["1"], "audiences": [7]}]});
        let error = refused::<IdTokenGrantSpec>(&grant);
        assert!(error.starts_with("spec.to[0].audiences[0]: "), "{error}");
    }

    #[test]
    fn little_of_a_long_error_is_read() {
        let long = "ä".repeat(200_000);
        let error = refused::<IdTokenRequestSpec>(&json!({"audience": "a", "includeEmail": long}));
        assert!(
            error.starts_with("spec.includeEmail: ") && error.len() < MAX_ERROR + MAX_PATH,
            "{error}"
        );
        let error = refused::<IdTokenRequestSpec>(
            &json!({"audience": "a", "target": {"template": {"data": {long: 7}}}}),
        );
        assert!(
            error.starts_with("spec.target.template.data.ää") && error.len() < 2 * MAX_PATH,
            "{error}"
        );
    }
}
