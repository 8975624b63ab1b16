//! Why a credential file is rejected.

/// What is wrong with a credential file. Of its values, messages contain only hosts and type names.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialFileError {
    #[error("it is not a JSON object of credentials (line {line}, column {column})")]
    NotJson { line: usize, column: usize },
    #[error("it is longer than 64 KiB")]
    TooLong,
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error(
        "its type is {0:?}; the supported types are service_account, authorized_user, external_account, \
         external_account_authorized_user and impersonated_service_account"
    )]
    UnknownType(String),
    #[error("its quota_project_id is not the ID or number of a project")]
    NotProject,
    #[error("it has {0}, which the operator does not support")]
    Unsupported(&'static str),
    #[error("its private_key is not the PEM of an RSA key of at least 2048 bits")]
    NotKey,
    #[error("it is for the universe {file:?}, but the operator is set to {operator:?}")]
    OtherUniverse { file: String, operator: String },
    #[error("its {field} is not a URL")]
    NotUrl { field: &'static str },
    #[error("its {field} leads to {host:?} without https")]
    NotHttps { field: &'static str, host: String },
    #[error(
        "its {field} leads to {host:?}, which is not in the universe {universe}; if that is intended, allow that host with \
         the operator's flag --allowed-credential-host"
    )]
    ForeignHost {
        field: &'static str,
        host: String,
        universe: String,
    },
    #[error(
        "its {field} leads to {host:?}, and not by http to EC2's metadata server at 169.254.169.254 or fd00:ec2::254; if that is \
         intended, allow that host with the operator's flag --allowed-credential-host"
    )]
    NotEc2 { field: &'static str, host: String },
    #[error(
        "its credential_source.regional_cred_verification_url is not AWS' endpoint for GetCallerIdentity, such as \
         https://sts.{{region}}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15"
    )]
    NotCallerIdentity,
    #[error(
        "it names an executable, and the operator runs none: give the subject token in a file (credential_source.file) or at a \
         URL (credential_source.url), or use workload identity federation with a projected ServiceAccount token"
    )]
    Executable,
}
