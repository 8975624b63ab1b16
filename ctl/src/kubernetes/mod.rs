//! Calls of the Kubernetes API with the caller's kubeconfig, and their errors in the caller's terms.
//!
//! Imports `args` for the flags and `decisions` for the types that decisions take as input. Never decides and never prints.

pub(crate) mod client;
pub(crate) mod error;
