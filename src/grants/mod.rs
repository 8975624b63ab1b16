//! Who may have which token: which namespaces a grant names ([`selector`], pure), what it allows ([`policy`], pure), which grants can match a
//! request ([`index`], pure), the status of an IdTokenGrant ([`object`], pure), the grants in force with the freshness of their watches
//! ([`store`]), and the file of `--grants-file` ([`mod@file`]).
//!
//! May import [`crate::request`], the API's types and the ground. Takes the time as an argument. Never calls the Kubernetes API, and allows
//! nothing while a watch of grants or namespaces is stale.

pub mod file;
pub mod index;
pub mod object;
pub mod policy;
pub mod selector;
mod sorted_map;
pub mod store;
