//! A real Kubernetes control plane for tests and demos.
//!
//! [`ControlPlane::start`] runs etcd and kube-apiserver (with TLS, RBAC, audit log and a service-account issuer) in a
//! folder and on ports of their own, so that several run at once. The binaries come from `KUBEBUILDER_ASSETS` if it
//! is set. Otherwise those that Kubernetes publishes for tests are downloaded once; where they cannot be, they are built once from their
//! Go modules (see [`Assets::locate`]). The crate's README lists its modules.
//!
//! A child started through [`Process`] never outlives the process that started it, even if that is killed by SIGKILL.
//!
//! | Environment variable | Meaning |
//! |---|---|
//! | `KUBEBUILDER_ASSETS` | folder with `etcd`, `kube-apiserver` and `kubectl`: nothing is built |
//! | `IDTOKEN_TESTENV_BUILD` | `1`: etcd, kube-apiserver and kubectl are built in exactly the pinned version, and not downloaded |
//! | `IDTOKEN_TESTENV_KEEP` | `1`: folders of stopped control planes (logs, audit log, data) are kept |
//! | `CARGO_TARGET_DIR` | folder for built binaries and run folders, below `testenv/` |
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use idtoken_testenv::{ControlPlane, Options};
//!
//! let cluster = ControlPlane::start(Options::default()).await?;
//! cluster.kubectl(["create", "namespace", "shop"]).await?;
//! let limited = cluster.kubeconfig_for("jane", &["developers"])?;
//! assert!(cluster.kubectl_as(&limited, ["get", "secrets"]).await.is_err());
//! cluster.stop().await?;
//! # Ok(())
//! # }
//! ```

mod apiserver;
pub mod archive;
mod artifact;
mod assets;
mod audit;
pub mod binaries;
mod builder;
pub mod consumers;
mod control_plane;
mod digest;
mod discovery;
mod environment;
mod etcd;
mod go_module;
mod hosts;
mod kubeconfig;
mod kubectl;
pub mod node;
pub mod oci;
mod options;
mod paths;
mod pki;
mod ports;
mod process;
mod progress;
mod prometheus;
mod publish;
mod published;
mod python;
mod registry;
mod skip;
mod wait;

pub use artifact::Artifact;
pub use assets::Assets;
pub use audit::AuditEvent;
pub use control_plane::{ControlPlane, Snapshot};
pub use digest::sha256;
pub use discovery::discovery_document;
pub use environment::clean_command;
pub use go_module::{GoModule, GoTool};
pub use options::Options;
pub use paths::{RunDir, target_dir};
pub use ports::Port;
pub use process::Process;
pub use progress::Progress;
pub use prometheus::Prometheus;
pub use publish::{COSIGN, Publisher};
pub use python::PythonEnvironment;
pub use registry::{CRANE, Registry};
pub use skip::or_skip;
pub use wait::{http_status, until};
