//! One call to one endpoint: its entry in the call log, and the faults injected into it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::{HeaderValue, StatusCode, header};

use crate::call_log::{CallRecord, Endpoint};
use crate::denial;
use crate::faults::{FaultKind, RetryAfter};
use crate::issue::TokenOverrides;
use crate::response::{self, Failure, Request};
use crate::state::EmulatorState;
use crate::tokens::Principal;

/// A call in flight.
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
            user_project: request.header("x-goog-user-project").map(str::to_owned),
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

    /// Records the account that the call is about.
    pub(crate) fn record_account(&mut self, name: &str) {
        name.clone_into(&mut self.account);
        self.state
            .calls
            .update(self.number, |record| record.account = Some(name.to_owned()));
    }

    /// Records the requested audience.
    pub(crate) fn record_audience(&self, audience: &str) {
        self.state
            .calls
            .update(self.number, |record| record.audience = Some(audience.to_owned()));
    }

    /// Records the caller.
    pub(crate) fn record_principal(&self, principal: &Principal) {
        self.state.calls.update(self.number, |record| {
            record.principal = Some(principal.name.clone())
        });
    }

    /// Records the status of the response.
    pub(crate) fn record_status(&self, status: StatusCode) {
        self.state
            .calls
            .update(self.number, |record| record.status = Some(status.as_u16()));
    }

    /// Applies the faults that match this call: waits, fails, or returns what they change about its tokens.
    pub(crate) async fn apply_faults(&self) -> Result<TokenOverrides, Failure> {
        let policy = self.state.policy();
        let mut names = vec![self.account.as_str()];
        let unique_id;
        if let Some(account) = policy.account(&self.account) {
            unique_id = account.unique_id();
            names.extend([account.email.as_str(), unique_id.as_str()]);
        }
        let matched = self.state.faults.take_matching(self.endpoint, &names);
        if !matched.delay.is_zero() {
            tokio::time::sleep(matched.delay).await;
        }
        let mut overrides = TokenOverrides {
            lifetime: matched.lifetime,
            clock: matched.clock,
            wrong: None,
        };
        match matched.kind {
            None | Some(FaultKind::Delay { .. } | FaultKind::Lifetime { .. } | FaultKind::Clock { .. }) => {}
            Some(FaultKind::Token { wrong }) => overrides.wrong = Some(wrong),
            Some(FaultKind::Quota(_)) => return Err(self.injected_error(429, None, None).into()),
            Some(FaultKind::Hang) => std::future::pending().await,
            Some(FaultKind::Reset) => return Err(Failure::Reset),
            Some(FaultKind::ApiDisabled) => return Err(denial::api_disabled(policy.project.number).into()),
            Some(FaultKind::Denied { by }) => {
                let denied = match self.is_metadata() {
                    true => denial::denied_on_gke(by, policy.project.number),
                    false => denial::denied(by, policy.project.number),
                };
                return Err(denied.into());
            }
            Some(FaultKind::Status {
                code,
                body,
                retry_after,
            }) => {
                return Err(self.injected_error(code, body, retry_after).into());
            }
        }
        Ok(overrides)
    }

    fn is_metadata(&self) -> bool {
        matches!(
            self.endpoint,
            Endpoint::Metadata | Endpoint::MetadataIdentity | Endpoint::MetadataToken | Endpoint::Ec2Metadata
        )
    }

    /// The error of a fault, in the endpoint's own shape unless the fault has a body.
    fn injected_error(
        &self,
        code: u16,
        body: Option<String>,
        retry_after: Option<RetryAfter>,
    ) -> response::HttpResponse {
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let reason = status.canonical_reason().unwrap_or("error");
        let oauth = matches!(
            self.endpoint,
            Endpoint::SecurityToken
                | Endpoint::IdentityBindingToken
                | Endpoint::OauthToken
                | Endpoint::WorkforceToken
        );
        let mut response = match body {
            Some(body) if body.trim_start().starts_with('{') => response::body(status, response::JSON, body),
            Some(body) => response::text(status, body),
            None if self.is_metadata() => response::text(status, reason),
            None if oauth && status.is_server_error() => {
                response::oauth_error(status, "internal_failure", format!("{reason} (injected fault)"))
            }
            None if oauth => {
                response::oauth_error(status, "invalid_request", format!("{reason} (injected fault)"))
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
