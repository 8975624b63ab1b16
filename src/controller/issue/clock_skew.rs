//! Reports a clock that differs from Google's: schedules and checks follow it.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Issuer;
use crate::api::conditions::reason;
use crate::kubernetes::error::KubeError;
use crate::kubernetes::events::{request_ref, warning};
use crate::request::{TokenSource, ValidRequest};
use crate::token::IdToken;

impl Issuer<'_> {
    /// Reports the skew of this machine's clock. At most one event an hour, since every request finds the same.
    pub(super) async fn report_clock_skew(&self, request: &ValidRequest, token: &IdToken) {
        // A metadata server returns a token that it has had for a while.
        if matches!(request.token.source, TokenSource::MetadataServer { .. }) {
            return;
        }
        let now = self.sources.clock.now();
        self.metrics
            .set_clock_skew(token.claims().iat.duration_since(now));
        let Some(skew) = token.clock_skew(now) else {
            return;
        };
        let note = message(skew);
        tracing::warn!(skew_seconds = skew.as_secs(), "{note}");
        if !self.cache.should_notify(reason::CLOCK_SKEW, now) {
            return;
        }
        let object = request_ref(&ObjectMeta {
            namespace: Some(request.namespace.clone()),
            name: Some(request.name.clone()),
            uid: Some(request.uid.clone()),
            ..ObjectMeta::default()
        });
        let event = warning(reason::CLOCK_SKEW, &note);
        if let Err(error) = self.events.publish(&event, &object).await {
            let error = KubeError::new("create", "events", &request.namespace, &error);
            tracing::warn!("the event was not written: {error}");
        }
    }
}

/// What is wrong with this machine's clock. `skew` is Google's time minus ours.
pub fn message(skew: SignedDuration) -> String {
    let side = if skew.is_positive() { "behind" } else { "ahead of" };
    format!(
        "the clock of the operator's machine is {:#} {side} Google's: set it right, since tokens are renewed by it",
        SignedDuration::from_secs(skew.abs().as_secs())
    )
}
