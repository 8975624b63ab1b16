//! What all endpoints share: the policy, the keys, what was issued, and how one call goes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use axum::http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::call_log::{CallLog, CallRecord, Endpoint};
use crate::faults::{FaultKind, Faults, RetryAfter, WrongToken};
use crate::keys::{Jwk, SigningKey};
use crate::metadata::MetadataCache;
use crate::policy::{Policy, ServiceAccount};
use crate::response::{self, Failure, Request};
use crate::subject_token::KeyCache;
use crate::tokens::{AccessTokens, Principal};

/// Settings that can change while the emulator runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) lifetime: Duration,
    pub(crate) access_token_lifetime: Duration,
    pub(crate) metadata_margin: Duration,
}

/// The emulator's state.
pub(crate) struct EmulatorState {
    pub(crate) url: String,
    pub(crate) key: SigningKey,
    pub(crate) certificate: String,
    policy: RwLock<Arc<Policy>>,
    settings: Mutex<Settings>,
    pub(crate) faults: Faults,
    pub(crate) calls: CallLog,
    pub(crate) access_tokens: AccessTokens,
    pub(crate) metadata_cache: MetadataCache,
    pub(crate) issuer_keys: KeyCache,
    account_keys: Mutex<HashMap<String, Vec<Jwk>>>,
    pub(crate) minted: AtomicU64,
    /// The certificate that the proxy's clients must trust, where there is a proxy.
    pub(crate) proxy_ca: OnceLock<String>,
}

impl EmulatorState {
    pub(crate) fn new(
        url: String,
        key: SigningKey,
        policy: Policy,
        settings: Settings,
    ) -> anyhow::Result<Self> {
        policy.validate()?;
        Ok(Self {
            url,
            certificate: key.certificate_pem()?,
            key,
            policy: RwLock::new(Arc::new(policy)),
            settings: Mutex::new(settings),
            faults: Faults::default(),
            calls: CallLog::default(),
            access_tokens: AccessTokens::default(),
            metadata_cache: MetadataCache::default(),
            issuer_keys: KeyCache::default(),
            account_keys: Mutex::default(),
            minted: AtomicU64::new(0),
            proxy_ca: OnceLock::new(),
        })
    }

    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_policy(&self, policy: Policy) -> anyhow::Result<()> {
        policy.validate()?;
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
        self.issuer_keys.clear();
        Ok(())
    }

