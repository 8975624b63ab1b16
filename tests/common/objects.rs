//! The objects that tests write and read.

use anyhow::{Context, Result};
use base64::Engine as _;
use idtoken_operator::api::v1alpha1::{IdTokenGrant, IdTokenRequest};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{AUDIENCE, CALLER, World};

/// The condition of this type.
pub(crate) fn condition<'a>(object: &'a IdTokenRequest, type_: &str) -> Option<&'a Condition> {
    object.status.as_ref()?.condition(type_)
}

/// Whether the condition has this status and, where it is not empty, this reason. One that is absent is False, but for Ready.
pub(crate) fn has(object: &IdTokenRequest, type_: &str, status: &str, reason: &str) -> bool {
    match condition(object, type_) {
        Some(found) => found.status == status && (reason.is_empty() || found.reason == reason),
        None => type_ != "Ready" && status == "False" && reason.is_empty() && object.status.is_some(),
    }
}

/// Whether Ready is True for the spec as it is now.
pub(crate) fn is_ready(object: &IdTokenRequest) -> bool {
    let current =
        condition(object, "Ready").and_then(|found| found.observed_generation) == object.metadata.generation;
    current && has(object, "Ready", "True", "")
}

/// Whether the renewal that this value of the annotation asks for was handled.
pub(crate) fn is_handled(object: &IdTokenRequest, value: &str) -> bool {
    let status = object.status.as_ref();
    status.is_some_and(|status| status.last_handled_renew_request.as_deref() == Some(value))
}

/// The text under a key of a Secret; empty where it has no such key.
pub(crate) fn text(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes.map_or_else(String::new, |bytes| {
        String::from_utf8_lossy(&bytes.0).into_owned()
    })
}

/// The token in a Secret.
pub(crate) fn token(secret: &Secret) -> String {
    text(secret, "token")
}

impl World {
    /// Requests of a namespace.
    pub(crate) fn requests(&self, namespace: &str) -> Api<IdTokenRequest> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Secrets of a namespace.
    pub(crate) fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes a namespace.
    pub(crate) async fn namespace(&self, name: &str) -> Result<()> {
        let object: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        Api::all(self.client.clone())
            .create(&PostParams::default(), &object)
            .await?;
        Ok(())
    }

    /// Makes a namespace and a grant of its name: all accounts of the project, [`AUDIENCE`] and everything below it.
    pub(crate) async fn granted(&self, namespace: &str) -> Result<()> {
        self.namespace(namespace).await?;
        self.grant(namespace).await
    }

    /// The numeric id of an account of the policy.
    pub(crate) fn unique_id(&self, email: &str) -> String {
        let policy = self.google.policy();
        policy
            .account(email)
            .expect("an account of the policy")
            .unique_id()
    }

