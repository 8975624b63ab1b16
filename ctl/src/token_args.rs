//! Flags that name a token, checked as the operator checks a spec. Imports nothing of this crate.

use clap::Args;
use idtoken_operator::api::v1alpha1::{IdTokenRequestSpec, ImpersonationSource, Source};
use idtoken_operator::request::{self, TokenSpec, ValidateError};
use thiserror::Error;

/// Flags that name a token.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Token")]
pub(crate) struct TokenArgs {
    /// Google service account of the token: e-mail address or numeric unique ID
    #[arg(long, value_name = "ACCOUNT", requires = "audience")]
    pub(crate) service_account: Option<String>,

    /// Audience of the token, exactly as its verifier expects it
    #[arg(long, value_name = "AUDIENCE", requires = "service_account")]
    pub(crate) audience: Option<String>,

    /// Service account in the delegation chain, in order; repeat for each
    #[arg(long = "delegate", value_name = "ACCOUNT", requires = "service_account")]
    pub(crate) delegates: Vec<String>,
}

/// A flag with a value that the operator rejects in a spec.
#[derive(Debug, Error)]
#[error("{flag} {problem}")]
pub(crate) struct InvalidFlag {
    flag: String,
    problem: String,
}

impl TokenArgs {
    /// The token that a spec with these values requests.
    ///
    /// # Errors
    /// The first flag with an invalid value.
    pub(crate) fn token(
        &self,
        include_email: bool,
        organization_number: bool,
    ) -> Result<TokenSpec, InvalidFlag> {
        let delegates = (!self.delegates.is_empty()).then(|| self.delegates.clone());
        let spec = IdTokenRequestSpec {
            audience: self.audience.clone().unwrap_or_default(),
            service_account: self.service_account.clone(),
            include_email: Some(include_email),
            include_organization_number: Some(organization_number),
            source: Some(Source {
                impersonation: Some(ImpersonationSource { delegates }),
                ..Source::default()
            }),
            renew_before: None,
            suspend: None,
            target: None,
        };
        request::token(&spec).map_err(|error| match error {
            ValidateError::Invalid { field, problem } => InvalidFlag {
                flag: flag(&field),
                problem,
            },
            other => InvalidFlag {
                flag: "the token".to_owned(),
                problem: other.to_string(),
            },
        })
    }
}

fn flag(field: &str) -> String {
    match field {
        "audience" => "--audience".to_owned(),
        "serviceAccount" => "--service-account".to_owned(),
        _ if field.contains("delegates") => "--delegate".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(audience: &str, account: &str, delegates: &[&str]) -> TokenArgs {
        TokenArgs {
            audience: Some(audience.to_owned()),
            service_account: Some(account.to_owned()),
            delegates: delegates.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn errors_name_the_flag() {
        let error = |args: TokenArgs| args.token(true, false).unwrap_err().to_string();
        assert!(error(args("a b", "1", &[])).starts_with("--audience must be"));
        assert!(error(args("a", "Nobody", &[])).starts_with("--service-account must be"));
        assert!(error(args("a", "1", &["x"])).starts_with("--delegate must be"));
        assert!(error(args("a", "1", &["1"; 5])).starts_with("--delegate at most 4"));
    }

    #[test]
    fn reads_all() {
        let token = args("https://a", "1", &["2", "3"]).token(false, true).unwrap();
        assert!(!token.include_email && token.include_organization_number);
        assert_eq!(token.source.delegates(), ["2", "3"]);
    }
}
