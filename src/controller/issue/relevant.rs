//! Pure: what is kept of a Secret that was read. A tenant can write tens of thousands of labels and keys on it, and a reconcile holds the Secret
//! while Google and the API server answer. So all that no phase compares is dropped at once.

use std::collections::BTreeSet;

use crate::api::{LABEL_MANAGED_BY, annotations};
use crate::kubernetes::secret::SecretContent;
use crate::request::target::TargetSpec;
use crate::request::template::MAX_TOTAL;
use crate::token::MAX_TOKEN_BYTES;

/// Longest [`annotations::OWNED`], in bytes: longer than any that the operator writes.
const MAX_OWNED: usize = 64 << 10;
/// Longest type that is kept, in bytes. Longer ones are no type that a spec can have.
const MAX_TYPE: usize = 1024;
/// Most keys that the operator does not write under which the token is searched.
const MAX_OTHER_KEYS: usize = 16;

/// Annotations of ours that are read beyond the Secret's summary.
const ANNOTATIONS: [&str; 12] = [
    annotations::REQUEST,
    annotations::REQUEST_UID,
    annotations::TOKEN_HASH,
    annotations::RENDER_HASH,
    annotations::ISSUED,
    annotations::EXPIRES,
    annotations::DIGEST,
    annotations::RENEWS,
    annotations::OWNED,
    annotations::ADOPTED,
    annotations::HANDLED_RENEW,
    annotations::ADOPT,
];

/// Keeps of `content` what `target` and the Secret's own list of our fields name, and a few values that can be a token. A value that is longer
/// than any of ours is dropped too: it differs from ours in any case.
pub(super) fn retain(content: &mut SecretContent, target: &TargetSpec) {
    let owned = content.annotation(annotations::OWNED);
    let owned = owned
        .filter(|owned| owned.len() <= MAX_OWNED)
        .unwrap_or_default()
        .to_owned();
    let owned: BTreeSet<_> = owned
        .split(',')
        .filter_map(|field| field.split_once(':'))
        .collect();
    let is_owned = |kind: &str, key: &str| owned.contains(&(kind, key));
    let mut others = 0;
    content.data.retain(|key, value| {
        let is_ours = *key == target.key || target.data.contains_key(key) || is_owned("data", key);
        let can_be_token = || value.starts_with(b"eyJ") && value.len() <= MAX_TOKEN_BYTES;
        match is_ours {
            true => value.len() <= MAX_TOTAL,
            false if can_be_token() => {
                others += 1;
                others <= MAX_OTHER_KEYS
            }
            false => false,
        }
    });
    if let Some(labels) = &mut content.meta.labels {
        labels.retain(|key, _| {
            key == LABEL_MANAGED_BY || target.labels.contains_key(key) || is_owned("label", key)
        });
    }
    if let Some(notes) = &mut content.meta.annotations {
        notes.retain(|key, value| {
            let is_ours = ANNOTATIONS.contains(&key.as_str()) || target.annotations.contains_key(key);
            (is_ours || is_owned("annotation", key)) && value.len() <= MAX_OWNED
        });
    }
    if content.type_.len() > MAX_TYPE {
        let end = content.type_.floor_char_boundary(MAX_TYPE);
        content.type_.truncate(end);
        content.type_.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::RESERVED_PREFIX;
    use crate::fixtures::{apply, content, request, token};
    use crate::render::render;

    const NOW: i64 = 1_800_000_000;

    fn many(prefix: &str, value: &str) -> Value {
        (0..10_000)
            .map(|number| (format!("{prefix}{number}"), json!(value)))
            .collect()
    }

    #[test]
    fn a_secret_costs_little_whatever_a_tenant_adds_and_is_compared_as_before() {
        let template = |data: Value, note: &str| {
            request(
                json!({"target": {"template": {"metadata": {"labels": {"team": "shop"}, "annotations": {(note): "x"}}, "data": data}}}),
            )
        };
        let before = template(json!({"old": "1", "kept": "2"}), "old");
        let rendered = render(&before, &token(&before, NOW)).unwrap();
        let mut secret = json!(rendered.create("shop", "billing"));
        secret["metadata"]["uid"] = "secret".into();
        secret["metadata"]["resourceVersion"] = "7".into();
        apply(
            &mut secret,
            &json!({
                "metadata": {"labels": many("l", ""), "annotations": many(RESERVED_PREFIX, "")},
                "data": many("d", ""), "type": "Opaque".repeat(100_000),
            }),
        );
        apply(&mut secret, &json!({"data": many("t", "ZXlK")}));
        let after = template(json!({"kept": "3"}), "new");
        let rendered = render(&after, &token(&after, NOW)).unwrap();
        let all = content(&secret);
        let mut few = content(&secret);
        retain(&mut few, &after.target);
        assert_eq!(rendered.drift(&few), rendered.drift(&all));
        let patch = rendered.full_patch(&few, false);
        assert_eq!(patch, rendered.full_patch(&all, false));
        // What the template no longer has is removed.
        for field in ["/data/old", "/metadata/annotations/old"] {
            assert_eq!(patch.pointer(field), Some(&Value::Null), "{field}");
        }
        let known = few.annotation(annotations::OWNED).map(str::to_owned);
        assert_eq!(known.as_deref(), all.annotation(annotations::OWNED));
        assert_eq!(few.data.len(), 3 + MAX_OTHER_KEYS);
        assert_eq!(few.meta.labels.map(|labels| labels.len()), Some(2));
        assert!(few.meta.annotations.is_some_and(|notes| notes.len() < 12));
        assert!(few.type_.len() <= MAX_TYPE);
    }

    #[test]
    fn a_list_of_our_fields_that_is_too_long_is_not_ours() {
        let request = request(json!({}));
        let owned = format!("label:a,{}", "x".repeat(MAX_OWNED));
        let mut secret = content(&json!({"metadata": {
            "labels": {"a": "1"}, "annotations": {(annotations::OWNED): owned},
        }}));
        retain(&mut secret, &request.target);
        assert_eq!(secret.meta.labels, Some([].into()));
        assert_eq!(secret.annotation(annotations::OWNED), None);
    }
}
