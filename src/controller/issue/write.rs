//! Writes the Secret: first a POST, later a patch with uid and resourceVersion, never forced. Each write checks whose the Secret is.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request as ApiRequest;
use kube::core::Status;
use kube::core::request::Error as BuildError;
use kube::{Client, Resource};
use serde::Serialize;

use super::error::IssueError;
use super::observation::{Observation, Precondition};
use super::ownership::{Ownership, may_delete, ownership};
use super::patience::Patience;
use super::relevant;
use crate::api::v1alpha1::{GrantRef, SecretStatus};
use crate::api::{FIELD_MANAGER, ObjectKey, conditions::reason};
use crate::clock::Clock;
use crate::controller::cache::Cache;
use crate::controller::cache::foreign_secrets::ForeignSecrets;
use crate::controller::queue::permit::Permit;
use crate::kubernetes::answer::text;
use crate::kubernetes::error::{KubeError, status_code};
use crate::kubernetes::partial_metadata::for_metadata;
use crate::kubernetes::secret::{SecretContent, read_secret};
use crate::kubernetes::secret_summary::SecretSummary;
use crate::render::Rendered;
use crate::request::ValidRequest;
use crate::text::printable;

/// Most characters of a Secret's type in a message.
const MAX_TYPE: usize = 128;
/// Attempts if another client changes the Secret at the same time.
const MAX_CONFLICTS: u32 = 4;
/// Longest time for a write. An admission webhook may take 30 s, and the API server reports its failure after that.
const WRITE_TIMEOUT: Duration = Duration::from_secs(35);

/// Called before each attempt of a write. Returns the grant that still allows it.
pub type MayWrite<'a> = dyn Fn() -> Result<Option<GrantRef>, IssueError> + Sync + 'a;

/// Writes Secrets. Borrows what it needs.
#[derive(Clone, Copy)]
pub struct SecretWriter<'a> {
    /// Client of the Kubernetes API.
    pub client: &'a Client,
    /// What is known of requests and Secrets.
    pub cache: &'a Cache,
    /// Secrets of other clients that block a request.
    pub foreign_secrets: &'a ForeignSecrets,
    /// The time.
    pub clock: &'a Clock,
    /// The Secret in the request's status.
    pub recorded: Option<&'a SecretStatus>,
}

