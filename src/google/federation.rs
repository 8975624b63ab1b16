//! Federation of a tenant's workload: the two calls that get an ID token with its own permission.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use url::Url;

use super::endpoints::iam_credentials::{IamCredentials, Impersonation};
use super::endpoints::sts::{self, FederatedToken};
use super::remediation::federation as remediation;
use super::transport::endpoint_client::{EndpointClient, Observer};
use super::transport::http::Http;
use super::transport::limiter::EndpointLoad;
use super::vocabulary::{
    ConfigError, Endpoint, Error, GoogleConfig, IdentityProvider, Reason, SubjectToken, Workload,
};
use crate::sync::lock;
use crate::token::IdToken;

/// Providers whose limiters are kept. Of more, the least recently used ones are dropped.
const MAX_PROVIDERS: usize = 1024;

/// Endpoints with limiters of their own for each provider, so that one tenant's hung pool or exhausted quota never delays another.
pub(crate) struct Federation {
    config: GoogleConfig,
    http: Http,
    sts: Url,
    iam_credentials: Url,
    observer: Option<Observer>,
    providers: Mutex<HashMap<IdentityProvider, (Instant, Arc<Endpoints>)>>,
}

struct Endpoints {
    sts: EndpointClient,
    iam_credentials: IamCredentials,
}

impl Federation {
    pub(crate) fn new(config: &GoogleConfig, http: Http) -> Result<Self, ConfigError> {
        Ok(Self {
            sts: config.endpoint("sts", config.sts_url.as_ref())?,
            iam_credentials: config.endpoint("iamcredentials", config.iam_credentials_url.as_ref())?,
            config: config.clone(),
            http,
            observer: None,
            providers: Mutex::default(),
        })
    }

    pub(crate) fn set_observer(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    fn endpoints(&self, provider: &IdentityProvider) -> Arc<Endpoints> {
        let now = self.config.clock.monotonic();
        let mut providers = lock(&self.providers);
        if let Some((used, endpoints)) = providers.get_mut(provider) {
            *used = now;
            return Arc::clone(endpoints);
        }
        if providers.len() >= MAX_PROVIDERS {
            let oldest = providers.iter().min_by_key(|(_, (used, _))| *used);
            let oldest = oldest.map(|(provider, _)| provider.clone());
            oldest.map(|provider| providers.remove(&provider));
        }
        let client = |endpoint, base: &Url| {
            let mut client = EndpointClient::new(endpoint, base.clone(), self.http.clone(), &self.config);
            if let Some(observer) = &self.observer {
                client.set_observer(Arc::clone(observer));
            }
            client
        };
        let endpoints = Arc::new(Endpoints {
            sts: client(Endpoint::Sts, &self.sts),
            iam_credentials: IamCredentials::new(client(Endpoint::IamCredentials, &self.iam_credentials)),
        });
        providers.insert(provider.clone(), (now, Arc::clone(&endpoints)));
        endpoints
    }

    pub(crate) fn loads(&self) -> Vec<EndpointLoad> {
        let providers = lock(&self.providers);
        let all = providers
            .values()
            .flat_map(|(_, own)| [own.sts.load(), own.iam_credentials.load()]);
        all.collect()
    }

    /// How many callers are of use to the provider that takes most.
    pub(crate) fn useful_callers(&self) -> usize {
        let providers = lock(&self.providers);
        let all = providers
            .values()
            .map(|(_, own)| own.iam_credentials.useful_callers());
        all.max().unwrap_or_default()
    }

    /// Exchanges the workload's own token for a federated access token.
    pub(crate) async fn exchange(
        &self,
        workload: &Workload<'_>,
        token: &SubjectToken,
    ) -> Result<FederatedToken, Error> {
        let endpoints = self.endpoints(workload.provider);
        sts::exchange(
            &endpoints.sts,
            workload.provider,
            &token.token,
            workload.request_reason,
            workload.priority,
        )
        .await
        .map_err(|error| remediation::for_exchange(error, workload, token))
    }

    /// Gets an ID token with the workload's own permission.
    pub(crate) async fn generate_id_token(
        &self,
        workload: &Workload<'_>,
        bearer: &FederatedToken,
        impersonation: &Impersonation<'_>,
    ) -> Result<IdToken, Error> {
        let endpoints = self.endpoints(workload.provider);
        endpoints
            .iam_credentials
            // A tenant's call counts for no project of the operator's.
            .generate_id_token(bearer.expose(), None, impersonation)
            .await
            .map_err(|error| remediation::for_mint(error, workload, impersonation.service_account))
    }
}

/// Whether Google no longer accepts the federated access token.
#[must_use]
pub fn is_rejected(error: &Error) -> bool {
    error.reason() == Reason::CredentialsRejected
}
