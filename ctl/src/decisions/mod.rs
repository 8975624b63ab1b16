//! What the commands decide: pure functions of objects, flags and the time.
//!
//! Imports the operator's library and files of this folder. Never a client, a clock, the environment or a terminal: all input
//! is an argument, so that each decision has unit tests.

pub(crate) mod admission_policy;
pub(crate) mod answer;
pub(crate) mod checkup;
pub(crate) mod completion;
pub(crate) mod destination;
pub(crate) mod diagnosis;
pub(crate) mod doctor_cluster;
pub(crate) mod doctor_health;
pub(crate) mod doctor_history;
pub(crate) mod doctor_identity;
pub(crate) mod doctor_metrics;
pub(crate) mod doctor_pods;
pub(crate) mod doctor_release;
pub(crate) mod grant_manifest;
pub(crate) mod grant_sets;
pub(crate) mod invalid_grants;
pub(crate) mod manifests;
pub(crate) mod near_misses;
pub(crate) mod release_grants;
pub(crate) mod remediation;
pub(crate) mod renewal;
pub(crate) mod requested_token;
pub(crate) mod secret_view;
pub(crate) mod target_command;
pub(crate) mod target_rows;
pub(crate) mod try_pod;
pub(crate) mod unverified_requests;