    pub(crate) fn settings(&self) -> Settings {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds a public key to an account, besides those of the policy.
    pub(crate) fn add_account_key(&self, email: &str, key: Jwk) {
        let mut keys = self.account_keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.entry(email.to_owned()).or_default().push(key);
    }

    /// All public keys of an account.
    pub(crate) fn account_keys(&self, account: &ServiceAccount) -> Vec<Jwk> {
        let made = self.account_keys.lock().unwrap_or_else(PoisonError::into_inner);
        let given = account.keys.iter().filter_map(|key| key.jwk().ok());
        given
            .chain(made.get(&account.email).into_iter().flatten().cloned())
            .collect()
    }

    /// Forgets calls, counts and the number of tokens minted.
    pub(crate) fn reset_counts(&self) {
        self.calls.reset();
        self.minted.store(0, Ordering::SeqCst);
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// What faults change about the tokens of one call.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TokenOverrides {
    pub(crate) lifetime: Option<Duration>,
    /// Seconds that the clock of ID tokens is ahead.
    pub(crate) clock: i64,
    pub(crate) wrong: Option<WrongToken>,
}

/// One call to one endpoint: its line in the log, and its faults.
pub(crate) struct Call {
    pub(crate) state: Arc<EmulatorState>,
    pub(crate) endpoint: Endpoint,
    pub(crate) is_proxied: bool,
    number: u64,
    account: String,
}

impl Call {
    pub(crate) fn begin(
        state: Arc<EmulatorState>,
        endpoint: Endpoint,
        request: &Request,
        host: Option<&str>,
    ) -> Self {
        let number = state.calls.begin(CallRecord {
            request_reason: request.header("x-goog-request-reason").map(str::to_owned),
            host: host.map(str::to_owned),
            ..CallRecord::now(endpoint)
        });
        Self {
            state,
            endpoint,
            is_proxied: host.is_some(),
            number,
            account: String::new(),
        }
    }

    /// Notes the account the call is about.
    pub(crate) fn account(&mut self, name: &str) {
        name.clone_into(&mut self.account);
        self.state
            .calls
            .update(self.number, |record| record.account = Some(name.to_owned()));
    }

    /// Notes the audience the call asks for.
    pub(crate) fn audience(&self, audience: &str) {
        self.state
            .calls
            .update(self.number, |record| record.audience = Some(audience.to_owned()));
    }

    /// Notes who calls.
    pub(crate) fn principal(&self, principal: &Principal) {
        self.state.calls.update(self.number, |record| {
            record.principal = Some(principal.name.clone())
        });
    }

    /// Notes how the call ended.
    pub(crate) fn status(&self, status: StatusCode) {
        self.state
            .calls
            .update(self.number, |record| record.status = Some(status.as_u16()));
    }

    /// Suffers the faults ordered for this call.
    pub(crate) async fn apply_faults(&self) -> Result<TokenOverrides, Failure> {
        let policy = self.state.policy();
        let mut names = vec![self.account.as_str()];
        let unique_id;
        if let Some(account) = policy.account(&self.account) {
            unique_id = account.unique_id();
            names.extend([account.email.as_str(), unique_id.as_str()]);
        }
        let hit = self.state.faults.hit(self.endpoint, &names);
        if !hit.delay.is_zero() {
            tokio::time::sleep(hit.delay).await;
        }
        let mut overrides = TokenOverrides {
            lifetime: hit.lifetime,
            clock: hit.clock,
            wrong: None,
        };
        match hit.kind {
            None | Some(FaultKind::Delay { .. } | FaultKind::Lifetime { .. } | FaultKind::Clock { .. }) => {}
            Some(FaultKind::Token { wrong }) => overrides.wrong = Some(wrong),
            Some(FaultKind::Hang) => std::future::pending().await,
            Some(FaultKind::Reset) => return Err(Failure::Reset),
            Some(FaultKind::ApiDisabled) => return Err(api_disabled(policy.project.number).into()),
            Some(FaultKind::Status {
                code,
                body,
                retry_after,
            }) => {
                return Err(self.error(code, body, retry_after).into());
            }
        }
        Ok(overrides)
    }

    /// An ordered error, in the endpoint's own shape unless a body is given.
    fn error(
        &self,
        code: u16,
        body: Option<String>,
        retry_after: Option<RetryAfter>,
    ) -> response::HttpResponse {
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let reason = status.canonical_reason().unwrap_or("error");
        let metadata = matches!(
            self.endpoint,
            Endpoint::Metadata | Endpoint::MetadataIdentity | Endpoint::MetadataToken
        );
        let oauth = matches!(
            self.endpoint,
            Endpoint::SecurityToken | Endpoint::IdentityBindingToken | Endpoint::OauthToken
        );
        let mut response = match body {
            Some(body) if body.trim_start().starts_with('{') => response::body(status, response::JSON, body),
            Some(body) => response::text(status, body),
            None if metadata => response::text(status, reason),
            None if oauth && status.is_server_error() => {
                response::oauth_error(status, "internal_failure", format!("{reason}, as ordered"))
            }
            None if oauth => {
                response::oauth_error(status, "invalid_request", format!("{reason}, as ordered"))
            }
            None => response::api_error(status, generic_message(status), &[]),
        };
        let header = match retry_after {
            None => None,
            Some(RetryAfter::Seconds(seconds)) => Some(seconds.to_string()),
            Some(RetryAfter::DateIn(seconds)) => Some(httpdate::fmt_http_date(
                SystemTime::now() + Duration::from_secs(seconds),
            )),
        };
        if let Some(value) = header.and_then(|text| HeaderValue::from_str(&text).ok()) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

fn generic_message(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "Request contains an invalid argument.",
        403 => "The caller does not have permission",
        404 => "Requested entity was not found.",
        429 => "Resource has been exhausted (e.g. check quota).",
        503 => "The service is currently unavailable.",
        _ => "Internal error encountered.",
    }
}

fn api_disabled(project: u64) -> response::HttpResponse {
    let url = format!(
        "https://console.developers.google.com/apis/api/iamcredentials.googleapis.com/overview?project={project}"
    );
    let message = format!(
        "IAM Service Account Credentials API has not been used in project {project} before or it is disabled. \
         Enable it by visiting {url} then retry. If you enabled this API recently, wait a few minutes for the \
         action to propagate to our systems and retry."
    );
    let help = json!({
        "@type": "type.googleapis.com/google.rpc.Help",
        "links": [{"description": "Google developers console API activation", "url": url}],
    });
    let info = response::error_info(
        "SERVICE_DISABLED",
        "googleapis.com",
        json!({"service": "iamcredentials.googleapis.com", "consumer": format!("projects/{project}")}),
    );
    response::api_error(StatusCode::FORBIDDEN, message, &[help, info])
}
