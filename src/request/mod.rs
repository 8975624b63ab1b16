//! Pure: the spec as written → a `Request` with every default resolved, or which field is wrong. Repeats what the schema checks, since
//! the CRD in a cluster can be older than the operator.

pub mod fingerprint;
pub mod syntax;
pub mod template;
pub mod token_source;

use std::collections::BTreeMap;

use jiff::SignedDuration;
use thiserror::Error;

use crate::api::v1alpha1::{CreationPolicy, IdTokenRequest, IdTokenRequestSpec, Target};
use crate::api::{annotations, conditions::reason};
use crate::request::fingerprint as hash;
use crate::request::syntax::{check_metadata_key, is_dns_subdomain, is_label_value, is_secret_key, shown};
use crate::request::template::{Template, TemplateError, Templates, Variable};
use crate::request::token_source as source;
pub use crate::request::token_source::{Federation, SourceSettings, TokenSource, permitted};

/// Why a spec is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ValidateError {
    /// A field holds what is not allowed.
    #[error("spec.{field}: {problem}")]
    Invalid {
        /// Path of the field below `spec`.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A template that cannot be parsed.
    #[error("spec.target.template.data[{key}]: {source}")]
    Template {
        /// Key of the Secret.
        key: String,
        /// What is wrong.
        source: TemplateError,
    },
    /// A source that this operator does not have.
    #[error("spec.source.{0} is not available: {1}")]
    SourceUnavailable(&'static str, &'static str),
}

impl ValidateError {
    /// Reason of the condition, the event and the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } | Self::Template { .. } => reason::INVALID_SPEC,
            Self::SourceUnavailable(..) => reason::SOURCE_UNAVAILABLE,
        }
    }
}

pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> ValidateError {
    ValidateError::Invalid {
        field: field.into(),
        problem: problem.into(),
    }
}

/// A request that can be acted on: every default is resolved, every field checked.
#[derive(Clone, Debug)]
pub struct ValidRequest {
    /// Namespace of the request and its Secret.
    pub namespace: String,
    /// Name of the request.
    pub name: String,
    /// UID of the request.
    pub uid: String,
    /// The token that is wanted.
    pub token: TokenSpec,
    /// How long before its expiry the token is renewed.
    pub renew_before: Option<SignedDuration>,
    /// Whether nothing is issued or renewed.
    pub suspend: bool,
    /// The Secret.
    pub target: TargetSpec,
    /// Value of the annotation `idtoken.dev/renew`.
    pub renew_request: Option<String>,
    /// Hash of all that decides the token.
    pub token_hash: String,
    /// Hash of all that decides how it is written.
    pub render_hash: String,
}

/// What decides the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpec {
    /// The `aud` claim.
    pub audience: String,
    /// The Google service account, e-mail or unique ID; none where only the source knows it.
    pub service_account: Option<String>,
    /// Whether the token carries its e-mail.
    pub include_email: bool,
    /// Whether the token carries the organization's number.
    pub include_organization_number: bool,
    /// Where it comes from.
    pub source: TokenSource,
}

/// What decides the Secret.
#[derive(Clone, Debug)]
pub struct TargetSpec {
    /// Name of the Secret.
    pub name: String,
    /// Key of the bare token.
    pub key: String,
    /// Type of the Secret.
    pub type_: String,
    /// Labels beside ours.
    pub labels: BTreeMap<String, String>,
    /// Annotations beside ours.
    pub annotations: BTreeMap<String, String>,
    /// More keys.
    pub data: Templates,
    /// Whether the Secret goes with the request.
    pub policy: CreationPolicy,
}

