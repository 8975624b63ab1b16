//! The operator never impersonates itself: that would give a request a token of the operator's own identity.

use crate::google::endpoints::iam_credentials::Impersonation;
use crate::google::remediation::impersonation::{
    cannot_rule_out_self, cannot_rule_out_self_by_email, self_impersonation,
};
use crate::google::vocabulary::{Endpoint, Error, Principal, Reason};
use crate::token::Account;

/// Rejects names that are the operator's own.
pub(super) fn reject_own<'n>(
    principal: Option<&Principal>,
    names: impl IntoIterator<Item = &'n str>,
) -> Result<(), Error> {
    match names
        .into_iter()
        .find(|name| principal.is_some_and(|principal| principal.is(name)))
    {
        Some(own) => Err(rejected(&self_impersonation(own))),
        None => Ok(()),
    }
}

/// Rejects names of which it cannot be ruled out that they are the operator's own. The metadata server does not say the unique id of its
/// account, and neither a delegate nor a token without e-mail shows whose it is.
pub(super) fn reject_unverifiable(
    principal: Option<&Principal>,
    request: &Impersonation<'_>,
) -> Result<(), Error> {
    let is_id = |name: &str| matches!(Account::from_name(name), Account::UniqueId(_));
    let by_email = request.delegates.iter().find(|name| !is_id(name));
    if let Some(delegate) = by_email.filter(|_| principal.is_some_and(Principal::has_unknown_email)) {
        return Err(rejected(&cannot_rule_out_self_by_email(delegate)));
    }
    let hidden = std::iter::once(request.service_account).filter(|_| !request.include_email);
    let mut names = hidden.chain(request.delegates.iter().map(String::as_str));
    match names.find(|name| is_id(name) && principal.is_some_and(Principal::has_unknown_id)) {
        Some(id) => Err(rejected(&cannot_rule_out_self(id))),
        None => Ok(()),
    }
}

fn rejected(message: &str) -> Error {
    Error::new(Endpoint::IamCredentials, Reason::SelfImpersonation, message)
}
