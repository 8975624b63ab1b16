//! What lets calls out only while this process may act.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Method, Request};
use kube::client::Body;
use tower::BoxError;
use tower::filter::FilterLayer;

use super::clock::Instant;

/// Asked at every use, right before a call goes out: a process that was stopped for a while finds it closed at its next step, before
/// any timer or task has told it anything.
#[derive(Clone, Debug)]
pub struct Fence(Arc<AtomicU64>);

/// A write of a process that may not act.
#[derive(Debug, thiserror::Error)]
#[error("nothing is written: this replica does not hold the Lease, or could not renew it in time")]
pub struct FenceClosed;

impl Fence {
    /// Closed.
    pub fn closed() -> Self {
        Self(Arc::new(AtomicU64::new(0)))
    }

    /// Open for ever: there is no other replica.
    pub fn open() -> Self {
        Self(Arc::new(AtomicU64::new(u64::MAX)))
    }

    /// Opens it until `deadline`.
    pub fn open_until(&self, deadline: Instant) {
        self.0.store(deadline.as_millis(), Ordering::SeqCst);
    }

    /// Closes it.
    pub fn close(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Whether this process may act now.
    pub fn is_open(&self) -> bool {
        Instant::now().as_millis() < self.0.load(Ordering::SeqCst)
    }

    /// A layer for the client of the Kubernetes API that lets writes pass only while the fence is open. Reads always pass: caches are
    /// kept by replicas that do not act, too.
    pub fn layer(
        &self,
    ) -> FilterLayer<impl Fn(Request<Body>) -> Result<Request<Body>, BoxError> + Clone + use<>> {
        let fence = self.clone();
        FilterLayer::new(move |request: Request<Body>| match *request.method() {
            Method::GET | Method::HEAD | Method::OPTIONS => Ok(request),
            _ if fence.is_open() => Ok(request),
            _ => Err(BoxError::from(FenceClosed)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_closes_by_itself() {
        let fence = Fence::closed();
        assert!(!fence.is_open());
        fence.open_until(Instant::now() + Duration::from_millis(50));
        let other = fence.clone();
        assert!(other.is_open());
        std::thread::sleep(Duration::from_millis(60));
        assert!(!other.is_open());
        fence.open_until(Instant::now() + Duration::from_secs(60));
        fence.close();
        assert!(!other.is_open());
        assert!(Fence::open().is_open());
    }

    #[tokio::test]
    async fn only_reads_pass_a_closed_one() {
        use tower::{Layer, Service, ServiceExt};
        let fence = Fence::closed();
        let inner =
            tower::service_fn(async |request: Request<Body>| Ok::<_, BoxError>(request.method().clone()));
        let mut client = fence.layer().layer(inner);
        let mut call = async |method: Method| {
            let request = Request::builder().method(method).body(Body::empty()).unwrap();
            client.ready().await.unwrap().call(request).await
        };
        let writes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        assert!(call(Method::GET).await.is_ok());
        for method in &writes {
            let error = call(method.clone()).await.unwrap_err();
            assert!(error.is::<FenceClosed>(), "{method}: {error}");
        }
        fence.open_until(Instant::now() + Duration::from_secs(60));
        for method in writes {
            assert!(call(method).await.is_ok());
        }
    }
}
