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
    places: Arc<Places>,
    open: Mutex<Vec<Arc<Connection>>>,
}

/// One client, whose pool has one HTTP/2 connection.
struct Connection {
    client: Client,
    watches: AtomicUsize,
    places: Arc<Places>,
}

/// How many watches a connection takes.
struct Places {
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
        let places = Places {
            max: max_watches,
            now: max_watches.into(),
        };
        Self {
            connect: Box::new(connect),
            places: Arc::new(places),
            open: Mutex::default(),
        }
    }

    /// A place for a watch, on a new connection if no other has one.
    ///
    /// # Errors
    /// The credentials or certificates of the cluster cannot be used.
    pub(crate) fn place(&self) -> Result<WatchPlace, kube::Error> {
        let mut open = lock(&self.open);
        open.retain(|connection| connection.watches.load(SeqCst) > 0);
        let places = self.places.now.load(SeqCst);
        let with_place = open
            .iter()
            .find(|connection| connection.watches.load(SeqCst) < places);
        let connection = match with_place {
            Some(connection) => connection.clone(),
            None => {
                let connection = Arc::new(Connection {
                    client: (self.connect)()?,
                    watches: AtomicUsize::new(0),
                    places: self.places.clone(),
                });
                open.push(connection.clone());
                connection
            }
        };
        connection.watches.fetch_add(1, SeqCst);
        Ok(WatchPlace(connection))
    }
}

/// The place of a watch on a connection. It is free again once this is dropped.
pub(crate) struct WatchPlace(Arc<Connection>);

impl Drop for WatchPlace {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, SeqCst);
    }
}

impl WatchPlace {
    /// The client of the connection.
    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    /// Gives the place back, since no answer began in time on it. An API server may take fewer streams than a connection has places; the
    /// watches beyond would never start. So each connection has fewer places from now on. Where even a quarter of them is too many, the API
    /// server is slow instead, and all places are back.
    pub(crate) fn give_up(self) {
        let places = &self.0.places;
        let taken = self.0.watches.load(SeqCst);
        let (least, now) = (places.max.div_ceil(4), places.now.load(SeqCst));
        let next = if taken > least {
            now.min(taken - 1)
        } else {
            places.max
        };
        places.now.store(next, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::answer::tests::answering;

    /// Connections with 8 places each, and how many were opened.
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
    async fn a_watch_beyond_the_places_opens_another_connection() {
        let (connections, opened) = connections();
        let opened = || opened.load(SeqCst);
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
    async fn connections_have_as_many_places_as_the_server_takes_streams() {
        let (connections, opened) = connections();
        let watches = || -> Vec<usize> {
            let open = lock(&connections.open);
            open.iter().map(|open| open.watches.load(SeqCst)).collect()
        };
        let mut places: Vec<_> = (0..8).map(|_| connections.place().unwrap()).collect();
        // The server takes three streams. One answer after the other is missing, and each watch is started again at once.
        for refused in places.split_off(3) {
            refused.give_up();
            places.push(connections.place().unwrap());
        }
        assert_eq!(watches(), [3, 4, 1]);
        places.remove(3).give_up();
        places.push(connections.place().unwrap());
        assert_eq!(watches(), [3, 3, 2]);
        places.push(connections.place().unwrap());
        assert_eq!((watches(), opened.load(SeqCst)), (vec![3, 3, 3], 3));
        // A server that is slow, and takes all streams: even two are not answered.
        for refused in places.drain(..2) {
            refused.give_up();
        }
        places.extend((0..8).map(|_| connections.place().unwrap()));
        assert_eq!((watches(), opened.load(SeqCst)), (vec![8, 4, 3], 3));
    }
}
