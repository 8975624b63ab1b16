//! The operator's own identity: Application Default Credentials, and their access token.
//!
//! May import the other folders of `google`, and none of them imports this one. Handles no tenant's credential, and runs no program.

pub(crate) mod adc;
pub(crate) mod allowed_hosts;
pub(crate) mod aws;
pub(crate) mod aws_signature;
pub(crate) mod certificate;
pub(crate) mod external_account;
pub(crate) mod fetch;
pub(crate) mod file;
pub(crate) mod file_error;
pub(crate) mod identity;
pub(crate) mod service_account_key;
pub(crate) mod source;
pub(crate) mod token_cache;
