//! Control over HTTP, under `/_emulator/`. Anyone who reaches the port can use it.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::faults::Fault;
use crate::policy::Policy;
use crate::response::{self, HandlerResult, Request};
use crate::state::EmulatorState;

/// Durations to set, in seconds. An absent one stays as it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SettingsPatch {
    #[serde(default)]
    lifetime_seconds: Option<u64>,
    #[serde(default)]
    access_token_lifetime_seconds: Option<u64>,
    #[serde(default)]
    metadata_margin_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyRequest {
    service_account: String,
}

/// Handles a call to `/_emulator/` + `path`.
pub(crate) async fn handle(state: &Arc<EmulatorState>, request: &Request, path: &str) -> HandlerResult {
    if (&request.method, path) == (&Method::GET, "proxy-ca") {
        return Ok(match state.proxy_ca.get() {
            Some(certificate) => response::text(StatusCode::OK, certificate.as_str()),
            None => response::text(StatusCode::NOT_FOUND, "there is no proxy; see --proxy"),
        });
    }
    Ok(match route(state, request, path).await {
        Ok(Some(value)) => response::json(StatusCode::OK, &value),
        Ok(None) => response::text(
            StatusCode::NOT_FOUND,
            "no such control; there are: GET healthz, GET|PUT settings, GET|POST|DELETE faults, GET counts, \
             GET|DELETE calls, DELETE caches, PUT policy, GET proxy-ca, POST service-account-keys, POST verify",
        ),
        Err(error) => response::text(StatusCode::BAD_REQUEST, format!("{error:#}")),
    })
}

async fn route(state: &Arc<EmulatorState>, request: &Request, path: &str) -> anyhow::Result<Option<Value>> {
    let done = || Ok(Some(json!({})));
    match (&request.method, path) {
        (&Method::GET, "healthz") => done(),
        (&Method::GET, "settings") => Ok(Some(settings(state))),
        (&Method::PUT, "settings") => {
            let new: SettingsPatch = parse(request)?;
            state.change_settings(|settings| {
                let set = |value: &mut Duration, seconds: Option<u64>| {
                    *value = seconds.map_or(*value, Duration::from_secs);
                };
                set(&mut settings.lifetime, new.lifetime_seconds);
                set(
                    &mut settings.access_token_lifetime,
                    new.access_token_lifetime_seconds,
                );
                set(&mut settings.metadata_margin, new.metadata_margin_seconds);
            });
            Ok(Some(settings(state)))
        }
        (&Method::GET, "faults") => Ok(Some(json!(state.faults.pending()))),
        (&Method::POST, "faults") => {
            let fault: Fault = parse(request)?;
            fault.validate()?;
            state.faults.inject(fault);
            done()
        }
        (&Method::DELETE, "faults") => {
            state.faults.clear();
            done()
        }
        (&Method::GET, "counts") => Ok(Some(json!({
            "calls": state.calls.counts(),
            "minted": state.minted.load(std::sync::atomic::Ordering::SeqCst),
        }))),
        (&Method::GET, "calls") => Ok(Some(json!(state.calls.calls()))),
        (&Method::DELETE, "calls") => {
            state.reset_counts();
            done()
        }
        (&Method::DELETE, "caches") => {
            state.clear_caches();
            done()
        }
        (&Method::PUT, "policy") => {
            state.set_policy(Policy::from_yaml(std::str::from_utf8(&request.body)?)?)?;
            done()
        }
        (&Method::POST, "service-account-keys") => {
            let key: KeyRequest = parse(request)?;
            let state = state.clone();
            let file = tokio::task::spawn_blocking(move || state.service_account_key(&key.service_account));
            Ok(Some(file.await??))
        }
        (&Method::POST, "verify") => Ok(Some(state.verify(std::str::from_utf8(&request.body)?.trim())?)),
        _ => Ok(None),
    }
}

fn settings(state: &EmulatorState) -> Value {
    let settings = state.settings();
    json!({
        "lifetimeSeconds": settings.lifetime.as_secs(),
        "accessTokenLifetimeSeconds": settings.access_token_lifetime.as_secs(),
        "metadataMarginSeconds": settings.metadata_margin.as_secs(),
    })
}

fn parse<T: DeserializeOwned>(request: &Request) -> anyhow::Result<T> {
    Ok(serde_json::from_slice(&request.body)?)
}
