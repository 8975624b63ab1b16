//! What the API server shows: each watch fills the caches and enqueues the requests that a change concerns.
//!
//! Each kind of object has a file; `stream` has what all watches share. May import the caches, the grants, the queue's input, and what is
//! below them. Watches only read, so they run on standbys as well. They never decide what a request needs.

mod clock;
mod context;
mod decode;
pub mod foreign_secrets;
mod grants;
pub(crate) mod grants_file;
mod namespaces;
mod requests;
mod secrets;
mod stream;
pub mod sync_state;

use std::path::PathBuf;

use tokio::task::JoinSet;

pub(crate) use context::WatchContext;

/// Spawns all watches. An operator for some namespaces watches neither IdTokenGrants nor namespaces: both are cluster-scoped.
pub(crate) fn spawn(ctx: WatchContext, grants_file: Option<PathBuf>, tasks: &mut JoinSet<()>) {
    for scope in ctx.shard.namespaces() {
        tasks.spawn(requests::watch(ctx.clone(), scope.clone()));
        tasks.spawn(secrets::watch(ctx.clone(), scope));
    }
    if !ctx.shard.is_namespaced() {
        tasks.spawn(grants::watch(ctx.clone()));
        tasks.spawn(namespaces::watch(ctx.clone()));
    }
    tasks.spawn(foreign_secrets::watch(ctx.clone()));
    tasks.spawn(foreign_secrets::poll(ctx.clone()));
    tasks.spawn(clock::detect_clock_jumps(ctx.clock.clone(), ctx.enqueuer.clone()));
    if let Some(path) = grants_file {
        tasks.spawn(grants_file::watch(
            path,
            ctx.grants,
            ctx.metrics,
            ctx.enqueuer,
            ctx.clock,
        ));
    }
}
