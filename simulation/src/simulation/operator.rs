//! The state of one operator.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use idtoken_operator::google::simulation::{FairQueue, MAX_WAITING, QueueLimits, WaiterId};

use super::Settings;
use crate::time::Time;

/// One operator: its queue of requests, and its calls to Google.
pub(super) struct Operator {
    pub(super) queue: FairQueue,
    /// The requests whose calls wait in `queue`.
    pub(super) waiting: HashMap<WaiterId, u32>,
    /// When `queue` is polled next.
    pub(super) next_poll: Option<Time>,
    /// Those that are due, by the end of their token; without a valid one by the time at which they were due, which is earlier.
    pub(super) due: BTreeSet<(Time, u32)>,
    pub(super) running: usize,
    pub(super) writing: usize,
    /// Requests with a token to write, and when it was issued.
    pub(super) to_write: VecDeque<(u32, Time)>,
    /// Until when it does not run.
    pub(super) away: Time,
    /// Counts its starts. Results of calls from an earlier term are lost.
    pub(super) term: u16,
}

impl Operator {
    /// An operator that has just started.
    pub(super) fn new(settings: &Settings, term: u16) -> Self {
        let interval = settings
            .rate
            .map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.get());
        Self {
            queue: FairQueue::new(QueueLimits {
                interval,
                in_flight: settings.in_flight,
                waiting: MAX_WAITING,
            }),
            waiting: HashMap::new(),
            next_poll: None,
            due: BTreeSet::new(),
            running: 0,
            writing: 0,
            to_write: VecDeque::new(),
            away: 0,
            term,
        }
    }
}
