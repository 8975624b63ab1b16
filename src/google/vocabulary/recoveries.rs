//! Who may call again after an endpoint failed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::sync::lock;

/// The flows whose calls were held back because an endpoint failed, and may start again. A clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Recoveries(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Those that [`Recoveries::next`] has not returned yet: at most all flows.
    flows: Mutex<BTreeSet<String>>,
    added: Notify,
}

impl Recoveries {
    /// Calls of these flows may start again.
    pub(crate) fn add(&self, flows: Vec<String>) {
        if !flows.is_empty() {
            lock(&self.0.flows).extend(flows);
            self.0.added.notify_one();
        }
    }

    /// Waits for flows whose calls may start again. The flow of the operator's own calls is empty: it holds back all others.
    pub(crate) async fn next(&self) -> BTreeSet<String> {
        loop {
            let flows = std::mem::take(&mut *lock(&self.0.flows));
            if !flows.is_empty() {
                return flows;
            }
            self.0.added.notified().await;
        }
    }
}
