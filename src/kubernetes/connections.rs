//! The connections of watches, apart from that of calls: a watch holds its stream for minutes, and an API server takes 100 streams on an
//! HTTP/2 connection by default.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use kube::Client;

use crate::sync::lock;

type Connect = Box<dyn Fn() -> Result<Client, kube::Error> + Send + Sync>;

/// Opens connections as watches need them.
pub struct Connections {
    connect: Connect,
    slots: Arc<Slots>,
    open: Mutex<Vec<Arc<Connection>>>,
}

/// One client, whose pool has one HTTP/2 connection.
struct Connection {
    client: Client,
    watches: AtomicUsize,
    slots: Arc<Slots>,
}

/// How many watches a connection takes.
struct Slots {
    max: usize,
    /// At most `max`: fewer where the API server takes fewer streams.
    now: AtomicUsize,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

impl Connections {
    /// Connections by `connect`, with at most `max_watches` watches on each.
    pub fn new(
        max_watches: usize,
        connect: impl Fn() -> Result<Client, kube::Error> + Send + Sync + 'static,
    ) -> Self {
        let slots = Slots {
            max: max_watches,
            now: max_watches.into(),
        };
        Self {
            connect: Box::new(connect),
            slots: Arc::new(slots),
            open: Mutex::default(),
        }
    }

    /// A slot for a watch, on a new connection if no other has one.
    ///
    /// # Errors
    /// The credentials or certificates of the cluster cannot be used.
    pub(crate) fn slot(&self) -> Result<WatchSlot, kube::Error> {
        let mut open = lock(&self.open);
        open.retain(|connection| connection.watches.load(SeqCst) > 0);
        let slots = self.slots.now.load(SeqCst);
        let with_slot = open
            .iter()
            .find(|connection| connection.watches.load(SeqCst) < slots);
        let connection = match with_slot {
            Some(connection) => connection.clone(),
            None => {
                let connection = Arc::new(Connection {
                    client: (self.connect)()?,
                    watches: AtomicUsize::new(0),
                    slots: self.slots.clone(),
                });
                open.push(connection.clone());
                connection
            }
        };
        connection.watches.fetch_add(1, SeqCst);
        Ok(WatchSlot(connection))
    }
}

/// The slot of a watch on a connection. It is free again once this is dropped.
pub(crate) struct WatchSlot(Arc<Connection>);

impl Drop for WatchSlot {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, SeqCst);
    }
}

impl WatchSlot {
    /// The client of the connection.
    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    /// Gives the slot back, since no answer began in time on it. An API server may take fewer streams than a connection has slots; the
    /// watches beyond would never start. So each connection has fewer slots from now on. Where even a quarter of them is too many, the API
    /// server is slow instead, and all slots are back.
    pub(crate) fn give_up(self) {
        let slots = &self.0.slots;
        let taken = self.0.watches.load(SeqCst);
        let (least, now) = (slots.max.div_ceil(4), slots.now.load(SeqCst));
        let next = if taken > least {
            now.min(taken - 1)
        } else {
            slots.max
        };
        slots.now.store(next, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::answer::tests::answering;

    /// Connections with 8 slots each, and how many were opened.
    fn connections() -> (Connections, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let connect = move || {
            count.fetch_add(1, SeqCst);
            Ok(answering(200, Vec::new()))
        };
        (Connections::new(8, connect), opened)
    }

    #[tokio::test]
    async fn a_watch_beyond_the_slots_opens_another_connection() {
        let (connections, opened) = connections();
        let opened = || opened.load(SeqCst);
        let mut slots: Vec<_> = (0..20).map(|_| connections.slot().unwrap()).collect();
        assert_eq!(opened(), 3);
        // What is given back is used again.
        slots.swap_remove(0);
        slots.swap_remove(5);
        slots.extend((0..6).map(|_| connections.slot().unwrap()));
        assert_eq!(opened(), 3);
        slots.push(connections.slot().unwrap());
        assert_eq!(opened(), 4);
        // A connection without watches is closed.
        slots.clear();
        let slot = connections.slot().unwrap();
        assert_eq!((opened(), lock(&connections.open).len()), (5, 1));
        drop(slot);
    }

    #[tokio::test]
    async fn connections_have_as_many_slots_as_the_server_takes_streams() {
        let (connections, opened) = connections();
        let watches = || -> Vec<usize> {
            let open = lock(&connections.open);
            open.iter().map(|open| open.watches.load(SeqCst)).collect()
        };
        let mut slots: Vec<_> = (0..8).map(|_| connections.slot().unwrap()).collect();
        // The server takes three streams. One answer after the other is missing, and each watch is started again at once.
        for refused in slots.split_off(3) {
            refused.give_up();
            slots.push(connections.slot().unwrap());
        }
        assert_eq!(watches(), [3, 4, 1]);
        slots.remove(3).give_up();
        slots.push(connections.slot().unwrap());
        assert_eq!(watches(), [3, 3, 2]);
        slots.push(connections.slot().unwrap());
        assert_eq!((watches(), opened.load(SeqCst)), (vec![3, 3, 3], 3));
        // A server that is slow, and takes all streams: even two are not answered.
        for refused in slots.drain(..2) {
            refused.give_up();
        }
        slots.extend((0..8).map(|_| connections.slot().unwrap()));
        assert_eq!((watches(), opened.load(SeqCst)), (vec![8, 4, 3], 3));
    }
}
