//! What is there when the operator starts.

use idtoken_emulator::Fault;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::api_server::ApiServer;
use crate::objects::{Id, MARKERS};
use crate::scene::{AUDIENCE, CALLER, Scene};

/// The UID of the request: the jitter of renewals depends on it.
const UID: &str = "7f4ae1b5-8c1f-4bb0-9f6d-3f2f3c2b1a90";
/// The last transition of conditions that were there before.
const LAST_TRANSITION: &str = "2026-01-01T00:00:00Z";

/// The request, its Secret and its grant.
pub(crate) fn billing() -> Id {
    Id::new("idtokenrequests", "shop", "billing")
}

pub(crate) fn secret() -> Id {
    Id::new("secrets", "shop", "billing")
}

pub(crate) fn grant() -> Id {
    Id::new("idtokengrants", "", "shop")
}

/// A new request with this spec beside the usual.
pub(crate) fn request(spec: Value) -> Value {
    let mut request = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {"name": "billing", "namespace": "shop", "uid": UID},
        "spec": {"audience": AUDIENCE, "serviceAccount": CALLER},
        // The CRD's default.
        "status": {"observedGeneration": -1},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        request["spec"][key] = value.clone();
    }
    request
}

/// What is there when the operator starts, besides the namespaces and the grant, and how the case is run.
#[derive(Clone, Default)]
pub(crate) struct Before {
    pub(crate) request: Option<Value>,
    pub(crate) secret: Option<Value>,
    /// Flags of the operator besides the usual.
    pub(crate) flags: &'static [&'static str],
    /// Whether a read that shows the same as an earlier one is not compared. For cases in which each reconcile reads: how many watch
    /// events one reconcile handles depends on timing.
    pub(crate) reads_once: bool,
}

impl Before {
    /// The request, Ready, and its Secret.
    pub(crate) async fn ready() -> Self {
        seeds().await.0.clone()
    }

    /// The same, with a token that is to be renewed.
    pub(crate) async fn due() -> Self {
        seeds().await.1.clone()
    }

    /// Gives the API server these objects, the namespaces and the grant.
    pub(crate) fn fill(&self, server: &ApiServer) {
        let objects = &mut server.contents().objects;
        for name in ["shop", MARKERS] {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace"});
            objects.create(&Id::new("namespaces", "", name), namespace);
        }
        let to = json!([{"serviceAccounts": ["*@p.iam.gserviceaccount.com"], "audiences": [AUDIENCE, format!("{AUDIENCE}/*")]}]);
        let spec = json!({"from": [{"namespace": "shop"}], "to": to});
        objects.create(
            &grant(),
            json!({"apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "spec": spec}),
        );
        let mut metadata = Value::Null;
        if let Some(object) = &self.secret {
            metadata = objects.create(&secret(), object.clone())["metadata"].clone();
        }
        if let Some(mut object) = self.request.clone() {
            if object["status"]["secret"].is_object() {
                for field in ["uid", "resourceVersion"] {
                    object["status"]["secret"][field] = metadata[field].clone();
                }
            }
            objects.create(&billing(), object);
        }
    }
}

/// What the operator made of a new request a minute ago, and 40 minutes ago.
async fn seeds() -> &'static (Before, Before) {
    static SEEDS: OnceCell<(Before, Before)> = OnceCell::const_new();
    SEEDS
        .get_or_init(async || (seed(60).await, seed(40 * 60).await))
        .await
}

async fn seed(age: i64) -> Before {
    let scene = Scene::start(&Before::default()).await;
    scene
        .google
        .fault(Fault::clock(-age))
        .expect("a fault of the emulator");
    scene.create(&billing(), request(json!({})));
    scene.until_condition("Ready", "True").await;
    scene.settle().await;
    let contents = scene.server.contents();
    let mut request = contents.objects.get(&billing()).cloned();
    let conditions = request
        .as_mut()
        .map(|request| &mut request["status"]["conditions"]);
    for condition in conditions.and_then(Value::as_array_mut).into_iter().flatten() {
        condition["lastTransitionTime"] = json!(LAST_TRANSITION);
    }
    Before {
        request,
        secret: contents.objects.get(&secret()).cloned(),
        ..Before::default()
    }
}