/// Checks `object` and resolves its defaults.
///
/// # Errors
/// The first field that is wrong.
pub fn validate(object: &IdTokenRequest) -> Result<ValidRequest, ValidateError> {
    let meta = &object.metadata;
    let spec = &object.spec;
    let name = meta.name.clone().unwrap_or_default();
    let uid = meta.uid.clone().unwrap_or_default();
    let token = token(spec)?;
    let renew_before = spec.renew_before.as_deref().map(duration).transpose()?;
    let target = target(
        &name,
        spec.target.clone().unwrap_or_default(),
        token.include_email,
    )?;
    Ok(ValidRequest {
        token_hash: token_hash(&token),
        render_hash: render_hash(&target, renew_before, &uid),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name,
        uid,
        token,
        renew_before,
        suspend: spec.suspend.unwrap_or(false),
        target,
        renew_request: meta
            .annotations
            .as_ref()
            .and_then(|all| all.get(annotations::RENEW))
            .cloned(),
    })
}

/// Name of the Secret that `object` asks for.
pub fn target_name(object: &IdTokenRequest) -> String {
    let target = object.spec.target.as_ref().and_then(|target| target.name.clone());
    target
        .or_else(|| object.metadata.name.clone())
        .unwrap_or_default()
}

/// Resolves what decides the token.
///
/// # Errors
/// The first field that is wrong, or a source that is not available.
pub fn token(spec: &IdTokenRequestSpec) -> Result<TokenSpec, ValidateError> {
    let audience = &spec.audience;
    if audience.is_empty() || audience.len() > 2048 || !audience.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(invalid(
            "audience",
            "must be 1 to 2048 printable ASCII characters without spaces",
        ));
    }
    let source = source::source(spec)?;
    Ok(TokenSpec {
        audience: audience.clone(),
        service_account: spec.service_account.clone(),
        include_email: spec.include_email.unwrap_or(true),
        include_organization_number: spec.include_organization_number.unwrap_or(false),
        source,
    })
}

/// Parses a Go duration without a sign. kube's parser panics on numbers that do not fit.
///
/// # Errors
/// [`ValidateError::Invalid`] of `renewBefore`, the only field of this kind.
pub fn duration(text: &str) -> Result<SignedDuration, ValidateError> {
    let wrong = || {
        invalid(
            "renewBefore",
            "must be a Go duration such as 20m or 1h30m, without a sign, at most 32 bytes",
        )
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let numeric = |c: char| c.is_ascii_digit() || c == '.';
    let mut total = SignedDuration::ZERO;
    let mut rest = text;
    if rest.is_empty() || rest.len() > 32 {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c| !numeric(c)).ok_or_else(wrong)?);
        let (unit, tail) = tail.split_at(tail.find(numeric).unwrap_or(tail.len()));
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let number: f64 = number
            .parse()
            .ok()
            .filter(|_| digits(whole) && digits(fraction))
            .ok_or_else(wrong)?;
        total = SignedDuration::try_from_secs_f64(number * seconds)
            .ok()
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| invalid("renewBefore", "is too long"))?;
        rest = tail;
    }
    Ok(total)
}

