//! The operator's own identity at Google, as far as it is known: for error messages, and so that the operator does not impersonate itself.

use std::fmt;

use crate::token::Account;

/// The identity behind the operator's credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// A service account.
    ServiceAccount {
        /// Its e-mail.
        email: String,
        /// Its numeric unique id, if the credentials contain it.
        unique_id: Option<String>,
    },
    /// A user.
    User {
        /// The e-mail.
        email: String,
    },
    /// An identity of a workload or workforce pool. Only the exchange knows its subject.
    Pool {
        /// `projects/N/locations/global/workloadIdentityPools/P` or `locations/global/workforcePools/P`.
        pool: String,
    },
    /// What the metadata server of a GKE cluster returns if no service account is attached: `PROJECT.svc.id.goog`.
    GkePool {
        /// The name.
        name: String,
    },
}

impl Principal {
    /// Parses what a metadata server returns at `…/default/email`.
    pub(crate) fn from_metadata(email: &str) -> Option<Self> {
        let email = email.trim();
        let is_name = !email.is_empty() && email.len() <= 320 && email.bytes().all(|b| b.is_ascii_graphic());
        is_name.then(|| {
            if email.contains('@') {
                Self::ServiceAccount {
                    email: email.to_owned(),
                    unique_id: None,
                }
            } else {
                Self::GkePool {
                    name: email.to_owned(),
                }
            }
        })
    }

    /// The service account that a credential file names, by e-mail or by unique id. With a unique id, the e-mail is unknown.
    pub(crate) fn from_account(name: &str) -> Self {
        let unique_id = match Account::from_name(name) {
            Account::UniqueId(id) => Some(id.to_owned()),
            Account::Email(_) => None,
        };
        Self::ServiceAccount {
            email: name.to_owned(),
            unique_id,
        }
    }

    /// Parses the pool from the `audience` of an external account.
    pub(crate) fn from_audience(audience: &str) -> Option<Self> {
        let (pool, _) = audience
            .strip_prefix("//iam.googleapis.com/")?
            .split_once("/providers/")?;
        Some(Self::Pool {
            pool: pool.to_owned(),
        })
    }

    /// Whether an account, by e-mail or unique id, is this identity.
    pub(crate) fn is(&self, account: &str) -> bool {
        match self {
            Self::ServiceAccount { email, unique_id } => {
                email.eq_ignore_ascii_case(account) || unique_id.as_deref() == Some(account)
            }
            Self::User { email } => email.eq_ignore_ascii_case(account),
            Self::Pool { .. } | Self::GkePool { .. } => false,
        }
    }

    /// Whether it has a unique id that is not known.
    pub(crate) fn has_unknown_id(&self) -> bool {
        matches!(self, Self::ServiceAccount { unique_id: None, .. })
    }

    /// Whether it has an e-mail that is not known, because the credentials name the account by its unique id.
    pub(crate) fn has_unknown_email(&self) -> bool {
        matches!(self, Self::ServiceAccount { email, unique_id: Some(id) } if email == id)
    }

    /// How an IAM policy names it (<https://cloud.google.com/iam/docs/principal-identifiers>); the user replaces the words in capitals.
    pub(crate) fn member(&self) -> String {
        match self {
            Self::ServiceAccount { email, .. } => format!("serviceAccount:{email}"),
            Self::User { email } => format!("user:{email}"),
            Self::Pool { pool } => format!("principal://iam.googleapis.com/{pool}/subject/SUBJECT"),
            Self::GkePool { name } => format!(
                "principal://iam.googleapis.com/projects/PROJECT_NUMBER/locations/global/workloadIdentityPools/{name}\
                 /subject/ns/NAMESPACE/sa/SERVICE_ACCOUNT"
            ),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceAccount { email, .. } | Self::User { email } => f.write_str(email),
            Self::Pool { pool } => write!(f, "an identity of {pool}"),
            Self::GkePool { name } => write!(f, "an identity of {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_its_own_account() {
        let me = Principal::ServiceAccount {
            email: "op@p.iam.gserviceaccount.com".into(),
            unique_id: Some("12".into()),
        };
        assert!(me.is("OP@p.iam.gserviceaccount.com") && me.is("12"));
        assert!(!me.is("other@p.iam.gserviceaccount.com") && !me.is("13"));
        assert_eq!(me.member(), "serviceAccount:op@p.iam.gserviceaccount.com");
    }

    #[test]
    fn parses_the_metadata_server_and_audiences() {
        assert_eq!(
            Principal::from_metadata("p.svc.id.goog\n"),
            Some(Principal::GkePool {
                name: "p.svc.id.goog".into()
            })
        );
        assert!(matches!(
            Principal::from_metadata("a@b"),
            Some(Principal::ServiceAccount { .. })
        ));
        assert_eq!(Principal::from_metadata("<html> no"), None);
        let audience = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
        let pool = Principal::from_audience(audience).expect("a pool");
        assert_eq!(
            pool.member(),
            "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/SUBJECT"
        );
    }
}
