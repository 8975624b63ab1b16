//! Who may have which token: what a grant allows ([`policy`], pure), which grants can match a request ([`index`], pure), the grants in force
//! with the freshness of their watches ([`store`]), and the file of `--grants-file` ([`mod@file`]).
//!
//! May import [`crate::request`], the API's types and the ground. Takes the time as an argument. Never calls the Kubernetes API, and allows
//! nothing while a watch of grants or namespaces is stale.

pub mod file;
pub mod index;
pub mod policy;
pub mod store;
