//! Who the operator is to Google, as far as that is known: for error messages and to refuse impersonating itself.

use std::fmt;

/// The identity behind the operator's credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// A service account.
    ServiceAccount {
        /// Its e-mail.
        email: String,
        /// Its numeric unique id, where the credentials tell it.
        unique_id: Option<String>,
    },
    /// A person.
    User {
        /// The e-mail.
        email: String,
    },
    /// An identity of a workload or workforce pool, whose subject only the exchange knows.
    Pool {
        /// `projects/N/locations/global/workloadIdentityPools/P` or `locations/global/workforcePools/P`.
        pool: String,
    },
    /// What the metadata server of a GKE cluster names where no service account is attached: `PROJECT.svc.id.goog`.
    GkePool {
        /// That name.
        name: String,
    },
}

impl Principal {
    /// Reads what a metadata server says at `…/default/email`.
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

    /// A service account by the name that a file gives it: its e-mail, or its unique id, which then is all that is known.
    pub(crate) fn from_account(name: &str) -> Self {
        let is_id = name.bytes().all(|b| b.is_ascii_digit());
        Self::ServiceAccount {
            email: name.to_owned(),
            unique_id: is_id.then(|| name.to_owned()),
        }
    }

    /// Reads the pool out of the `audience` of an external account.
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

    /// Whether it has an e-mail that is not known, since the credentials name it by its unique id.
    pub(crate) fn has_unknown_email(&self) -> bool {
        matches!(self, Self::ServiceAccount { email, unique_id: Some(id) } if email == id)
    }

    /// How an IAM policy names it (<https://cloud.google.com/iam/docs/principal-identifiers>); words in capitals are to be
    /// filled in.
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
    fn knows_itself() {
        let me = Principal::ServiceAccount {
            email: "op@p.iam.gserviceaccount.com".into(),
            unique_id: Some("12".into()),
        };
        assert!(me.is("OP@p.iam.gserviceaccount.com") && me.is("12"));
        assert!(!me.is("other@p.iam.gserviceaccount.com") && !me.is("13"));
        assert_eq!(me.member(), "serviceAccount:op@p.iam.gserviceaccount.com");
    }

    #[test]
    fn reads_the_metadata_server_and_audiences() {
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
