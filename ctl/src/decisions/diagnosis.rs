//! Pure: a request, its Secret and the time → what the Secret holds, and how it differs from the spec.

use idtoken_operator::api::conditions::READY;
use idtoken_operator::api::v1alpha1::{CreationPolicy, IdTokenRequest};
use idtoken_operator::api::{GROUP, annotations};
use idtoken_operator::kubernetes::secret::SecretContent;
use idtoken_operator::render;
use idtoken_operator::request::{ValidRequest, ValidateError};
use idtoken_operator::token::{Account, Claims, GOOGLE_ISSUERS, IdToken, TokenError};
use jiff::Timestamp;
use serde::Serialize;

use crate::decisions::secret_view::SecretView;
use crate::output::redacted;

/// Stands for an absent value.
const NOTHING: &str = "nothing";

/// What is expected of `metadata.ownerReferences` if another controller owns the Secret.
pub(crate) const NO_OTHER_CONTROLLER: &str = "no other controller";

/// What the Secret's key for the token holds.
pub(crate) enum TokenState {
    /// The caller may not read the Secret; with the message of the API server.
    Unreadable(String),
    /// The Secret does not exist.
    NoSecret,
    /// The Secret has no such key.
    NoKey,
    /// The value is not an ID token.
    NoToken(TokenError),
    /// The value is an ID token, which may be expired or of another spec.
    Token(Box<IdToken>),
}

/// A difference between the spec and what is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    /// Name of a claim, or path of a field.
    pub(crate) field: String,
    /// The value that the spec implies.
    pub(crate) expected: String,
    /// The value that is found.
    pub(crate) found: String,
}

impl Difference {
    /// As it is shown: the values are texts of others.
    pub(crate) fn redacted(&self) -> Self {
        Self {
            field: redacted(&self.field),
            expected: redacted(&self.expected),
            found: redacted(&self.found),
        }
    }
}

/// Whether `object` is Ready. As with `kubectl wait --for=condition=Ready`, a condition of an older generation does not count.
/// The expiry is checked too, because an operator that is not running cannot report it.
pub(crate) fn is_ready(object: &IdTokenRequest, now: Timestamp) -> bool {
    let Some(status) = &object.status else {
        return false;
    };
    let expires = status
        .token
        .as_ref()
        .and_then(|token| token.expiration_time.as_ref());
    status
        .condition(READY)
        .is_some_and(|ready| ready.status == "True")
        && status.observed_generation >= object.metadata.generation
        && expires.is_none_or(|expires| expires.0 > now)
}

/// The key of the Secret that holds the token.
pub(crate) fn token_key(request: &IdTokenRequest) -> &str {
    request
        .spec
        .target
        .as_ref()
        .and_then(|target| target.key.as_deref())
        .unwrap_or("token")
}

/// Reads the token under `key`.
pub(crate) fn token_state(secret: &SecretView, key: &str) -> TokenState {
    let content = match secret {
        SecretView::Unreadable(message) => return TokenState::Unreadable(message.clone()),
        SecretView::Missing => return TokenState::NoSecret,
        SecretView::Found(content) => content,
    };
    let Some(bytes) = content.data.get(key) else {
        return TokenState::NoKey;
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return TokenState::NoToken(TokenError::Malformed("it holds characters outside ASCII"));
    };
    match IdToken::parse(text.to_owned()) {
        Ok(token) => TokenState::Token(Box::new(token)),
        Err(error) => TokenState::NoToken(error),
    }
}

/// All differences from the spec of `object`. `validated` is the spec as the operator reads it.
pub(crate) fn differences(
    object: &IdTokenRequest,
    validated: &Result<ValidRequest, ValidateError>,
    secret: &SecretView,
    state: &TokenState,
) -> Vec<Difference> {
    let mut found = Differences::default();
    if let Some(status) = &object.status
        && let (Some(observed), Some(generation)) = (status.observed_generation, object.metadata.generation)
        && observed >= 0
    {
        found.compare(
            "status.observedGeneration",
            &generation.to_string(),
            Some(&observed.to_string()),
        );
    }
    let request = match validated {
        Ok(request) => request,
        Err(error) => {
            found.add("spec", "a spec that the operator accepts", &error.to_string());
            return found.0;
        }
    };
    let before = found.0.len();
    match state {
        TokenState::Unreadable(_) => return found.0,
        TokenState::NoSecret => found.add("Secret", &request.target.name, NOTHING),
        TokenState::NoKey => found.add(&format!("data[{}]", request.target.key), "an ID token", NOTHING),
        TokenState::NoToken(error) => {
            found.add(
                &format!("data[{}]", request.target.key),
                "an ID token",
                &format!("another value: {error}"),
            );
        }
        TokenState::Token(token) => {
            let pinned = object.status.as_ref().and_then(|status| status.token.as_ref());
            found.claims(
                request,
                token.claims(),
                pinned.and_then(|token| token.subject.as_deref()),
            );
        }
    }
    if let SecretView::Found(content) = secret {
        found.secret(request, content, state);
        if found.0.len() == before
            && let TokenState::Token(token) = state
        {
            found.rendering(request, content, token);
        }
    }
    found.0
}

