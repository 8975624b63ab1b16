//! Pure: `spec.target` as written → the Secret to write, with every default resolved and every field checked.

use std::collections::BTreeMap;

use crate::api::v1alpha1::{CreationPolicy, Target};
use crate::request::error::ValidateError;
use crate::request::reserved::{domain_trusted_by, label_trusted_by, name_trusted_by};
use crate::request::syntax::{
    check_metadata_key, is_dns_subdomain, is_label_value, is_secret_key, quote_bounded,
};
use crate::request::template::{Template, Templates, Variable};

const BASIC_AUTH: &str = "kubernetes.io/basic-auth";
/// Most entries of each map.
const MAX_ENTRIES: usize = 32;

/// All that determines the Secret besides the token.
#[derive(Clone, Debug)]
pub struct TargetSpec {
    /// Name of the Secret.
    pub name: String,
    /// Key of the bare token.
    pub key: String,
    /// Type of the Secret.
    pub type_: String,
    /// Labels in addition to the operator's.
    pub labels: BTreeMap<String, String>,
    /// Annotations in addition to the operator's.
    pub annotations: BTreeMap<String, String>,
    /// Further keys.
    pub data: Templates,
    /// Whether the Secret is deleted with the request.
    pub creation_policy: CreationPolicy,
}

impl TargetSpec {
    /// Checks `target` of the request called `request_name`. `has_email` says whether the token carries an `email` claim.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub(crate) fn from_spec(
        request_name: &str,
        target: Target,
        has_email: bool,
    ) -> Result<Self, ValidateError> {
        let name = target.name.unwrap_or_else(|| request_name.to_owned());
        if !is_dns_subdomain(&name) {
            return Err(ValidateError::invalid(
                "target.name",
                "must be a DNS subdomain: lower case letters, digits, - and ., at most 253",
            ));
        }
        if let Some(software) = name_trusted_by(&name) {
            let field = "target.name".to_owned();
            return Err(ValidateError::Trusted { field, software });
        }
        let key = target.key.unwrap_or_else(|| "token".to_owned());
        if !is_secret_key(&key) {
            return Err(ValidateError::invalid(
                "target.key",
                "must be letters, digits, -, _ and ., at most 253",
            ));
        }
        let template = target.template.unwrap_or_default();
        let type_ = template.type_.unwrap_or_else(|| "Opaque".to_owned());
        check_type(&type_)?;
        let metadata = template.metadata.unwrap_or_default();
        let labels = metadata.labels.unwrap_or_default();
        let annotations = metadata.annotations.unwrap_or_default();
        let templates = template.data.unwrap_or_default();
        check_sizes("target.template.metadata.labels", &labels, 63)?;
        check_sizes("target.template.metadata.annotations", &annotations, 4096)?;
        check_sizes("target.template.data", &templates, 8192)?;
        check_labels(&labels)?;
        check_annotations(&annotations)?;
        let data = parse_templates(templates, &key, has_email)?;
        let has_key = |wanted: &str| key == wanted || data.contains_key(wanted);
        if type_ == BASIC_AUTH && !has_key("username") && !has_key("password") {
            return Err(ValidateError::invalid(
                "target.template.type",
                "kubernetes.io/basic-auth needs a key username or password",
            ));
        }
        Ok(Self {
            name,
            key,
            type_,
            labels,
            annotations,
            data,
            creation_policy: target.creation_policy.unwrap_or_default(),
        })
    }
}

fn check_type(type_: &str) -> Result<(), ValidateError> {
    let is_service_binding = type_
        .strip_prefix("servicebinding.io/")
        .is_some_and(is_secret_key);
    if type_ == "Opaque" || type_ == BASIC_AUTH || is_service_binding {
        return Ok(());
    }
    Err(ValidateError::invalid(
        "target.template.type",
        "must be Opaque, kubernetes.io/basic-auth or servicebinding.io/*",
    ))
}

/// Checks the number of entries, and the length of each value in characters.
fn check_sizes(field: &str, map: &BTreeMap<String, String>, longest: usize) -> Result<(), ValidateError> {
    if map.len() > MAX_ENTRIES {
        return Err(ValidateError::invalid(
            field,
            format!("at most {MAX_ENTRIES} entries"),
        ));
    }
    match map.iter().find(|(_, value)| value.chars().count() > longest) {
        None => Ok(()),
        Some((key, _)) => Err(ValidateError::invalid(
            format!("{field}[{}]", quote_bounded(key)),
            format!("the value is longer than {longest} characters"),
        )),
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ValidateError> {
    for (label, value) in labels {
        let field = format!("target.template.metadata.labels[{}]", quote_bounded(label));
        check_metadata_key(label).map_err(|problem| ValidateError::invalid(&field, problem))?;
        if !is_label_value(value) {
            return Err(ValidateError::invalid(
                field,
                "the value must be at most 63 letters, digits, -, _ and ., with a letter or digit at both ends",
            ));
        }
        if let Some(software) = label_trusted_by(label, value) {
            return Err(ValidateError::Trusted { field, software });
        }
    }
    Ok(())
}

fn check_annotations(annotations: &BTreeMap<String, String>) -> Result<(), ValidateError> {
    for annotation in annotations.keys() {
        let field = format!(
            "target.template.metadata.annotations[{}]",
            quote_bounded(annotation)
        );
        check_metadata_key(annotation).map_err(|problem| ValidateError::invalid(&field, problem))?;
        if let Some(software) = domain_trusted_by(annotation) {
            return Err(ValidateError::Trusted { field, software });
        }
    }
    Ok(())
}

fn parse_templates(
    templates: BTreeMap<String, String>,
    token_key: &str,
    has_email: bool,
) -> Result<Templates, ValidateError> {
    let mut parsed = Templates::new();
    for (key, text) in templates {
        let field = format!("target.template.data[{}]", quote_bounded(&key));
        if !is_secret_key(&key) {
            return Err(ValidateError::invalid(
                field,
                "the key must be letters, digits, -, _ and ., at most 253",
            ));
        }
        if key == token_key {
            return Err(ValidateError::invalid(
                field,
                "is the key of the bare token (target.key); choose another",
            ));
        }
        let template = Template::parse(&text).map_err(|source| ValidateError::Template {
            key: quote_bounded(&key),
            source,
        })?;
        if template.uses(Variable::Email) && !has_email {
            return Err(ValidateError::invalid(field, "$(email) needs includeEmail"));
        }
        parsed.insert(key, template);
    }
    Ok(parsed)
}
