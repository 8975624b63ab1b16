//! The connections of watches, apart from that of calls: a watch holds its stream for minutes, and an API server takes 100 streams on an
//! HTTP/2 connection by default.

use std::sync::{Arc, Mutex};

use kube::Client;

use crate::sync::lock;

type Connect = Box<dyn Fn() -> Result<Client, kube::Error> + Send + Sync>;

/// Opens connections as watches need them.
pub struct Connections {
    connect: Connect,
    max_watches: usize,
    open: Mutex<Vec<Arc<Connection>>>,
}

/// One client, whose pool has one HTTP/2 connection.
struct Connection {
    client: Client,
    load: Mutex<Load>,
}

struct Load {
    watches: usize,
    max_watches: usize,
    /// The places that it keeps in any case.
    min_watches: usize,
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
        Self {
            connect: Box::new(connect),
            max_watches,
            open: Mutex::default(),
        }
    }

    /// A place for a watch, on a new connection if no other has one.
    ///
    /// # Errors
    /// The credentials or certificates of the cluster cannot be used.
    pub(crate) fn place(&self) -> Result<WatchPlace, kube::Error> {
        let mut open = lock(&self.open);
        open.retain(|connection| lock(&connection.load).watches > 0);
        let with_place = open.iter().find(|connection| {
            let mut load = lock(&connection.load);
            let has_place = load.watches < load.max_watches;
            load.watches += usize::from(has_place);
            has_place
        });
        if let Some(connection) = with_place {
            return Ok(WatchPlace(connection.clone()));
        }
        let load = Load {
            watches: 1,
            max_watches: self.max_watches,
            min_watches: (self.max_watches / 4).max(1),
        };
        let connection = Arc::new(Connection {
            client: (self.connect)()?,
            load: Mutex::new(load),
        });
        open.push(connection.clone());
        Ok(WatchPlace(connection))
    }
}

/// The place of a watch on a connection. It is free again once this is dropped.
pub(crate) struct WatchPlace(Arc<Connection>);

impl Drop for WatchPlace {
    fn drop(&mut self) {
        lock(&self.0.load).watches -= 1;
    }
}

impl WatchPlace {
    /// The client of the connection.
    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    /// Gives the place up, since no answer began in time on it: a server may take fewer streams than there are places, and those beyond wait
    /// for ever. The connection has fewer places from now on, but a quarter of them at least: the server may just be slow.
    pub(crate) fn give_up(self) {
        let mut load = lock(&self.0.load);
        load.max_watches = load.max_watches.min(load.watches - 1).max(load.min_watches);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::kubernetes::answer::tests::answering;

    /// Connections with 8 places each, and how many were opened.
    fn connections() -> (Connections, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let connect = move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(answering(200, Vec::new()))
        };
        (Connections::new(8, connect), opened)
    }

    #[tokio::test]
    async fn a_watch_beyond_the_places_opens_another_connection() {
        let (connections, opened) = connections();
        let opened = || opened.load(Ordering::SeqCst);
        let mut places: Vec<_> = (0..20).map(|_| connections.place().unwrap()).collect();
        assert_eq!(opened(), 3);
        // What is given back is used again.
        places.swap_remove(0);
        places.swap_remove(5);
        places.extend((0..6).map(|_| connections.place().unwrap()));
        assert_eq!(opened(), 3);
        places.push(connections.place().unwrap());
        assert_eq!(opened(), 4);
        // A connection without watches is closed.
        places.clear();
        let place = connections.place().unwrap();
        assert_eq!((opened(), lock(&connections.open).len()), (5, 1));
        drop(place);
    }

    #[tokio::test]
    async fn a_connection_whose_server_takes_fewer_streams_has_fewer_places() {
        let (connections, opened) = connections();
        let mut places: Vec<_> = (0..8).map(|_| connections.place().unwrap()).collect();
        let loads = || -> Vec<usize> {
            lock(&connections.open)
                .iter()
                .map(|open| lock(&open.load).watches)
                .collect()
        };
        // The server takes three streams.
        for refused in places.split_off(3) {
            refused.give_up();
            places.push(connections.place().unwrap());
        }
        assert_eq!(loads(), [3, 5]);
        places.extend((0..4).map(|_| connections.place().unwrap()));
        assert_eq!(loads(), [3, 8, 1], "no watch comes back to the first");
        // A server that is slow, and takes all streams, has a quarter of the places at least.
        for refused in places.drain(..3) {
            refused.give_up();
        }
        places.extend((0..2).map(|_| connections.place().unwrap()));
        assert_eq!((loads(), opened.load(Ordering::SeqCst)), (vec![8, 3], 3));
    }
}
