//! Google service accounts: their IAM bindings and their keys.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::keys::{Jwk, sha256};

/// `roles/iam.serviceAccountOpenIdTokenCreator`: may mint ID tokens.
pub const OPEN_ID_TOKEN_CREATOR: &str = "roles/iam.serviceAccountOpenIdTokenCreator";
/// `roles/iam.serviceAccountTokenCreator`: may mint ID tokens and access tokens, and pass through as a delegate.
pub const TOKEN_CREATOR: &str = "roles/iam.serviceAccountTokenCreator";
/// `roles/iam.workloadIdentityUser`: may mint ID tokens and access tokens.
pub const WORKLOAD_IDENTITY_USER: &str = "roles/iam.workloadIdentityUser";

/// A permission on a service account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    GetOpenIdToken,
    GetAccessToken,
    ImplicitDelegation,
}

impl Permission {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GetOpenIdToken => "iam.serviceAccounts.getOpenIdToken",
            Self::GetAccessToken => "iam.serviceAccounts.getAccessToken",
            Self::ImplicitDelegation => "iam.serviceAccounts.implicitDelegation",
        }
    }

    fn is_granted_by(self, role: &str) -> bool {
        match self {
            Self::GetOpenIdToken => {
                [OPEN_ID_TOKEN_CREATOR, TOKEN_CREATOR, WORKLOAD_IDENTITY_USER].contains(&role)
            }
            Self::GetAccessToken => [TOKEN_CREATOR, WORKLOAD_IDENTITY_USER].contains(&role),
            Self::ImplicitDelegation => role == TOKEN_CREATOR,
        }
    }
}

/// A Google service account and its IAM policy.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccount {
    /// The account's e-mail.
    pub email: String,
    /// The account's numeric id, 21 digits. Absent: derived from the e-mail, the same at each start.
    #[serde(default)]
    pub unique_id: Option<String>,
    /// A disabled account gets no tokens.
    #[serde(default)]
    pub disabled: bool,
    /// Who may do what with the account, as `gcloud iam service-accounts get-iam-policy` prints it.
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// E-mails or unique ids that a delegation chain to this account may contain. Absent: every account that has the permission.
    #[serde(default)]
    pub delegates: Option<Vec<String>>,
    /// The public halves of the account's keys.
    #[serde(default)]
    pub keys: Vec<AccountKey>,
}

impl ServiceAccount {
    /// An account without bindings.
    #[must_use]
    pub fn new(email: impl Into<String>) -> Self {
        Self {
            email: email.into(),
            ..Self::default()
        }
    }

    /// Binds `member` to `role`, one of the roles of this crate.
    #[must_use]
    pub fn bind(mut self, role: impl Into<String>, member: impl Into<String>) -> Self {
        self.bindings.push(Binding {
            role: role.into(),
            members: vec![member.into()],
        });
        self
    }

    /// Lets `member` mint ID tokens of the account.
    #[must_use]
    pub fn impersonated_by(self, member: impl Into<String>) -> Self {
        self.bind(OPEN_ID_TOKEN_CREATOR, member)
    }

    /// The account's numeric id: the configured one, or 21 digits derived from its e-mail.
    #[must_use]
    pub fn unique_id(&self) -> String {
        self.unique_id.clone().unwrap_or_else(|| {
            let digits: String = sha256(self.email.as_bytes())[..20]
                .iter()
                .map(|byte| char::from(b'0' + byte % 10))
                .collect();
            format!("1{digits}")
        })
    }

    /// Whether `name` is the account's e-mail or unique id.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.email == name || self.unique_id() == name
    }

    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        ensure!(self.email.contains('@'), "email must be an e-mail");
        if let Some(id) = &self.unique_id {
            ensure!(
                !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()),
                "uniqueId must be digits"
            );
        }
        for binding in &self.bindings {
            let known = [OPEN_ID_TOKEN_CREATOR, TOKEN_CREATOR, WORKLOAD_IDENTITY_USER];
            ensure!(
                known.contains(&binding.role.as_str()),
                "role {} is not supported: use one of {}",
                binding.role,
                known.join(", ")
            );
            for member in &binding.members {
                let prefixes = ["serviceAccount:", "user:", "principal://", "principalSet://"];
                ensure!(
                    member == "allAuthenticatedUsers"
                        || prefixes.iter().any(|prefix| member.starts_with(prefix)),
                    "member {member} must be allAuthenticatedUsers or start with one of {}",
                    prefixes.join(", ")
                );
            }
        }
        for key in &self.keys {
            key.jwk().context("in keys")?;
        }
        Ok(())
    }

    pub(crate) fn allows(&self, permission: Permission, is_member: impl Fn(&str) -> bool) -> bool {
        self.bindings
            .iter()
            .filter(|binding| permission.is_granted_by(&binding.role))
            .any(|binding| binding.members.iter().any(|member| is_member(member)))
    }
}

/// A role bound to members.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Binding {
    /// One of [`OPEN_ID_TOKEN_CREATOR`], [`TOKEN_CREATOR`], [`WORKLOAD_IDENTITY_USER`].
    pub role: String,
    /// `serviceAccount:E-MAIL`, `serviceAccount:PROJECT.svc.id.goog[NAMESPACE/NAME]`, `user:E-MAIL`, `principal://…`,
    /// `principalSet://…` or `allAuthenticatedUsers`.
    pub members: Vec<String>,
}

/// The public half of a service account key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccountKey {
    /// `private_key_id` of the key file, which is the `kid` of its JWTs. Absent: the key verifies JWTs with any `kid`.
    #[serde(default)]
    pub id: Option<String>,
    /// A PEM `PUBLIC KEY`.
    pub public_key_pem: String,
}

impl AccountKey {
    pub(crate) fn jwk(&self) -> anyhow::Result<Jwk> {
        Jwk::from_public_pem(&self.public_key_pem, self.id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_ids_are_stable() {
        let id = ServiceAccount::new("a@b").unique_id();
        assert_eq!(id.len(), 21);
        assert_eq!(id, ServiceAccount::new("a@b").unique_id());
        assert_ne!(id, ServiceAccount::new("c@b").unique_id());
    }
}
