//! The whole controller in one process, against a scripted API server and another leader.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::clock::Clock;
use crate::controller::cache::CacheLimits;
use crate::google::{GoogleConfig, Minter};
use crate::kubernetes::Connections;
use crate::kubernetes::events::EventRecorder;
use crate::leader::{ElectionSettings, Elector, Fence};
use crate::metrics::Metrics;
use crate::request::SourceSettings;
use crate::shard::Shard;
use crate::sync::lock;

const LIMIT: Duration = Duration::from_secs(60);
const STATUS: &str = "/apis/idtoken.dev/v1alpha1/namespaces/shop/idtokenrequests/billing/status";

/// An API server with one request that cannot be decoded.
#[derive(Default)]
struct Server {
    other_leader_is_gone: AtomicBool,
    lease_reads: AtomicUsize,
    /// Method and path of each call that is not a read.
    writes: Mutex<Vec<String>>,
}

impl Server {
    async fn answer(&self, request: Request<Body>) -> Value {
        let (parts, body) = request.into_parts();
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        if query.contains("watch=true") {
            return std::future::pending().await;
        }
        let is_lease = path.contains("/leases/");
        if parts.method != Method::GET {
            lock(&self.writes).push(format!("{} {path}", parts.method));
            let body = body.collect_bytes().await.unwrap();
            return match is_lease {
                true => serde_json::from_slice(&body).unwrap(),
                false => json!({"metadata": {"resourceVersion": "10"}}),
            };
        }
        if is_lease {
            let renewals = match self.other_leader_is_gone.load(Ordering::SeqCst) {
                true => 0,
                false => self.lease_reads.fetch_add(1, Ordering::SeqCst) % 1_000_000,
            };
            return json!({
                "metadata": {"name": "idtoken-operator", "resourceVersion": "7"},
                "spec": {
                    "holderIdentity": "another", "leaseDurationSeconds": 1, "leaseTransitions": 1,
                    "renewTime": format!("2026-01-01T00:00:00.{renewals:06}Z"),
                },
            });
        }
        let undecodable = json!({
            "metadata": {"name": "billing", "namespace": "shop", "uid": "u", "resourceVersion": "5", "generation": 1},
            "spec": {"audience": "https://a.run.app", "target": {"creationPolicy": "Merge"}},
            "status": {"observedGeneration": -1},
        });
        let items = match path.ends_with("/idtokenrequests") {
            true => vec![undecodable],
            false => Vec::new(),
        };
        json!({"metadata": {"resourceVersion": "9"}, "items": items})
    }

    fn writes(&self) -> Vec<String> {
        lock(&self.writes).clone()
    }
}

fn client(server: &Arc<Server>) -> Client {
    let server = server.clone();
    let service = tower::service_fn(move |request| {
        let server = server.clone();
        async move {
            let body = server.answer(request).await.to_string();
            Ok::<_, std::convert::Infallible>(Response::new(Body::from(body.into_bytes())))
        }
    });
    Client::new(service, "shop")
}

fn context(client: Client) -> Context {
    let metrics = Arc::new(Metrics::default());
    Context {
        clock: Clock::system(),
        minter: Minter::new(GoogleConfig::default()).unwrap(),
        events: Arc::new(EventRecorder::new(
            client.clone(),
            None,
            metrics.clone(),
            Clock::system(),
        )),
        connections: Arc::new(Connections::new(16, {
            let client = client.clone();
            move || Ok(client.clone())
        })),
        client,
        cache: Arc::default(),
        foreign_secrets: Arc::default(),
        grants: Arc::default(),
        federated: Arc::new(FederatedTokens::new(Clock::system())),
        metrics,
        permits: Permits::new(1, Clock::system()),
        settings: Settings {
            cache_limits: CacheLimits::default(),
            reconcile_timeout: Duration::from_secs(10),
            min_renew_interval: jiff::SignedDuration::ZERO,
            concurrency: 1,
            shard: Shard::default(),
            grants_file: None,
            sources: SourceSettings::default(),
        },
    }
}

#[tokio::test]
async fn a_standby_writes_nothing_and_a_new_leader_reports_what_it_cannot_decode() {
    let server = Arc::new(Server::default());
    let ctx = Arc::new(context(client(&server)));
    let settings = ElectionSettings {
        namespace: "shop".to_owned(),
        name: "idtoken-operator".to_owned(),
        former_name: None,
        identity: "me".to_owned(),
        shard: crate::shard::Shard::default(),
        lease_duration: Duration::from_secs(10),
        renew_deadline: Duration::from_secs(5),
        retry_period: Duration::from_millis(50),
    };
    let elector = {
        let (ctx, client) = (ctx.clone(), client(&server));
        let make = move || {
            let fence = Fence::closed(ctx.clock.clone());
            let (metrics, clock) = (ctx.metrics.clone(), ctx.clock.clone());
            Ok::<_, std::io::Error>(Elector::new(client, settings, fence, metrics, clock))
        };
        ElectorThread::start(make).await.unwrap()
    };
    let liveness = Liveness::new(LIMIT, ctx.clock.monotonic());
    let sync_state = SyncState::default();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move { drop(stopped.await) };
    let running = tokio::spawn(run(
        ctx.clone(),
        Some(elector),
        liveness,
        sync_state.clone(),
        shutdown,
    ));

    let until = async |what: &str, check: &dyn Fn() -> bool| {
        let wait = async {
            while !check() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = timeout(LIMIT, wait).await;
        assert!(in_time.is_ok(), "{what}: {:?}", server.writes());
    };
    until("it is ready", &|| sync_state.is_ready()).await;
    assert!(ctx.cache.has_request(&ObjectKey::new("shop", "billing")));
    // Longer than a report takes, and than the Lease of a leader that is gone is valid.
    let seen = server.lease_reads.load(Ordering::SeqCst);
    sleep(Duration::from_millis(1500)).await;
    let renewed = || server.lease_reads.load(Ordering::SeqCst) > seen + 1;
    until("the other leader renews", &renewed).await;
    assert_eq!(server.writes(), Vec::<String>::new());

    server.other_leader_is_gone.store(true, Ordering::SeqCst);
    until("an event", &|| {
        server.writes().iter().any(|call| call.contains("/events"))
    })
    .await;
    let mut writes = server.writes();
    writes.retain(|call| !call.contains("/leases/"));
    assert_eq!(
        writes,
        [
            format!("PUT {STATUS}"),
            "POST /apis/events.k8s.io/v1/namespaces/shop/events".to_owned()
        ]
    );
    stop.send(()).unwrap();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_reconcile_in_flight_takes_little_memory() {
    let server = Arc::new(Server::default());
    let ctx = Arc::new(context(client(&server)));
    let key = ObjectKey::new("shop", "billing");
    let due = ctx.clock.monotonic();
    let (_, _, permit) = ctx.permits.start(|_| Some((key.clone(), due))).unwrap();
    // Thousands may wait for Google.
    assert!(size_of_val(&reconcile::reconcile(key, ctx, permit)) <= 4096);
}
