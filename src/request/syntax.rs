//! Pure: the names, keys and accounts that Kubernetes and Google accept.

use crate::api::{GROUP, LABEL_MANAGED_BY, RESERVED_PREFIX};
use crate::request::reserved::is_below;
use crate::token::Account;

/// Domains that templates may not use, nor their subdomains, as prefixes of labels and annotations.
const RESERVED_DOMAINS: [&str; 3] = [GROUP, "kubernetes.io", "k8s.io"];

/// Whether `text` is a numeric unique ID rather than an e-mail address.
pub fn is_unique_id(text: &str) -> bool {
    matches!(Account::from_name(text), Account::UniqueId(_))
}

/// Whether `text` is an e-mail address in lower case, or a numeric unique ID.
pub fn is_service_account(text: &str) -> bool {
    if is_unique_id(text) {
        return text.len() <= 32;
    }
    let Some((local, domain)) = text.split_once('@').filter(|_| text.len() <= 254) else {
        return false;
    };
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let local_ok = local.bytes().next().is_some_and(edge)
        && local.bytes().all(|b| edge(b) || matches!(b, b'.' | b'_' | b'-'));
    let domain_ok = domain.len() >= 2
        && domain.bytes().next().is_some_and(edge)
        && domain.bytes().last().is_some_and(edge)
        && domain.bytes().all(|b| edge(b) || matches!(b, b'.' | b'-'));
    local_ok && domain_ok
}

/// Whether `text` can name a Secret (<https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names>).
pub fn is_dns_subdomain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            let inner = label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        })
}

/// Whether `text` can be a key of a Secret's data.
pub fn is_secret_key(text: &str) -> bool {
    let characters = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    characters && !text.is_empty() && text.len() <= 253 && text != "." && !text.starts_with("..")
}

/// Whether `text` can be the value of a label
/// (<https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>).
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_name(text)
}

fn is_label_name(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= 63 && is_secret_key(text) && edge(text.bytes().next()) && edge(text.bytes().last())
}

/// Whether `text` can be the key of a label.
pub fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_name(name),
        None => is_label_name(text),
    }
}

/// Whether a template may set a label or annotation of this key.
///
/// # Errors
/// Kubernetes would reject the key, or its prefix is reserved.
pub fn check_metadata_key(key: &str) -> Result<(), &'static str> {
    let prefix = key.split_once('/').map(|(prefix, _)| prefix);
    if !is_label_key(key) {
        return Err(
            "is not a valid key: an optional DNS subdomain and a slash, then at most 63 letters, digits, -, _ and .",
        );
    }
    let reserved = prefix.is_some_and(|prefix| RESERVED_DOMAINS.iter().any(|own| is_below(prefix, own)));
    // app.kubernetes.io/ is for any client, except for the label that our watches select by.
    let recommended = prefix == Some("app.kubernetes.io") && key != LABEL_MANAGED_BY;
    if (reserved && !recommended) || key.starts_with(RESERVED_PREFIX) {
        return Err("has a reserved prefix");
    }
    Ok(())
}

/// `text` as an error may quote it: its first 64 characters, with control characters escaped.
pub fn quote_bounded(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_default).collect()
}