impl SecretWriter<'_> {
    /// Writes `rendered`, if `may_write` allows each attempt. Returns the Secret as written, and the grant that allows it. Pauses hold no
    /// permit.
    ///
    /// # Errors
    /// The Secret belongs to another client or is immutable, `may_write` allows it no longer, or the API server rejected the write or did
    /// not answer.
    pub(crate) async fn write(
        &self,
        request: &ValidRequest,
        rendered: &Rendered,
        precondition: Precondition,
        may_write: &MayWrite<'_>,
        permit: &mut Permit,
    ) -> Result<(SecretSummary, Option<GrantRef>), IssueError> {
        let target = request.target_key();
        let mut precondition = precondition;
        let mut patience = Patience::new(self.clock);
        let mut conflicts = 0;
        while conflicts < MAX_CONFLICTS {
            if self.cache.is_terminating(target.namespace()) {
                return Err(IssueError::Gone);
            }
            let grant = may_write()?;
            patience.attempt();
            match self.write_once(request, rendered, precondition).await {
                Ok(Some(written)) => {
                    self.cache.note_write(target.namespace(), true);
                    self.cache.record_secret_write(target, &written);
                    return Ok((written, grant));
                }
                Ok(None) => conflicts += 1,
                // The token waits for the API server rather than be issued again. The next one of the namespace is not issued meanwhile.
                Err(error) => {
                    if error.is_failed_call() {
                        self.cache.note_write(target.namespace(), false);
                    }
                    permit.released_while(patience.pause_after(error)).await?;
                }
            }
            // What is there now decides, since a write without an answer may have happened.
            precondition = loop {
                patience.attempt();
                match read_secret(self.client, target.namespace(), target.name()).await {
                    Ok(Some(mut content)) => {
                        relevant::retain(&mut content, &request.target);
                        break Precondition::Read(Box::new(content));
                    }
                    Ok(None) => {
                        self.cache.remove_secret(&target);
                        break Precondition::Unknown;
                    }
                    Err(error) => permit.released_while(patience.pause_after(error)).await?,
                }
            };
        }
        Err(IssueError::Kubernetes(KubeError::Unavailable {
            verb: "patch",
            resource: "secrets",
            namespace: target.namespace().to_owned(),
            problem: format!(
                "Secret {} changed during each of {MAX_CONFLICTS} attempts",
                target.name()
            ),
        }))
    }

    async fn write_once(
        &self,
        request: &ValidRequest,
        rendered: &Rendered,
        precondition: Precondition,
    ) -> Result<Option<SecretSummary>, KubeError> {
        match precondition {
            Precondition::Unknown => self.create(request, rendered, false).await,
            Precondition::Untouched(secret) => {
                let body = rendered.token_patch(&secret.uid, &secret.resource_version);
                self.patch(request, body, false).await
            }
            Precondition::Read(content) => self.replace(request, rendered, *content).await,
        }
    }

    /// The Secret does not exist.
    pub fn forget(&self, target: &ObjectKey) {
        self.cache.remove_secret(target);
        self.foreign_secrets.remove(target);
    }

    /// Whether the Secret is being adopted, if it is ours to write.
    ///
    /// # Errors
    /// [`KubeError::SecretConflict`] if it is not ours.
    pub fn check_ownership(
        &self,
        request: &ValidRequest,
        content: &SecretContent,
    ) -> Result<bool, KubeError> {
        let target = request.target_key();
        let conflict = |target: ObjectKey, why: String| {
            let name = target.name().to_owned();
            self.foreign_secrets
                .add(target, &content.summary.resource_version);
            Err(KubeError::SecretConflict { name, why })
        };
        let is_living = |uid: &str| self.cache.has_uid(uid);
        let adopts = match ownership(request, content, self.recorded, is_living) {
            Ownership::Ours | Ownership::Inherited => false,
            Ownership::Adopted => true,
            Ownership::Foreign { why } => return conflict(target, why),
        };
        let may_delete = !adopts && may_delete(request, target.name(), &content.summary, self.recorded);
        if content.type_ != request.target.type_ && !may_delete {
            let whose = match adopts || content.summary.adopted {
                true => "an adopted Secret",
                false => "a Secret that the status of this request does not record as its own",
            };
            let why = format!(
                "has type {}, which Kubernetes does not let change, and the operator does not delete {whose}: \
                 set spec.target.template.type to it, or delete the Secret",
                printable(&content.type_, MAX_TYPE)
            );
            return conflict(target, why);
        }
        self.foreign_secrets.remove(&target);
        Ok(adopts)
    }

    /// Has the API server try the write of `rendered` without an effect: quotas, admission policies and webhooks answer as they would. Only
    /// the storage does not.
    ///
    /// # Errors
    /// The API server would reject the write, or did not answer.
    pub async fn dry_run(
        &self,
        request: &ValidRequest,
        rendered: &Rendered,
        observation: &Observation,
    ) -> Result<(), KubeError> {
        let content = observation.read().map(|read| &read.content);
        let tried = match (content, observation.secret()) {
            (Some(content), _) => {
                let adopts = self.check_ownership(request, content)?;
                // A Secret of another type is deleted first. While it is there, its successor cannot be created.
                if content.type_ != rendered.type_() {
                    return Ok(());
                }
                self.patch(request, rendered.full_patch(content, adopts), true)
                    .await
            }
            (None, Some(secret)) => {
                let body = rendered.token_patch(&secret.uid, &secret.resource_version);
                self.patch(request, body, true).await
            }
            (None, None) => self.create(request, rendered, true).await,
        };
        match tried {
            Ok(Some(stored)) if !is_as_rendered(request, &stored) => Err(KubeError::MutatedByWebhook {
                name: request.target.name.clone(),
            }),
            // The API server does not call a webhook with side effects: only the write itself can show its answer.
            Err(KubeError::Rejected {
                code: 400, message, ..
            }) if message.contains("does not support dry run") => Ok(()),
            other => other.map(drop),
        }
    }

    async fn create(
        &self,
        request: &ValidRequest,
        rendered: &Rendered,
        dry_run: bool,
    ) -> Result<Option<SecretSummary>, KubeError> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            dry_run,
        };
        let body = rendered.create(&request.namespace, &request.target.name);
        let call = serde_json::to_vec(&body)
            .map_err(BuildError::SerializeBody)
            .and_then(|body| secrets(&request.namespace).create(&params, body));
        self.send("create", request, call, |code| code == 409).await
    }

    async fn patch(
        &self,
        request: &ValidRequest,
        body: impl Serialize,
        dry_run: bool,
    ) -> Result<Option<SecretSummary>, KubeError> {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            dry_run,
            ..PatchParams::default()
        };
        let call = secrets(&request.namespace).patch(&request.target.name, &params, &Patch::Merge(body));
        self.send("patch", request, call, |code| matches!(code, 404 | 409))
            .await
    }

    async fn replace(
        &self,
        request: &ValidRequest,
        rendered: &Rendered,
        content: SecretContent,
    ) -> Result<Option<SecretSummary>, KubeError> {
        let adopts = self.check_ownership(request, &content)?;
        ensure_mutable(request, &content)?;
        if content.type_ == rendered.type_() {
            return self
                .patch(request, rendered.full_patch(&content, adopts), false)
                .await;
        }
        self.delete(&request.namespace, &request.target.name, &content.summary)
            .await?;
        self.create(request, rendered, false).await
    }

    /// Deletes a Secret exactly as it was seen.
    ///
    /// # Errors
    /// The Secret changed meanwhile, or the API server rejected the call or did not answer.
    pub async fn delete(&self, namespace: &str, name: &str, seen: &SecretSummary) -> Result<(), KubeError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(seen.uid.clone()),
                resource_version: Some(seen.resource_version.clone()),
            }),
            ..DeleteParams::default()
        };
        let failed = |error: &kube::Error| KubeError::new("delete", "secrets", namespace, error);
        let call = secrets(namespace)
            .delete(name, &params)
            .map_err(|error| failed(&kube::Error::BuildRequest(error)))?;
        let call = text(self.client, call);
        match KubeError::within(WRITE_TIMEOUT, "delete", "secrets", namespace, call).await? {
            Ok(_) => {}
            Err(error) if status_code(&error) == Some(404) => {}
            Err(error) => return Err(failed(&error)),
        }
        self.cache.remove_secret(&ObjectKey::new(namespace, name));
        Ok(())
    }

    /// Returns none if the Secret is not what the write relied on, which `is_conflict` tells by the HTTP status.
    async fn send(
        &self,
        verb: &'static str,
        request: &ValidRequest,
        call: Result<http::Request<Vec<u8>>, BuildError>,
        is_conflict: impl Fn(u16) -> bool,
    ) -> Result<Option<SecretSummary>, KubeError> {
        let namespace = &request.namespace;
        let failed = |error: &kube::Error| KubeError::new(verb, "secrets", namespace, error);
        let mut call = call.map_err(|error| failed(&kube::Error::BuildRequest(error)))?;
        for_metadata(&mut call);
        let call = text(self.client, call);
        match KubeError::within(WRITE_TIMEOUT, verb, "secrets", namespace, call).await? {
            Ok(json) => SecretContent::decode_summary(namespace, verb, &json).map(Some),
            Err(error) if status_code(&error).is_some_and(&is_conflict) => Ok(None),
            Err(kube::Error::Api(status)) if is_namespace_terminating(&status) => {
                self.cache.note_terminating(namespace);
                Ok(None)
            }
            Err(kube::Error::Api(status)) if status.code == 422 && status.message.contains("immutable") => {
                tracing::debug!(
                    reason = reason::SECRET_IMMUTABLE,
                    "the API server rejected a change of the Secret"
                );
                Err(KubeError::SecretImmutable {
                    name: request.target.name.clone(),
                })
            }
            Err(error) => Err(failed(&error)),
        }
    }
}

/// Ensures that the Secret can be changed at all.
///
/// # Errors
/// [`KubeError::SecretImmutable`].
pub fn ensure_mutable(request: &ValidRequest, content: &SecretContent) -> Result<(), KubeError> {
    match content.immutable {
        true => Err(KubeError::SecretImmutable {
            name: request.target.name.clone(),
        }),
        false => Ok(()),
    }
}

/// Whether the Secret has the annotations that were written.
fn is_as_rendered(request: &ValidRequest, stored: &SecretSummary) -> bool {
    stored.token_hash.as_ref() == Some(&request.token_hash)
        && stored.render_hash.as_ref() == Some(&request.render_hash)
        && stored.request_uid.as_ref() == Some(&request.uid)
}

fn secrets(namespace: &str) -> ApiRequest {
    ApiRequest::new(Secret::url_path(&(), Some(namespace)))
}

/// Whether a write was rejected because its namespace is being deleted
/// (<https://github.com/kubernetes/kubernetes/blob/v1.37.2/staging/src/k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle/admission.go>).
fn is_namespace_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403
        && causes
            .map(|cause| cause.reason.as_str())
            .any(|reason| reason == "NamespaceTerminating")
}
