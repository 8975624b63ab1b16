//! Calls of the Kubernetes API as the caller, and their errors in the caller's terms.
//!
//! Imports `args` for the flags and `decisions` for the types that decisions take as input. Never decides and never prints.

pub(crate) mod client;
mod connection;
pub(crate) mod error;
mod installation;
mod kubeconfig;
mod operator_pods;
mod pods;
mod proxy;
