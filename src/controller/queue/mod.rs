//! What is reconciled next: the order of requests ([`order`], pure), the loop that runs reconciles as tasks ([`worker`]), the permits
//! that bound how many of them call the Kubernetes API at once ([`permit`]), and how long each has run ([`stopwatch`]).
//!
//! May import the clock, the liveness and the metrics. Never knows what a reconcile does.

pub(crate) mod order;
pub(crate) mod permit;
pub(crate) mod stopwatch;
pub(crate) mod worker;

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::api::ObjectKey;

/// The requests to reconcile, where one event concerns many.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    /// Every request.
    All,
    /// The requests of a namespace.
    Namespace(String),
    /// These requests.
    Requests(Vec<ObjectKey>),
}

/// When a request is reconciled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Requeue {
    /// After this time.
    pub(crate) after: Duration,
    /// How long its token is valid; none if it has no valid one.
    pub(crate) token_left: Option<Duration>,
}

/// Sends the requests to reconcile to the queue.
#[derive(Clone, Debug)]
pub(crate) struct Enqueuer {
    requests: UnboundedSender<ObjectKey>,
    scopes: UnboundedSender<Scope>,
}

impl Enqueuer {
    /// `requests` takes single requests, `scopes` many at once.
    pub(crate) fn new(requests: UnboundedSender<ObjectKey>, scopes: UnboundedSender<Scope>) -> Self {
        Self { requests, scopes }
    }

    /// Enqueues one request.
    pub(crate) fn request(&self, key: ObjectKey) {
        // Fails only while the operator shuts down.
        let _ = self.requests.send(key);
    }

    /// Enqueues every request.
    pub(crate) fn all(&self) {
        let _ = self.scopes.send(Scope::All);
    }

    /// Enqueues these requests at once.
    pub(crate) fn requests(&self, keys: Vec<ObjectKey>) {
        let _ = self.scopes.send(Scope::Requests(keys));
    }

    /// Enqueues the requests of a namespace.
    pub(crate) fn namespace(&self, name: String) {
        let _ = self.scopes.send(Scope::Namespace(name));
    }
}
