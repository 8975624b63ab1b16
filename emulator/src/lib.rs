//! Google's token endpoints, emulated: the metadata server, IAM Credentials, the Security Token Service, the OAuth 2.0
//! token endpoint and the published keys, all on one loopback port.
//!
//! It decides by a [`Policy`], really verifies what it is given, signs what it issues, and goes wrong on demand
//! ([`Fault`]). It is for tests, demos and CI: anybody who reaches its port can control it.
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
//! A call's way: `server` accepts it and finds its endpoint; the endpoint (`metadata`, `iam_credentials`, `sts` with
//! `subject_token`, `oauth`) notes what it is about in the call log, suffers the faults ordered for it, then checks it strictly
//! and answers; `tokens` mints. `admin` offers over HTTP what [`EmulatorHandle`] offers in-process. Clients that cannot be given
//! the port come by the `proxy`, which answers as Google's hosts with certificates of its own (`proxy_ca`).

mod admin;
mod call_log;
mod cel;
mod faults;
mod handle;
mod iam_credentials;
mod jwt;
mod key_file;
mod keys;
mod metadata;
mod oauth;
mod policy;
mod provider;
mod proxy;
mod proxy_ca;
mod response;
mod server;
mod state;
mod sts;
mod subject_token;
mod tokens;

pub use call_log::{CallRecord, Endpoint};
pub use faults::{Fault, FaultKind, RetryAfter, WrongToken};
pub use handle::{EmulatorHandle, Options};
pub use keys::{Jwk, Jwks, SigningKey};
pub use policy::{
    AccountKey, Binding, MetadataServer, OPEN_ID_TOKEN_CREATOR, OauthClient, Policy, Project, RefreshToken,
    Secret, ServiceAccount, TOKEN_CREATOR, WORKLOAD_IDENTITY_USER,
};
pub use provider::{GkeCluster, IssuerKeys, WorkloadIdentityProvider};
pub use tokens::GOOGLE_ISSUER;
