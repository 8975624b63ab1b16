//! Who may have which token: what grants say ([`policy`], pure), which of them can match ([`index`], pure), and the grants in force with the
//! freshness of their watches ([`store`]).
//!
//! May import requests, the API's types and the ground. Never calls the Kubernetes API, and allows nothing once a watch is silent.

pub mod index;
pub mod policy;
pub mod store;
