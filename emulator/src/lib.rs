//! Google's token endpoints, emulated: the metadata server, IAM Credentials, the Security Token Service, the OAuth 2.0
//! token endpoint and the published keys, all on one loopback port.
//!
//! It decides by a [`Policy`], verifies the credentials that it receives, signs the tokens that it issues, and fails on demand
//! ([`Fault`]). It is for tests, demos and CI: anyone who reaches its port can control it. The crate's README lists its modules.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use idtoken_emulator::{EmulatorHandle, Endpoint, Fault, Options, Policy};
//!
//! let policy = Policy::from_yaml(
//!     r#"
//!     serviceAccounts:
//!     - email: caller@p.iam.gserviceaccount.com
//!       bindings:
//!       - role: roles/iam.serviceAccountOpenIdTokenCreator
//!         members: ["serviceAccount:operator@p.iam.gserviceaccount.com"]
//!     - email: operator@p.iam.gserviceaccount.com
//!     metadataServer:
//!       serviceAccount: operator@p.iam.gserviceaccount.com
//!     "#,
//! )?;
//! let google = EmulatorHandle::start(policy, Options::default()).await?;
//! google.fault(Fault::status(503).on(Endpoint::GenerateIdToken).times(2))?;
//! println!("{}", google.url());
//! # google.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! The flow of a call: `server` accepts it and `routing` finds its endpoint. The endpoint (`metadata`, `iam_credentials`, `sts` with
//! `subject_token`, `aws` and `x509`, `oauth`) records the call in the call log, applies the faults that match it, then validates it strictly and
//! responds; `issue` mints. `target` answers as services behind Google's front ends do. `admin` offers over HTTP what
//! [`EmulatorHandle`] offers in-process. Clients whose endpoints are fixed come
//! through the `proxy`, which responds as Google's hosts with certificates of `proxy_ca`.

mod admin;
mod aws;
mod aws_keys;
mod call;
mod call_log;
mod cel;
mod clock;
mod denial;
mod faults;
mod front_end;
mod handle;
mod iam_credentials;
mod issue;
mod issuer_keys;
mod jwt;
mod key_file;
mod keys;
mod metadata;
mod oauth;
mod policy;
mod provider;
mod proxy;
mod proxy_ca;
mod quota;
mod response;
mod routing;
mod secret;
mod server;
mod service_account;
mod state;
mod sts;
mod subject_token;
mod target;
mod tokens;
mod x509;

pub use aws_keys::{Aws, AwsAccessKey};
pub use call_log::{CallRecord, Endpoint};
pub use faults::{DeniedBy, Fault, FaultKind, RetryAfter, WrongToken};
pub use handle::{EmulatorHandle, Options};
pub use issue::GOOGLE_ISSUER;
pub use keys::{Jwk, Jwks, SigningKey};
pub use policy::{MetadataServer, OauthClient, Policy, Project, RefreshToken};
pub use provider::{GkeCluster, IssuerKeys, WorkloadIdentityProvider};
pub use quota::{Enforcement, Quota};
pub use secret::Secret;
pub use service_account::{
    AccountKey, Binding, OPEN_ID_TOKEN_CREATOR, ServiceAccount, TOKEN_CREATOR, WORKLOAD_IDENTITY_USER,
};
pub use target::{Application, FrontEnd, Target, Trouble};
