//! Writes the Secret: a POST first, later a patch with uid and resourceVersion, never forced. Whose a Secret is decides each write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request as ApiRequest;
use kube::core::Status;
use kube::core::request::Error as BuildError;
use serde::Serialize;

use crate::api::{FIELD_MANAGER, conditions::reason};
use crate::controller::Context;
use crate::controller::cache::{ObjectKey, SecretSummary};
use crate::controller::issue::render::{Rendered, is_request};
use crate::controller::reconcile::plan::{Ownership, ownership};
use crate::kubernetes::error::{KubeError, code};
use crate::kubernetes::partial_metadata::for_metadata;
use crate::kubernetes::secret::{SecretContent, read_secret};
use crate::request::ValidRequest;

/// Tries against others that write the same Secret at the same moment.
const TRIES: u32 = 4;
/// How long a missing right is taken for one that the API server has yet to learn of.
const FORBIDDEN_FOR: Duration = Duration::from_secs(5);

/// What the Secret was before the write.
#[derive(Debug)]
pub enum Precondition {
    /// The cache knows none.
    Unknown,
    /// It is as we left it.
    Untouched(Box<SecretSummary>),
    /// It was read.
    Read(Box<SecretContent>),
}

/// Writes `rendered`. Returns the Secret as written; none where the request was deleted meanwhile and nothing was written.
///
/// # Errors
/// The Secret is somebody else's or immutable, or the API server refused or did not answer.
pub async fn write(
    ctx: &Arc<Context>,
    request: &ValidRequest,
    rendered: &Rendered,
    before: Precondition,
) -> Result<Option<SecretSummary>, KubeError> {
    let key = ObjectKey::new(&request.namespace, &request.name);
    let target = ObjectKey::new(&request.namespace, &request.target.name);
    let mut before = before;
    let mut pause = Duration::from_millis(250);
    let mut forbidden = None;
    let mut changes = 0;
    while changes < TRIES {
        if !ctx.index.is_current(&key, &request.uid) || ctx.index.is_ending(target.namespace()) {
            return Ok(None);
        }
        match attempt(ctx, request, rendered, before).await {
            Ok(Some(meta)) => {
                ctx.index.secret_written(target, &meta);
                return Ok(Some(meta));
            }
            Ok(None) => changes += 1,
            // The token is in hand: it waits for the API server rather than be minted again. The reconcile's own timeout ends this.
            Err(fault) if may_pass(&fault, &mut forbidden) => wait(&mut pause).await,
            Err(fault) => return Err(fault),
        }
        // What is there now decides, also where an unanswered write may have been done.
        before = loop {
            match read_secret(&ctx.client, target.namespace(), target.name()).await {
                Ok(Some(content)) => break Precondition::Read(Box::new(content)),
                Ok(None) => {
                    ctx.index.secret_missing(&target);
                    break Precondition::Unknown;
                }
                Err(fault) if may_pass(&fault, &mut forbidden) => wait(&mut pause).await,
                Err(fault) => return Err(fault),
            }
        };
    }
    Err(KubeError::Unavailable {
        verb: "patch",
        resource: "secrets",
        namespace: target.namespace().to_owned(),
        problem: format!("Secret {} changed during each of {TRIES} tries", target.name()),
    })
}

/// Whether a token in hand waits. An API server that has just started refuses everything until it has read its RBAC rules.
/// `forbidden` is when it first did.
fn may_pass(fault: &KubeError, forbidden: &mut Option<Instant>) -> bool {
    match fault {
        KubeError::Unavailable { .. } => true,
        KubeError::Forbidden { .. } => forbidden.get_or_insert_with(Instant::now).elapsed() < FORBIDDEN_FOR,
        _ => false,
    }
}

async fn wait(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(Duration::from_secs(4));
}

async fn attempt(
    ctx: &Context,
    request: &ValidRequest,
    rendered: &Rendered,
    before: Precondition,
) -> Result<Option<SecretSummary>, KubeError> {
    match before {
        Precondition::Unknown => create(ctx, request, rendered, false).await,
        Precondition::Untouched(meta) => {
            let body = rendered.renew(&meta.uid, &meta.resource_version);
            patch(ctx, request, body, false).await
        }
        Precondition::Read(content) => replace(ctx, request, rendered, *content).await,
    }
}

/// Whose `content` is, as a fault where it is not ours to write.
///
/// # Errors
/// [`KubeError::SecretConflict`].
pub fn claim(ctx: &Context, request: &ValidRequest, content: &SecretContent) -> Result<bool, KubeError> {
    let target = ObjectKey::new(&request.namespace, &request.target.name);
    let foreign = |owner: &&OwnerReference| owner.controller == Some(true) && !is_request(owner);
    let controller = content.meta.owner_references.iter().flatten().find(foreign);
    let controller = controller.map(|owner| format!("{} {}", owner.kind, owner.name));
    // A named request that still wants this Secret comes after ours: our own rivals were ruled out before.
    let outranked = |name: &str| {
        ctx.index
            .wants(&ObjectKey::new(&request.namespace, name), &target)
    };
    let adopt = content.annotation(crate::api::annotations::ADOPT);
    let adopted = match ownership(request, &content.summary, adopt, controller.as_deref(), outranked) {
        Ownership::Ours => false,
        Ownership::Adopted => true,
        Ownership::Foreign { why } => {
            let name = target.name().to_owned();
            ctx.obstacles.add(target, &content.summary.resource_version);
            return Err(KubeError::SecretConflict { name, why });
        }
    };
    if (adopted || content.summary.adopted) && content.type_ != request.target.type_ {
        let why = format!(
            "has type {}, which Kubernetes does not let change, and the operator does not delete an adopted Secret: \
             set spec.target.template.type to it, or delete the Secret",
            content.type_
        );
        let name = target.name().to_owned();
        ctx.obstacles.add(target, &content.summary.resource_version);
        return Err(KubeError::SecretConflict { name, why });
    }
    ctx.obstacles.remove(&target);
    Ok(adopted)
}

