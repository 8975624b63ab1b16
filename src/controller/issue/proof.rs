//! Which token in a Secret the operator trusts: the one that was written last, by its digest. Where no digest is known, one that Google signed.

use super::History;
use super::observation::find_token;
use crate::api::v1alpha1::TokenStatus;
use crate::controller::queue::permit::Permit;
use crate::google::Minter;
use crate::kubernetes::secret::SecretContent;
use crate::request::ValidRequest;
use crate::token::{Account, IdToken};

/// Digest of the token that was written last. The status or this process has it, unless the Secret was restored without the status, or the
/// operator stopped between its two writes. Then the token in the Secret counts if Google's keys verify its signature; without the keys, it
/// does not. The permit is released while they are fetched.
pub(super) async fn written_digest(
    minter: &Minter,
    request: &ValidRequest,
    content: &SecretContent,
    history: History<'_>,
    permit: &mut Permit,
) -> Option<String> {
    let known = history.digest();
    let unproven = match history.state.written {
        None => unproven_token(content, request, history.status.token.as_ref()),
        // This process wrote the Secret itself.
        Some(_) => None,
    };
    let unproven = unproven.map(|token| (token.digest(), token));
    if let Some((digest, token)) = unproven.filter(|(digest, _)| known != Some(digest)) {
        let check = Box::pin(minter.verify_signature(&token));
        match permit.released_while(check).await {
            Ok(()) => return Some(digest),
            Err(error) => tracing::debug!(
                namespace = request.namespace,
                name = request.name,
                reason = error.reason().as_str(),
                "the token in the Secret is not trusted: {error}"
            ),
        }
    }
    known.map(str::to_owned)
}

/// The token that the Secret's annotation names as written, if that can be true: it is of the account that the status or the spec names, and
/// not older than the token in the status. The caller verifies its signature.
fn unproven_token(
    content: &SecretContent,
    request: &ValidRequest,
    known: Option<&TokenStatus>,
) -> Option<IdToken> {
    let written = content.summary.token_fingerprint.as_deref()?;
    let token = find_token(content, request, |token| token.fingerprint() == written)?;
    let claims = token.claims();
    let named = request.token.service_account.as_deref().map(Account::from_name);
    let is_of_account = match (known.and_then(|known| known.subject.as_deref()), named) {
        (Some(subject), _) | (None, Some(Account::UniqueId(subject))) => claims.sub == subject,
        (None, Some(Account::Email(named))) => {
            let email = claims.email.as_deref();
            email.is_some_and(|email| email.eq_ignore_ascii_case(named))
        }
        // Google signs tokens of any account for any audience: the signature alone proves too little.
        (None, None) => false,
    };
    let since = known.and_then(|known| known.issue_time.as_ref());
    let is_newest = since.is_none_or(|since| claims.iat >= since.0);
    (is_of_account && is_newest).then_some(token)
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