#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn add(&mut self, field: &str, expected: &str, found: &str) {
        let [field, expected, found] = [field, expected, found].map(str::to_owned);
        self.0.push(Difference {
            field,
            expected,
            found,
        });
    }

    fn compare(&mut self, field: &str, expected: &str, found: Option<&str>) {
        if found != Some(expected) {
            self.add(field, expected, found.unwrap_or(NOTHING));
        }
    }

    fn claims(&mut self, request: &ValidRequest, claims: &Claims, pinned: Option<&str>) {
        let spec = &request.token;
        if !GOOGLE_ISSUERS.contains(&claims.iss.as_str()) {
            self.add("iss", GOOGLE_ISSUERS[0], &claims.iss);
        }
        self.compare("aud", &spec.audience, Some(&claims.aud));
        match spec.service_account.as_deref().map(Account::from_name) {
            None => {}
            Some(Account::UniqueId(id)) => self.compare("sub", id, Some(&claims.sub)),
            Some(Account::Email(email)) => match &claims.email {
                Some(found) if !found.eq_ignore_ascii_case(email) => self.add("email", email, found),
                _ => {}
            },
        }
        match (&claims.email, spec.include_email) {
            (None, true) => self.add("email", "the account's e-mail address (includeEmail)", NOTHING),
            (Some(found), false) => self.add("email", "nothing (includeEmail: false)", found),
            _ => {}
        }
        if claims.email_verified == Some(false) {
            self.add("email_verified", "true", "false");
        }
        if let Some(pinned) = pinned {
            self.compare("sub", pinned, Some(&claims.sub));
        }
    }

    fn secret(&mut self, request: &ValidRequest, content: &SecretContent, state: &TokenState) {
        let summary = &content.summary;
        let annotation = |key: &str| format!("metadata.annotations[{key}]");
        if !summary.managed {
            self.add(
                "Secret",
                "a Secret of the operator",
                "a Secret that the operator did not write (SecretConflict)",
            );
            return;
        }
        self.compare(
            &annotation(annotations::REQUEST),
            &request.name,
            summary.request.as_deref(),
        );
        self.compare(
            &annotation(annotations::REQUEST_UID),
            &request.uid,
            summary.request_uid.as_deref(),
        );
        // Hashes of what the token and its Secret depend on: another hash is of another spec.
        self.compare(
            &annotation(annotations::TOKEN_HASH),
            &request.token_hash,
            summary.token_hash.as_deref(),
        );
        self.compare(
            &annotation(annotations::RENDER_HASH),
            &request.render_hash,
            summary.render_hash.as_deref(),
        );
        if let TokenState::Token(token) = state {
            let exp = token.claims().exp.to_string();
            self.compare(
                &annotation(annotations::EXPIRES),
                &exp,
                content.annotation(annotations::EXPIRES),
            );
            self.compare(
                &annotation(annotations::DIGEST),
                &token.fingerprint(),
                summary.token_fingerprint.as_deref(),
            );
        }
        if content.immutable {
            self.add("immutable", "false", "true, which prevents renewals");
        }
        self.owner(request, content);
    }

    fn owner(&mut self, request: &ValidRequest, content: &SecretContent) {
        let field = "metadata.ownerReferences";
        let owners = content.meta.owner_references.as_deref().unwrap_or_default();
        let own = |owner: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
            owner.kind == "IdTokenRequest" && owner.api_version.starts_with(&format!("{GROUP}/"))
        };
        let found: Vec<String> = owners
            .iter()
            .filter(own)
            .map(|owner| format!("{} ({})", owner.name, owner.uid))
            .collect();
        let stays = content.summary.adopted || request.target.creation_policy == CreationPolicy::Orphan;
        let expected = format!("{} ({})", request.name, request.uid);
        match (stays, found.as_slice()) {
            (true, []) => {}
            (true, found) => self.add(
                field,
                "no IdTokenRequest: the Secret stays when its request is deleted",
                &found.join(", "),
            ),
            (false, [one]) if *one == expected => {}
            (false, found) => {
                self.add(
                    field,
                    &format!("IdTokenRequest {expected}"),
                    if found.is_empty() { NOTHING } else { &found[0] },
                );
            }
        }
        if let Some(other) = owners
            .iter()
            .find(|owner| owner.controller == Some(true) && !own(owner))
        {
            self.add(
                field,
                NO_OTHER_CONTROLLER,
                &format!("{} {}", other.kind, other.name),
            );
        }
    }

    /// Compares labels, annotations and keys of the template with the operator's own code. Never shows a value, which can contain
    /// the token.
    fn rendering(&mut self, request: &ValidRequest, content: &SecretContent, token: &IdToken) {
        match render::render(request, token) {
            Ok(rendered) => {
                if let Some(field) = rendered.drift(content) {
                    self.add(&field, "as the operator wrote it", "another value");
                }
            }
            Err(error) => self.add(
                "spec.target.template",
                "a template that expands",
                &error.to_string(),
            ),
        }
    }
}

#[cfg(test)]
#[path = "diagnosis_tests.rs"]
mod tests;
