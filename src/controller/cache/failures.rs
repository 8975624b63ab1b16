//! Requests that wait after a refusal, and the end of all these waits at once.

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
}
