//! What flows in: each watch feeds the caches and names the requests to reconcile.

mod clock;
mod decode;
pub mod foreign_secrets;
mod grants;
mod grants_file;
mod namespaces;
mod requests;
mod secrets;
mod stream;

use std::collections::HashSet;

use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch::Sender;

use crate::controller::Context;
use crate::controller::cache::ObjectKey;

pub(crate) use clock::clock;
pub(crate) use grants::grants;
pub(crate) use grants_file::grants_file;
pub(crate) use namespaces::namespaces;
pub(crate) use requests::requests;
pub(crate) use secrets::secrets;

/// Where the watches put the requests to reconcile.
#[derive(Clone, Debug)]
pub(crate) struct Enqueuer {
    one: UnboundedSender<ObjectKey>,
    all: UnboundedSender<Scope>,
}

/// Which requests are to be looked at.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    /// Every one.
    Everything,
    /// Those of a namespace.
    Namespace(String),
}

impl Enqueuer {
    /// `one` takes single requests, `all` that many are to be looked at.
    pub(crate) fn new(one: UnboundedSender<ObjectKey>, all: UnboundedSender<Scope>) -> Self {
        Self { one, all }
    }

    /// Has one request looked at.
    pub(crate) fn request(&self, key: ObjectKey) {
        // Fails only when the operator is about to end.
        let _ = self.one.send(key);
    }

    fn everything(&self) {
        let _ = self.all.send(Scope::Everything);
    }

    fn namespace(&self, name: String) {
        let _ = self.all.send(Scope::Namespace(name));
    }
}

/// The caches that must be filled before the first decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CacheKind {
    /// IdTokenRequests of a namespace, or of all where its name is empty.
    Requests(String),
    /// Secrets with our label, likewise.
    Secrets(String),
    /// IdTokenGrants.
    Grants,
    /// Namespaces.
    Namespaces,
}

/// Which caches have been filled.
pub(crate) type SyncState = Sender<HashSet<CacheKind>>;

fn fill(filled: &SyncState, cache: CacheKind) {
    filled.send_if_modified(|done| done.insert(cache));
}

fn within<K>(ctx: &Context, scope: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match scope {
        "" => Api::all(ctx.client.clone()),
        namespace => Api::namespaced(ctx.client.clone(), namespace),
    }
}