/// Makes sure that the Secret can be changed at all.
///
/// # Errors
/// [`KubeError::SecretImmutable`].
pub fn changeable(request: &ValidRequest, content: &SecretContent) -> Result<(), KubeError> {
    match content.immutable {
        true => Err(KubeError::SecretImmutable {
            name: request.target.name.clone(),
        }),
        false => Ok(()),
    }
}

/// Has the API server try the write of `rendered` without an effect: quotas and admission policies answer as they would.
///
/// # Errors
/// The API server would refuse the write, or did not answer.
pub async fn rehearse(
    ctx: &Context,
    request: &ValidRequest,
    rendered: &Rendered,
    content: Option<&SecretContent>,
    secret: Option<&SecretSummary>,
) -> Result<(), KubeError> {
    let tried = match (content, secret) {
        // One that is to be deleted first is in its successor's way.
        (Some(content), _) if content.type_ != rendered.type_() => return Ok(()),
        (Some(content), _) => {
            let adopted = claim(ctx, request, content)?;
            patch(ctx, request, rendered.replace(content, adopted), true).await
        }
        (None, Some(meta)) => {
            let body = rendered.renew(&meta.uid, &meta.resource_version);
            patch(ctx, request, body, true).await
        }
        (None, None) => create(ctx, request, rendered, true).await,
    };
    match tried {
        // A webhook with side effects is not asked: only the write itself can tell.
        Err(KubeError::Refused {
            code: 400, message, ..
        }) if message.contains("does not support dry run") => Ok(()),
        other => other.map(drop),
    }
}

async fn create(
    ctx: &Context,
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
    send(ctx, "create", request, call, |code| code == 409).await
}

async fn patch(
    ctx: &Context,
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
    send(ctx, "patch", request, call, |code| matches!(code, 404 | 409)).await
}

async fn replace(
    ctx: &Context,
    request: &ValidRequest,
    rendered: &Rendered,
    content: SecretContent,
) -> Result<Option<SecretSummary>, KubeError> {
    let adopted = claim(ctx, request, &content)?;
    changeable(request, &content)?;
    if content.type_ == rendered.type_() {
        return patch(ctx, request, rendered.replace(&content, adopted), false).await;
    }
    delete(ctx, &request.namespace, &request.target.name, &content.summary).await?;
    create(ctx, request, rendered, false).await
}

/// Deletes a Secret exactly as it was seen.
///
/// # Errors
/// It changed meanwhile, or the API server refused or did not answer.
pub async fn delete(
    ctx: &Context,
    namespace: &str,
    name: &str,
    seen: &SecretSummary,
) -> Result<(), KubeError> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(seen.uid.clone()),
            resource_version: Some(seen.resource_version.clone()),
        }),
        ..DeleteParams::default()
    };
    let fault = |error: &kube::Error| KubeError::new("delete", "secrets", namespace, error);
    let call = secrets(namespace)
        .delete(name, &params)
        .map_err(|error| fault(&kube::Error::BuildRequest(error)))?;
    match ctx.client.request_text(call).await {
        Ok(_) => {}
        Err(error) if code(&error) == Some(404) => {}
        Err(error) => return Err(fault(&error)),
    }
    ctx.index.secret_missing(&ObjectKey::new(namespace, name));
    Ok(())
}

fn secrets(namespace: &str) -> ApiRequest {
    ApiRequest::new(Secret::url_path(&(), Some(namespace)))
}

/// None where the Secret is not what it was thought to be, which `changed` tells by the HTTP status.
async fn send(
    ctx: &Context,
    verb: &'static str,
    request: &ValidRequest,
    call: Result<http::Request<Vec<u8>>, BuildError>,
    changed: impl Fn(u16) -> bool,
) -> Result<Option<SecretSummary>, KubeError> {
    let namespace = &request.namespace;
    let fault = |error: &kube::Error| KubeError::new(verb, "secrets", namespace, error);
    let mut call = call.map_err(|error| fault(&kube::Error::BuildRequest(error)))?;
    for_metadata(&mut call);
    match ctx.client.request_text(call).await {
        Ok(json) => SecretContent::summary(namespace, verb, json).map(Some),
        Err(error) if code(&error).is_some_and(&changed) => Ok(None),
        Err(kube::Error::Api(status)) if namespace_ends(&status) => {
            ctx.index.namespace_refused(namespace);
            Ok(None)
        }
        Err(kube::Error::Api(status)) if status.code == 422 && status.message.contains("immutable") => {
            tracing::debug!(
                reason = reason::SECRET_IMMUTABLE,
                "the API server refused a change of the Secret"
            );
            Err(KubeError::SecretImmutable {
                name: request.target.name.clone(),
            })
        }
        Err(error) => Err(fault(&error)),
    }
}

/// Whether a write was refused because its namespace is being deleted
/// (<https://github.com/kubernetes/kubernetes/blob/v1.37.2/staging/src/k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle/admission.go>).
fn namespace_ends(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403
        && causes
            .map(|cause| cause.reason.as_str())
            .any(|reason| reason == "NamespaceTerminating")
}