    /// The grant of [`World::granted`].
    pub(crate) async fn grant(&self, namespace: &str) -> Result<()> {
        let to = json!([{"serviceAccounts": ["*@p.iam.gserviceaccount.com", self.unique_id(CALLER)], "audiences": [AUDIENCE, format!("{AUDIENCE}/*")]}]);
        let spec = json!({"from": [{"namespace": namespace}], "to": to});
        let object: IdTokenGrant = serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "metadata": {"name": namespace}, "spec": spec,
        }))?;
        Api::all(self.client.clone())
            .create(&PostParams::default(), &object)
            .await?;
        Ok(())
    }

    /// Makes a grant of a namespace's name that allows one source, for accounts of a pattern and [`AUDIENCE`].
    pub(crate) async fn grant_source(&self, namespace: &str, account: &str, source: &str) -> Result<()> {
        let to = json!([{"serviceAccounts": [account], "audiences": [AUDIENCE], "sources": [source]}]);
        let object: IdTokenGrant = serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "metadata": {"name": namespace},
            "spec": {"from": [{"namespace": namespace}], "to": to},
        }))?;
        Api::all(self.client.clone())
            .create(&PostParams::default(), &object)
            .await?;
        Ok(())
    }

    /// Waits until a grant says that it allows so many requests, which it does some seconds after they came.
    pub(crate) async fn allows(&self, name: &str, count: usize) -> Result<()> {
        let grants: Api<IdTokenGrant> = Api::all(self.client.clone());
        let count = i64::try_from(count)?;
        self.wait("the grant says what it allows", async || {
            let status = grants.get(name).await?.status;
            Ok(status.and_then(|status| status.allowed_requests) == Some(count))
        })
        .await
    }

    /// Deletes a grant.
    pub(crate) async fn revoke(&self, name: &str) -> Result<()> {
        let grants: Api<IdTokenGrant> = Api::all(self.client.clone());
        grants.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Makes a request for [`CALLER`] and [`AUDIENCE`], with the fields of `more` besides or instead.
    pub(crate) async fn request(&self, namespace: &str, name: &str, more: Value) -> Result<IdTokenRequest> {
        let mut spec = json!({"audience": AUDIENCE, "serviceAccount": CALLER});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let object: IdTokenRequest = serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        }))?;
        let requests = self.requests(namespace);
        let created = requests.create(&PostParams::default(), &object).await;
        created.with_context(|| format!("request {namespace}/{name}"))
    }

    /// Makes a request and waits until it is ready.
    pub(crate) async fn issued(&self, namespace: &str, name: &str, more: Value) -> Result<IdTokenRequest> {
        self.request(namespace, name, more).await?;
        self.ready(namespace, name).await
    }

    /// Waits until the second in which `object` was made, and the token that it got at once, is over.
    pub(crate) async fn another_second(&self, object: &IdTokenRequest) -> Result<()> {
        let issued = object.status.as_ref().and_then(|status| status.token.as_ref());
        let issued = issued
            .and_then(|token| token.issue_time.as_ref())
            .map(|time| time.0);
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let last = issued.max(created).context("neither made nor issued")?;
        self.wait("another second has begun", async || {
            Ok(Timestamp::now().as_second() > last.as_second())
        })
        .await
    }

    /// Waits until a request is ready.
    pub(crate) async fn ready(&self, namespace: &str, name: &str) -> Result<IdTokenRequest> {
        self.until(namespace, name, "the request is ready", is_ready)
            .await
    }

    /// Reads a request.
    pub(crate) async fn get(&self, namespace: &str, name: &str) -> Result<IdTokenRequest> {
        Ok(self.requests(namespace).get(name).await?)
    }

    /// Changes a request by a merge patch.
    pub(crate) async fn change(&self, namespace: &str, name: &str, patch: Value) -> Result<IdTokenRequest> {
        let requests = self.requests(namespace);
        Ok(requests
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?)
    }

    /// Asks for a renewal, by the annotation.
    pub(crate) async fn renew(&self, namespace: &str, name: &str, value: &str) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {"idtoken.dev/renew": value}}});
        self.change(namespace, name, patch).await?;
        Ok(())
    }

    /// Asks for a renewal, and waits until it was handled.
    pub(crate) async fn renewed(&self, namespace: &str, name: &str, value: &str) -> Result<IdTokenRequest> {
        self.renew(namespace, name, value).await?;
        let handled = |object: &_| is_handled(object, value);
        self.until(namespace, name, "the renewal is handled", handled)
            .await
    }

    /// Reads a Secret.
    pub(crate) async fn secret(&self, namespace: &str, name: &str) -> Result<Secret> {
        Ok(self.secrets(namespace).get(name).await?)
    }

    /// Changes a Secret by a merge patch, as somebody called `meddler`; values of `data` are given in plain text.
    pub(crate) async fn meddle(&self, namespace: &str, name: &str, mut patch: Value) -> Result<Secret> {
        if let Some(data) = patch.get_mut("data").and_then(Value::as_object_mut) {
            for value in data.values_mut() {
                if let Some(plain) = value.as_str() {
                    *value = json!(base64::engine::general_purpose::STANDARD.encode(plain));
                }
            }
        }
        let params = PatchParams {
            field_manager: Some("meddler".into()),
            ..PatchParams::default()
        };
        Ok(self
            .secrets(namespace)
            .patch(name, &params, &Patch::Merge(patch))
            .await?)
    }

    /// The token that a request's Secret of the same name holds, checked against Google's key, and its claims.
    pub(crate) async fn claims(&self, namespace: &str, name: &str) -> Result<(String, Value)> {
        let token = token(&self.secret(namespace, name).await?);
        let claims = self.google.verify(&token)?;
        Ok((token, claims))
    }
}
