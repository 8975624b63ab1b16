//! Puts the Google library's errors into safe words: they can hold whole answers.

use google_cloud_auth::errors::CredentialsError;
use serde_json::Value;

use super::answer::GoogleError;
use super::error::{Class, Endpoint, Error, Reason};
use super::text;

/// The longest piece of an answer that is shown, in characters.
const MAX_PIECE_CHARS: usize = 256;

/// What the library writes before a body, and after it.
const BODY_MARKS: [(&str, Option<char>); 2] = [("body=<", Some('>')), ("] error: ", None)];

/// Phrases of the library about its own retrying, which is not the operator's.
const PADDING: [&str; 4] = [
    " and future attempts will not succeed",
    " but future attempts may succeed",
    " Subsequent calls with this credential will also fail.",
    "cannot create the authentication headers",
];

/// Turns a failure to get an access token into an [`Error`].
pub(crate) fn from_library(error: &CredentialsError, from_metadata: bool) -> Error {
    let class = if error.is_transient() {
        Class::Passing
    } else {
        Class::Refused
    };
    let message = format!(
        "the operator's credentials give no access token: {}",
        safe_chain(error, from_metadata)
    );
    let made = Error::new(Endpoint::Credentials, Reason::CredentialsUnavailable, &message).with_class(class);
    if from_metadata && is_unreachable(error) {
        return made.with_advice(
            "There is no credential file, and no metadata server answers. Mount a credential file and set \
             GOOGLE_APPLICATION_CREDENTIALS, or run the operator where there is a metadata server (GKE with Workload \
             Identity Federation, Compute Engine).",
        );
    }
    made
}

fn is_unreachable(error: &CredentialsError) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error
            .downcast_ref::<reqwest::Error>()
            .is_some_and(reqwest::Error::is_connect)
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// The library's errors repeat their sources and pad them with phrases; each thing is said once here, so that what Google
/// said survives the bound on messages.
fn safe_chain(error: &dyn std::error::Error, from_metadata: bool) -> String {
    let mut messages = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        messages.push(error.to_string());
        source = error.source();
    }
    let mut out: Vec<String> = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        let inner = messages.get(i + 1).filter(|inner| !inner.is_empty());
        let own = inner
            .and_then(|inner| message.split_once(inner.as_str()))
            .map_or(message.as_str(), |(own, _)| own);
        let own = PADDING
            .iter()
            .fold(safe_message(own, from_metadata), |text, padding| {
                text.replace(padding, "")
            });
        let own = own.trim_matches([' ', ':', '.']).to_owned();
        if !own.is_empty() && !out.contains(&own) {
            out.push(own);
        }
    }
    out.join(": ")
}

/// One message, with a body in it replaced by what Google says in that body, and without addresses of requests.
fn safe_message(message: &str, from_metadata: bool) -> String {
    for (mark, end) in BODY_MARKS {
        let Some((before, rest)) = message.split_once(mark) else {
            continue;
        };
        let (body, after) = end.and_then(|end| rest.rsplit_once(end)).unwrap_or((rest, ""));
        let said = safe_body(body, from_metadata);
        return format!(
            "{before}{mark}{said}{}{after}",
            end.map(String::from).unwrap_or_default()
        );
    }
    match message.split_once(" for url (") {
        Some((before, rest)) => format!("{before}{}", rest.split_once(')').map_or("", |(_, after)| after)),
        None => message.to_owned(),
    }
}

fn safe_body(body: &str, from_metadata: bool) -> String {
    if let Some(google) = GoogleError::parse(body.as_bytes()) {
        return google.to_string();
    }
    // The shape of OAuth's token endpoints: RFC 6749, 5.2.
    if let Ok(json) = serde_json::from_str::<Value>(body)
        && let Some(code) = json["error"].as_str()
    {
        let code = text::redacted(code, MAX_PIECE_CHARS);
        return match json["error_description"].as_str() {
            Some(description) => format!("{code}: {}", text::redacted(description, MAX_PIECE_CHARS)),
            None => code,
        };
    }
    if from_metadata {
        // A metadata server answers in plain text that says what is missing, such as an annotation.
        text::redacted(body, MAX_PIECE_CHARS)
    } else {
        "answer left out".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(message: &str, from_metadata: bool) -> String {
        from_library(&CredentialsError::from_msg(false, message), from_metadata).to_string()
    }

    #[test]
    fn bodies_are_read_not_repeated() {
        let body = r#"failed, body=<{"error":"invalid_grant","error_description":"no","refresh":"SECRET>"}>"#;
        let text = shown(body, false);
        assert!(
            text.contains("invalid_grant: no") && !text.contains("SECRET"),
            "{text}"
        );
        let text = shown("failed, body=<<html>SECRET</html>>", false);
        assert!(
            text.contains("answer left out") && !text.contains("SECRET"),
            "{text}"
        );
        let text = shown(
            "the HTTP transport reports a [403] error: {\"error\":{\"message\":\"no\",\"x\":\"SECRET\"}}",
            false,
        );
        assert!(text.contains("no") && !text.contains("SECRET"), "{text}");
        let text = shown(
            "the HTTP transport reports a [404] error: not annotated ya29.abcdefghijklmn",
            true,
        );
        assert!(text.contains("not annotated") && !text.contains("ya29"), "{text}");
    }

    #[test]
    fn addresses_are_left_out() {
        let text = shown("error sending request for url (https://h/t?key=SECRET)", false);
        assert!(!text.contains("SECRET"), "{text}");
    }

    #[test]
    fn class_follows_the_library() {
        let of = |transient| from_library(&CredentialsError::from_msg(transient, "m"), false).class();
        assert_eq!((of(true), of(false)), (Class::Passing, Class::Refused));
    }
}
