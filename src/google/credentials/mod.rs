//! The operator's own identity: Application Default Credentials, and the access token that they give.
//!
//! May import the other folders of `google`; none of those imports this one, and no tenant's credential comes here.

pub(crate) mod adc;
pub(crate) mod allowed_hosts;
pub(crate) mod external_account;
pub(crate) mod fetch;
pub(crate) mod file;
pub(crate) mod file_error;
pub(crate) mod service_account_key;
pub(crate) mod token_cache;
