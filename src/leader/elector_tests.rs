use std::collections::BTreeMap;
use std::sync::Mutex;

use http::{Method, Request, Response};
use jiff::Timestamp;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::clock::VirtualClock;
use crate::sync::lock;

const LIMIT: Duration = Duration::from_secs(60);
const OURS: &str = "shard-a-5b9d4f6c88-zzzzz_0123456789abcdef";
const BEFORE: &str = "shard-a-6d8f9c7b5d-x2k4q_0123456789abcdef";
const OTHER: &str = "shard-b-6d8f9c7b5d-x2k4q_0123456789abcdef";

/// An API server with these Leases by name.
#[derive(Clone, Default)]
struct Server {
    leases: Arc<Mutex<BTreeMap<String, Value>>>,
    forbids_lists: bool,
}

impl Server {
    fn hold(&self, name: &str, holder: &str) {
        let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": 15});
        let lease = json!({"metadata": {"name": name, "uid": name, "resourceVersion": "1"}, "spec": spec});
        lock(&self.leases).insert(name.to_owned(), lease);
    }

    /// Name and holder of each.
    fn holders(&self) -> Vec<(String, String)> {
        let leases = lock(&self.leases);
        let holder = |lease: &Value| lease["spec"]["holderIdentity"].as_str().unwrap().to_owned();
        leases
            .iter()
            .map(|(name, lease)| (name.clone(), holder(lease)))
            .collect()
    }

    async fn answer(&self, request: Request<Body>) -> (u16, Value) {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut leases = lock(&self.leases);
        let name = parts.uri.path().split("/leases/").nth(1).map(str::to_owned);
        let Some(name) = name.or_else(|| body["metadata"]["name"].as_str().map(str::to_owned)) else {
            return match self.forbids_lists {
                true => (403, json!({"kind": "Status", "code": 403})),
                false => (200, json!({"items": leases.values().collect::<Vec<_>>()})),
            };
        };
        let found = match parts.method {
            Method::DELETE => {
                let seen = &body["preconditions"];
                assert_eq!(
                    (&seen["uid"], &seen["resourceVersion"]),
                    (&json!(name), &json!("1"))
                );
                leases.remove(&name)
            }
            Method::GET => leases.get(&name).cloned(),
            _ => {
                let mut lease = body;
                lease["metadata"] = json!({"name": name, "uid": name, "resourceVersion": "1"});
                leases.insert(name, lease.clone());
                Some(lease)
            }
        };
        found.map_or((404, json!({"kind": "Status", "code": 404})), |lease| {
            (200, lease)
        })
    }

    fn elector(&self, control: &VirtualClock) -> (Elector, Fence) {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (code, answer) = server.answer(request).await;
                let body = Body::from(answer.to_string().into_bytes());
                Response::builder().status(code).body(body)
            }
        });
        let settings = ElectionSettings {
            namespace: "n".to_owned(),
            name: "own".to_owned(),
            former_name: Some("former".to_owned()),
            identity: OURS.to_owned(),
            shard: crate::shard::Shard::default(),
            lease_duration: Duration::from_secs(2000),
            renew_deadline: Duration::from_secs(1500),
            retry_period: Duration::from_secs(2),
        };
        let (clock, client) = (control.clock(), Client::new(service, "n"));
        let fence = Fence::closed(clock.clone());
        let elector = Elector::new(client, settings, fence.clone(), Arc::default(), clock);
        (elector, fence)
    }
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, holder): &(&str, &str)| ((*name).to_owned(), (*holder).to_owned());
    all.iter().map(owned).collect()
}

#[tokio::test]
async fn a_lease_of_the_deployment_under_another_name_is_waited_for_held_and_deleted() {
    let (server, control) = (Server::default(), VirtualClock::new(Timestamp::UNIX_EPOCH));
    server.hold("another", BEFORE);
    server.hold("foreign", OTHER);
    let (mut elector, fence) = server.elector(&control);
    assert!(elector.try_acquire().await.unwrap().is_some());
    assert!(!fence.is_open());
    // Given back: known by now.
    server.hold("another", "");
    server.hold("former", "");
    assert_eq!(elector.try_acquire().await.unwrap(), None);
    assert!(fence.is_open());
    let ours = [
        ("another", OURS),
        ("foreign", OTHER),
        ("former", OURS),
        ("own", OURS),
    ];
    assert_eq!(server.holders(), pairs(&ours));
    control.sleep_machine(FORMER_HOLD - Duration::from_secs(1));
    assert!(elector.renew(LIMIT).await.unwrap());
    assert_eq!(server.holders(), pairs(&ours));
    control.sleep_machine(Duration::from_secs(1));
    assert!(elector.renew(LIMIT).await.unwrap());
    assert_eq!(server.holders(), pairs(&[("foreign", OTHER), ("own", OURS)]));
    // A replica from before is still there after all.
    server.hold("another", BEFORE);
    control.sleep_machine(FORMER_CHECK);
    assert!(!elector.renew(LIMIT).await.unwrap());
    // It keeps what it holds.
    elector.release().await;
    let left = [("another", BEFORE), ("foreign", OTHER), ("own", "")];
    assert_eq!(server.holders(), pairs(&left));
}

#[tokio::test]
async fn a_lease_under_another_name_expires_and_is_deleted_with_a_release() {
    let (server, control) = (Server::default(), VirtualClock::new(Timestamp::UNIX_EPOCH));
    server.hold("former", OTHER);
    let (mut elector, _) = server.elector(&control);
    assert!(elector.try_acquire().await.unwrap().is_some());
    control.sleep_machine(Duration::from_secs(15));
    assert_eq!(elector.try_acquire().await.unwrap(), None);
    elector.release().await;
    assert_eq!(server.holders(), pairs(&[("own", "")]));
}

#[tokio::test]
async fn without_the_right_to_list_the_own_lease_is_held() {
    let control = VirtualClock::new(Timestamp::UNIX_EPOCH);
    let server = Server {
        forbids_lists: true,
        ..Server::default()
    };
    let (mut elector, fence) = server.elector(&control);
    assert_eq!(elector.try_acquire().await.unwrap(), None);
    control.sleep_machine(FORMER_CHECK);
    assert!(elector.renew(LIMIT).await.unwrap() && fence.is_open());
}
