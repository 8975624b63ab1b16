//! The thread of the election. The Lease is renewed on time whatever the other threads decode or wait for.

use tokio::sync::{mpsc, oneshot};

use super::Elector;

/// Much more than an election needs.
const STACK_SIZE: usize = 1 << 20;

/// An [`Elector`] on a thread of its own, with its own runtime and connection. It ends when this is dropped.
#[derive(Debug)]
pub struct ElectorThread(mpsc::UnboundedSender<Call>);

/// One of the methods of an [`Elector`].
#[derive(Clone, Copy, Debug)]
enum Method {
    WaitReadable,
    Acquire,
    RenewUntilLost,
    Release,
}

/// A call of a method. It is cancelled when the other end of `done` is dropped.
#[derive(Debug)]
struct Call {
    method: Method,
    done: oneshot::Sender<()>,
}

impl ElectorThread {
    /// Starts the thread, on which `make` makes the elector: the tasks of its client are to run there, too.
    ///
    /// # Errors
    /// The thread cannot be started, or `make` failed.
    pub async fn start<E>(make: impl FnOnce() -> Result<Elector, E> + Send + 'static) -> Result<Self, E>
    where
        E: From<std::io::Error> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (calls, receiver) = mpsc::unbounded_channel();
        let (made, is_made) = oneshot::channel();
        let run = move || {
            runtime.block_on(async {
                match make() {
                    Ok(elector) => {
                        // Fails if the process is about to end.
                        let _ = made.send(Ok(()));
                        serve(elector, receiver).await;
                    }
                    Err(error) => drop(made.send(Err(error))),
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("lease".to_owned())
            .stack_size(STACK_SIZE);
        thread.spawn(run)?;
        is_made.await.unwrap_or_else(|_| panic_too())?;
        Ok(Self(calls))
    }

    /// As [`Elector::wait_readable`].
    pub async fn wait_readable(&mut self) {
        self.call(Method::WaitReadable).await;
    }

    /// As [`Elector::acquire`].
    pub async fn acquire(&mut self) {
        self.call(Method::Acquire).await;
    }

    /// As [`Elector::renew_until_lost`].
    pub async fn renew_until_lost(&mut self) {
        self.call(Method::RenewUntilLost).await;
    }

    /// As [`Elector::release`].
    pub async fn release(&mut self) {
        self.call(Method::Release).await;
    }

    async fn call(&self, method: Method) {
        let (done, is_done) = oneshot::channel();
        if self.0.send(Call { method, done }).is_err() || is_done.await.is_err() {
            panic_too()
        }
    }
}

/// Panics, because the thread of the election did: without it, this replica would never take over.
fn panic_too() -> ! {
    std::panic::resume_unwind(Box::new("the thread of the election panicked"))
}

async fn serve(mut elector: Elector, mut calls: mpsc::UnboundedReceiver<Call>) {
    while let Some(Call { method, mut done }) = calls.recv().await {
        let work = async {
            match method {
                Method::WaitReadable => elector.wait_readable().await,
                Method::Acquire => elector.acquire().await,
                Method::RenewUntilLost => elector.renew_until_lost().await,
                Method::Release => elector.release().await,
            }
        };
        let is_finished = tokio::select! {
            biased;
            () = done.closed() => false,
            () = work => true,
        };
        if is_finished {
            // Fails if the call was cancelled just now.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use http::{Method as Verb, Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::clock::Clock;
    use crate::leader::{ElectionSettings, Fence};
    use crate::sync::lock;

    /// Generous, since others may use the machine too.
    const LIMIT: Duration = Duration::from_secs(60);

    /// A client of an API server with one Lease, which reports each write.
    fn client(lease: Arc<Mutex<Option<Value>>>, written: std::sync::mpsc::Sender<()>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let (lease, written) = (lease.clone(), written.clone());
            async move {
                let (parts, body) = request.into_parts();
                if parts.method != Verb::GET {
                    let body = body.collect_bytes().await?;
                    *lock(&lease) = serde_json::from_slice(&body).ok();
                    let _ = written.send(());
                }
                let is_list = parts.method == Verb::GET && parts.uri.path().ends_with("/leases");
                let (code, answer) = match &*lock(&lease) {
                    _ if is_list => (200, json!({"items": []})),
                    Some(lease) => (200, lease.clone()),
                    None => (404, json!({"kind": "Status", "code": 404})),
                };
                let answer = Body::from(answer.to_string().into_bytes());
                Response::builder()
                    .status(code)
                    .body(answer)
                    .map_err(kube::Error::HttpError)
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn the_lease_is_renewed_while_every_other_thread_is_busy() {
        let lease = Arc::new(Mutex::new(None));
        let (written, writes) = std::sync::mpsc::channel();
        let settings = ElectionSettings {
            namespace: "shop".to_owned(),
            name: "idtoken-operator".to_owned(),
            former_name: None,
            identity: "me".to_owned(),
            shard: crate::shard::Shard::default(),
            lease_duration: Duration::from_secs(120),
            renew_deadline: Duration::from_secs(90),
            retry_period: Duration::from_millis(5),
        };
        let shown = lease.clone();
        let make = move || {
            let (client, clock) = (client(lease, written), Clock::system());
            let fence = Fence::closed(clock.clone());
            Ok::<_, std::io::Error>(Elector::new(client, settings, fence, Arc::default(), clock))
        };
        let mut elector = ElectorThread::start(make).await.unwrap();
        elector.acquire().await;
        writes.recv_timeout(LIMIT).unwrap();
        {
            let mut renewing = std::pin::pin!(elector.renew_until_lost());
            assert!(futures::poll!(&mut renewing).is_pending());
            // Blocks the only thread of this runtime.
            for _ in 0..3 {
                writes.recv_timeout(LIMIT).unwrap();
            }
        }
        // The renewals were cancelled.
        elector.release().await;
        let holder = lock(&shown).as_ref().unwrap()["spec"]["holderIdentity"].clone();
        assert_eq!(holder, "");
    }

    #[tokio::test]
    async fn an_elector_that_cannot_be_made_is_an_error() {
        let failed = ElectorThread::start(|| Err(std::io::Error::other("no certificate"))).await;
        assert_eq!(failed.unwrap_err().to_string(), "no certificate");
    }
}
