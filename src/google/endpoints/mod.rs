//! Google's token endpoints, one file each: their requests and responses.
//!
//! May import `remediation`, `transport` and `vocabulary`. An endpoint never chooses an identity: its callers pass the credential.

pub(crate) mod iam_credentials;
pub(crate) mod metadata_server;
pub(crate) mod oauth2;
pub(crate) mod sts;
