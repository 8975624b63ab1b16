//! Google's token endpoints, one file each: how a request is written and its response read.
//!
//! May import `remediation`, `transport` and `vocabulary`. An endpoint never chooses an identity: it uses the credential it is given.

pub(crate) mod iam_credentials;
pub(crate) mod metadata_server;
pub(crate) mod oauth2;
pub(crate) mod sts;
