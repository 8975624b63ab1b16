//! What a request asks for: an IdTokenRequest as written → a [`ValidRequest`] with every default resolved, or the field that is wrong.
//! Repeats the checks of the schema, since the CRD in a cluster can be older than the operator.
//!
//! May import the identity providers of [`crate::google`] and the ground. Pure: never reads a clock or calls an API, and never decides
//! who may have a token.

pub mod duration;
pub mod error;
pub mod fingerprint;
mod reserved;
pub mod size;
pub mod syntax;
pub mod target;
pub mod template;
pub mod token_source;

use jiff::SignedDuration;

use crate::api::ObjectKey;
use crate::api::annotations;
use crate::api::v1alpha1::{CreationPolicy, IdTokenRequest, IdTokenRequestSpec};
pub use crate::request::error::ValidateError;
use crate::request::fingerprint::versioned;
use crate::request::size::check_size;
pub use crate::request::target::TargetSpec;
pub use crate::request::token_source::{Federation, SourceSettings, TokenSource, check_allowed};

/// A request with every default resolved and every field checked.
#[derive(Clone, Debug)]
pub struct ValidRequest {
    /// Namespace of the request and its Secret.
    pub namespace: String,
    /// Name of the request.
    pub name: String,
    /// UID of the request.
    pub uid: String,
    /// The token to issue.
    pub token: TokenSpec,
    /// How long before its expiry the token is renewed.
    pub renew_before: Option<SignedDuration>,
    /// Whether issuing and renewing are suspended.
    pub suspend: bool,
    /// The Secret.
    pub target: TargetSpec,
    /// Value of the annotation [`annotations::RENEW`].
    pub renew_request: Option<String>,
    /// Value of the annotation [`annotations::ACCEPT_SUBJECT`].
    pub accept_subject: Option<String>,
    /// Hash of all inputs of the token.
    pub token_hash: String,
    /// Hash of all inputs of the Secret besides the token.
    pub render_hash: String,
}

impl ValidRequest {
    /// The key of the request.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }

    /// The key of its Secret.
    pub fn target_key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.target.name)
    }
}

/// All that determines the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpec {
    /// The `aud` claim.
    pub audience: String,
    /// The Google service account, e-mail or unique ID; none if only the source knows it.
    pub service_account: Option<String>,
    /// Whether the token carries the account's e-mail.
    pub include_email: bool,
    /// Whether the token carries the organization's number.
    pub include_organization_number: bool,
    /// Where the token comes from.
    pub source: TokenSource,
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
    let renew_before = spec
        .renew_before
        .as_deref()
        .map(duration::parse)
        .transpose()
        .map_err(|error| ValidateError::invalid("renewBefore", error.to_string()))?;
    let target = TargetSpec::from_spec(
        &name,
        spec.target.clone().unwrap_or_default(),
        token.include_email,
    )?;
    check_size(spec)?;
    let annotation = |key| meta.annotations.as_ref()?.get(key).cloned();
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
        renew_request: annotation(annotations::RENEW),
        accept_subject: annotation(annotations::ACCEPT_SUBJECT),
    })
}

/// Name of the Secret that `object` asks for.
pub fn target_name(object: &IdTokenRequest) -> String {
    let target = object.spec.target.as_ref().and_then(|target| target.name.clone());
    target
        .or_else(|| object.metadata.name.clone())
        .unwrap_or_default()
}

/// Checks what determines the token, and resolves its defaults.
///
/// # Errors
/// The first field that is wrong.
pub fn token(spec: &IdTokenRequestSpec) -> Result<TokenSpec, ValidateError> {
    let audience = &spec.audience;
    if audience.is_empty() || audience.len() > 2048 || !audience.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ValidateError::invalid(
            "audience",
            "must be 1 to 2048 printable ASCII characters without spaces",
        ));
    }
    let source = TokenSource::from_spec(spec)?;
    Ok(TokenSpec {
        audience: audience.clone(),
        service_account: spec.service_account.clone(),
        include_email: spec.include_email.unwrap_or(true),
        include_organization_number: spec.include_organization_number.unwrap_or(false),
        source,
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
    parts.extend(token.source.hash_inputs());
    versioned("v1", &parts)
}

fn render_hash(target: &TargetSpec, renew_before: Option<SignedDuration>, uid: &str) -> String {
    let mut parts = vec![
        uid.to_owned(),
        target.key.clone(),
        target.type_.clone(),
        match target.creation_policy {
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
    versioned("v1", &parts)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
