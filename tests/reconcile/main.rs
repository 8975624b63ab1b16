//! The calls of one reconcile, in order: the operator as the process that users run, against a scripted API server and Google's endpoints
//! emulated. What each case is to call stands in `recorded/`, with preconditions and bodies; texts of messages are not part of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_server;
mod before;
mod issue;
mod objects;
mod record;
mod rejections;
mod scene;
mod secrets;
