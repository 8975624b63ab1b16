//! How large a spec may be as a whole. Each field has a bound of its own, but templates have so many that their sum is the bound that counts.

use crate::api::v1alpha1::{IdTokenRequestSpec, MAX_SPEC_CHARACTERS};
use crate::request::error::ValidateError;

/// Bytes of all texts of a spec, the keys of its template included.
pub fn spec_bytes(spec: &IdTokenRequestSpec) -> usize {
    let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let mut bytes = spec.audience.len() + len(&spec.service_account) + len(&spec.renew_before);
    if let Some(source) = &spec.source {
        let delegates = source
            .impersonation
            .as_ref()
            .and_then(|chain| chain.delegates.as_ref());
        bytes += delegates.into_iter().flatten().map(String::len).sum::<usize>();
        if let Some(federation) = &source.federation {
            bytes += federation.service_account_ref.name.len()
                + len(&federation.provider)
                + len(&federation.token_audience);
        }
    }
    if let Some(target) = &spec.target {
        bytes += len(&target.name) + len(&target.key);
        if let Some(template) = &target.template {
            bytes += len(&template.type_);
            let metadata = template.metadata.as_ref();
            let maps = [
                metadata.and_then(|metadata| metadata.labels.as_ref()),
                metadata.and_then(|metadata| metadata.annotations.as_ref()),
                template.data.as_ref(),
            ];
            bytes += maps
                .into_iter()
                .flatten()
                .flatten()
                .map(|(key, value)| key.len() + value.len())
                .sum::<usize>();
        }
    }
    bytes
}

/// Checks the size of `spec`. The schema counts characters, of which none takes less than a byte, and a CRD of an older version in the
/// cluster counts nothing. Returns the bytes.
///
/// # Errors
/// [`ValidateError::TooLarge`].
pub fn check_size(spec: &IdTokenRequestSpec) -> Result<usize, ValidateError> {
    let bytes = spec_bytes(spec);
    match bytes <= MAX_SPEC_CHARACTERS {
        true => Ok(bytes),
        false => Err(ValidateError::TooLarge { bytes }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::object;
    use crate::request::tests::texts;

    #[test]
    fn every_text_of_a_spec_counts() {
        let spec = json!({
            "includeEmail": true, "renewBefore": "1h30m",
            "source": {
                "impersonation": {"delegates": ["a@p.iam.gserviceaccount.com", "123"]},
                "federation": {"serviceAccountRef": {"name": "billing"}, "provider": "p", "tokenAudience": "audience"},
                "metadataServer": {"licenses": true}, "developer": {},
            },
            "target": {
                "name": "secret", "key": "jwt",
                "template": {
                    "type": "Opaque",
                    "metadata": {"labels": {"team": "shop"}, "annotations": {"note": "ü"}},
                    "data": {"header": "Bearer $(token)"},
                },
            },
        });
        let object = object(spec);
        let all = serde_json::to_value(&object.spec).unwrap();
        assert_eq!(spec_bytes(&object.spec), texts(&all, str::len));
    }

    #[test]
    fn bytes_are_bounded_not_characters() {
        let sized = |text: &str, bytes: usize| {
            let rest = bytes - spec_bytes(&object(json!({})).spec);
            let value = text.repeat(rest / text.len()) + &"x".repeat(rest % text.len());
            check_size(&object(json!({"target": {"template": {"data": {"": value}}}})).spec)
        };
        assert_eq!(sized("x", MAX_SPEC_CHARACTERS), Ok(MAX_SPEC_CHARACTERS));
        let bytes = MAX_SPEC_CHARACTERS + 1;
        assert_eq!(sized("x", bytes), Err(ValidateError::TooLarge { bytes }));
        assert_eq!(sized("😀", bytes), Err(ValidateError::TooLarge { bytes }));
    }
}