fn target(request_name: &str, target: Target, has_email: bool) -> Result<TargetSpec, ValidateError> {
    let name = target.name.unwrap_or_else(|| request_name.to_owned());
    if !is_dns_subdomain(&name) {
        return Err(invalid(
            "target.name",
            "must be a DNS subdomain: lower case letters, digits, - and ., at most 253",
        ));
    }
    let key = target.key.unwrap_or_else(|| "token".to_owned());
    if !is_secret_key(&key) {
        return Err(invalid(
            "target.key",
            "must be letters, digits, -, _ and ., at most 253",
        ));
    }
    let template = target.template.unwrap_or_default();
    let type_ = template.type_.unwrap_or_else(|| "Opaque".to_owned());
    let allowed = matches!(type_.as_str(), "Opaque" | "kubernetes.io/basic-auth")
        || type_
            .strip_prefix("servicebinding.io/")
            .is_some_and(is_secret_key);
    if !allowed {
        return Err(invalid(
            "target.template.type",
            "must be Opaque, kubernetes.io/basic-auth or servicebinding.io/*",
        ));
    }
    let metadata = template.metadata.unwrap_or_default();
    let labels = metadata.labels.unwrap_or_default();
    let annotations = metadata.annotations.unwrap_or_default();
    let texts = template.data.unwrap_or_default();
    for (field, map, longest) in [
        ("target.template.metadata.labels", &labels, 63),
        ("target.template.metadata.annotations", &annotations, 4096),
        ("target.template.data", &texts, 8192),
    ] {
        if map.len() > 32 {
            return Err(invalid(field, "at most 32 entries"));
        }
        if let Some((key, _)) = map.iter().find(|(_, text)| text.chars().count() > longest) {
            let problem = format!("the value is longer than {longest} characters");
            return Err(invalid(format!("{field}[{}]", shown(key)), problem));
        }
    }
    for (label, value) in &labels {
        let field = format!("target.template.metadata.labels[{}]", shown(label));
        check_metadata_key(label).map_err(|problem| invalid(&field, problem))?;
        if !is_label_value(value) {
            return Err(invalid(
                field,
                "the value must be at most 63 letters, digits, -, _ and ., with a letter or digit at both ends",
            ));
        }
    }
    for annotation in annotations.keys() {
        check_metadata_key(annotation).map_err(|problem| {
            invalid(
                format!("target.template.metadata.annotations[{}]", shown(annotation)),
                problem,
            )
        })?;
    }
    let mut data = Templates::new();
    for (data_key, text) in texts {
        let field = format!("target.template.data[{}]", shown(&data_key));
        if !is_secret_key(&data_key) {
            return Err(invalid(
                field,
                "the key must be letters, digits, -, _ and ., at most 253",
            ));
        }
        if data_key == key {
            return Err(invalid(
                field,
                "is the key of the bare token (target.key); choose another",
            ));
        }
        let template = Template::parse(&text).map_err(|source| ValidateError::Template {
            key: shown(&data_key),
            source,
        })?;
        if template.names(Variable::Email) && !has_email {
            return Err(invalid(field, "$(email) needs includeEmail"));
        }
        data.insert(data_key, template);
    }
    if type_ == "kubernetes.io/basic-auth"
        && !["username", "password"]
            .iter()
            .any(|k| *k == key || data.contains_key(*k))
    {
        return Err(invalid(
            "target.template.type",
            "kubernetes.io/basic-auth needs a key username or password",
        ));
    }
    Ok(TargetSpec {
        name,
        key,
        type_,
        labels,
        annotations,
        data,
        policy: target.creation_policy.unwrap_or_default(),
    })
}

fn token_hash(token: &TokenSpec) -> String {
    let mut parts = vec![
        token.audience.clone(),
        token.service_account.clone().unwrap_or_default(),
        token.include_email.to_string(),
        token.include_organization_number.to_string(),
        token.source.name().to_owned(),
    ];
    parts.extend(token.source.hashed());
    hash::versioned("v1", &parts)
}

fn render_hash(target: &TargetSpec, renew_before: Option<SignedDuration>, uid: &str) -> String {
    let mut parts = vec![
        uid.to_owned(),
        target.key.clone(),
        target.type_.clone(),
        match target.policy {
            CreationPolicy::Owner => "Owner".to_owned(),
            CreationPolicy::Orphan => "Orphan".to_owned(),
        },
        renew_before
            .map(|before| before.as_nanos().to_string())
            .unwrap_or_default(),
    ];
    for (kind, map) in [("label", &target.labels), ("annotation", &target.annotations)] {
        parts.extend(
            map.iter()
                .flat_map(|(key, value)| [kind.to_owned(), key.clone(), value.clone()]),
        );
    }
    parts.extend(
        target
            .data
            .iter()
            .flat_map(|(key, value)| ["data".to_owned(), key.clone(), value.canonical()]),
    );
    hash::versioned("v1", &parts)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
