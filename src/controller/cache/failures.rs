//! Requests that wait after a failure, and the end of all these waits at once.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::Cache;
use super::request_state::RequestState;
use crate::api::ObjectKey;
use crate::classify::ErrorClass;

fn waits(state: &RequestState) -> bool {
    let backoff = state.backoff.as_ref();
    backoff.is_some_and(|backoff| backoff.class == ErrorClass::Rejected)
}

impl Cache {
    /// Whether a request waits after a refusal.
    pub fn has_refusals(&self) -> bool {
        self.lock().requests.states().any(|(_, state)| waits(state))
    }

    /// Ends the waits of all requests after refusals, and returns these requests. What is likely to pass by itself goes on waiting.
    pub fn end_refusals(&self) -> Vec<ObjectKey> {
        let mut inner = self.lock();
        let refused = inner.requests.states().filter(|(_, state)| waits(state));
        let refused = refused.map(|(key, state)| {
            state.backoff = None;
            key.clone()
        });
        refused.collect()
    }

    /// Ends the waits of the requests of these namespaces that have no valid token because Google failed, and returns these requests. An
    /// empty name stands for all.
    pub fn end_waits_for_google(&self, namespaces: &BTreeSet<String>, now: Timestamp) -> Vec<ObjectKey> {
        let is_all = namespaces.contains("");
        let mut inner = self.lock();
        let ends = |(key, state): (&ObjectKey, &mut RequestState)| {
            let backoff = state.backoff.as_mut();
            let backoff = backoff.filter(|_| is_all || namespaces.contains(key.namespace()))?;
            backoff.end(now).then(|| key.clone())
        };
        inner.requests.states().filter_map(ends).collect()
    }
}
