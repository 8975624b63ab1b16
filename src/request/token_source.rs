//! Pure: `spec.source` as written → a source with its fields checked, and whether the operator's flags allow it.

use crate::api::v1alpha1::{FederationSource, GrantSource, IdTokenRequestSpec, Source};
use crate::google::{IdentityProvider, is_gke_pool};
use crate::request::error::ValidateError;
use crate::request::syntax::{is_dns_subdomain, is_service_account};

/// Where a token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// The operator's own Google identity impersonates the account.
    Impersonation {
        /// The delegation chain.
        delegates: Vec<String>,
    },
    /// A Kubernetes ServiceAccount of the request's namespace is federated and impersonates the account.
    Federation(Federation),
    /// The identity attached to the operator's pod or node.
    MetadataServer {
        /// Whether the token carries the licenses of the instance's image.
        licenses: bool,
    },
    /// A generic token of gcloud user credentials.
    Developer,
}

/// Federation as written in the spec. The operator's flags provide the omitted fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federation {
    /// Name of the Kubernetes ServiceAccount.
    pub kubernetes_service_account: String,
    /// The workload identity provider that trusts the cluster; absent means the operator's `--federation-provider`.
    pub provider: Option<IdentityProvider>,
    /// Audience of the Kubernetes token; absent means the provider's own.
    pub token_audience: Option<String>,
}

/// The operator's flags about sources.
#[derive(Clone, Debug, Default)]
pub struct SourceSettings {
    /// The provider of requests that name none.
    pub federation_provider: Option<IdentityProvider>,
    /// Audiences of Kubernetes tokens that requests may name besides a provider's own.
    pub allowed_token_audiences: Vec<String>,
    /// The subject by which IAM knows a federated ServiceAccount, with the placeholders `{namespace}`, `{name}` and `{uid}`; set if the
    /// provider's attribute mapping is not `google.subject=assertion.sub`.
    pub federation_subject_template: Option<String>,
    /// Whether requests may use the source `developer`.
    pub allow_developer: bool,
}

impl TokenSource {
    /// Checks `spec.source`, and `spec.serviceAccount` as far as the source needs it.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub(crate) fn from_spec(spec: &IdTokenRequestSpec) -> Result<Self, ValidateError> {
        let source = match spec.source.clone().unwrap_or_else(default_source) {
            Source {
                impersonation: Some(source),
                federation: None,
                metadata_server: None,
                developer: None,
            } => impersonation(source.delegates.unwrap_or_default())?,
            Source {
                impersonation: None,
                federation: Some(source),
                metadata_server: None,
                developer: None,
            } => Self::Federation(federation(source)?),
            Source {
                impersonation: None,
                federation: None,
                metadata_server: Some(source),
                developer: None,
            } => metadata_server(spec, source.licenses.unwrap_or(false))?,
            Source {
                impersonation: None,
                federation: None,
                metadata_server: None,
                developer: Some(_),
            } => developer(spec)?,
            _ => {
                return Err(ValidateError::invalid(
                    "source",
                    "exactly one source must be set, and this version must know it",
                ));
            }
        };
        match (&source, &spec.service_account) {
            (_, Some(name)) => check_account("serviceAccount", name)?,
            (Self::Impersonation { .. }, None) => {
                return Err(ValidateError::invalid(
                    "serviceAccount",
                    "is required by source impersonation",
                ));
            }
            (_, None) => {}
        }
        Ok(source)
    }

    /// The source's name, as status and metrics show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Impersonation { .. } => "Impersonation",
            Self::Federation(_) => "Federation",
            Self::MetadataServer { .. } => "MetadataServer",
            Self::Developer => "Developer",
        }
    }

    /// The name of the source in a grant; none if the source needs no grant, since it does not use the operator's identity.
    pub fn grant_source(&self) -> Option<GrantSource> {
        match self {
            Self::Impersonation { .. } => Some(GrantSource::Impersonation),
            Self::Federation(_) => None,
            Self::MetadataServer { .. } => Some(GrantSource::MetadataServer),
            Self::Developer => Some(GrantSource::Developer),
        }
    }

    /// The delegation chain; empty if the source has none.
    pub fn delegates(&self) -> &[String] {
        match self {
            Self::Impersonation { delegates } => delegates,
            _ => &[],
        }
    }

    /// Source-specific inputs of the token hash. Omitted fields stay omitted, so changing an operator default does not re-issue tokens.
    pub(crate) fn hash_inputs(&self) -> Vec<String> {
        match self {
            Self::Impersonation { delegates } => delegates.clone(),
            Self::Federation(federation) => vec![
                federation.kubernetes_service_account.clone(),
                federation
                    .provider
                    .as_ref()
                    .map(IdentityProvider::to_string)
                    .unwrap_or_default(),
                federation.token_audience.clone().unwrap_or_default(),
            ],
            Self::MetadataServer { licenses } => vec![licenses.to_string()],
            Self::Developer => Vec::new(),
        }
    }
}

fn metadata_server(spec: &IdTokenRequestSpec, licenses: bool) -> Result<TokenSource, ValidateError> {
    no_organization_number(spec, "metadataServer")?;
    if licenses && spec.include_email == Some(false) {
        return Err(ValidateError::invalid(
            "source.metadataServer.licenses",
            "needs includeEmail: the metadata server returns both or neither",
        ));
    }
    Ok(TokenSource::MetadataServer { licenses })
}

fn developer(spec: &IdTokenRequestSpec) -> Result<TokenSource, ValidateError> {
    no_organization_number(spec, "developer")?;
    Ok(TokenSource::Developer)
}

fn no_organization_number(spec: &IdTokenRequestSpec, source: &str) -> Result<(), ValidateError> {
    if spec.include_organization_number != Some(true) {
        return Ok(());
    }
    Err(ValidateError::invalid(
        "includeOrganizationNumber",
        format!("is not supported by source {source}; use source impersonation or federation"),
    ))
}

fn default_source() -> Source {
    Source {
        impersonation: Some(crate::api::v1alpha1::ImpersonationSource::default()),
        ..Source::default()
    }
}

fn impersonation(delegates: Vec<String>) -> Result<TokenSource, ValidateError> {
    if delegates.len() > 4 {
        return Err(ValidateError::invalid(
            "source.impersonation.delegates",
            "at most 4 accounts",
        ));
    }
    for (index, delegate) in delegates.iter().enumerate() {
        check_account(&format!("source.impersonation.delegates[{index}]"), delegate)?;
    }
    Ok(TokenSource::Impersonation { delegates })
}

fn federation(source: FederationSource) -> Result<Federation, ValidateError> {
    let kubernetes_service_account = source.service_account_ref.name;
    if !is_dns_subdomain(&kubernetes_service_account) {
        return Err(ValidateError::invalid(
            "source.federation.serviceAccountRef.name",
            "must be the name of a Kubernetes ServiceAccount: lower case letters, digits, - and ., at most 253",
        ));
    }
    let provider = source
        .provider
        .map(|name| name.parse::<IdentityProvider>())
        .transpose()
        .map_err(|error| ValidateError::invalid("source.federation.provider", error.to_string()))?;
    let is_printable = |audience: &String| {
        (1..=512).contains(&audience.len()) && audience.bytes().all(|b| b.is_ascii_graphic())
    };
    if source
        .token_audience
        .as_ref()
        .is_some_and(|audience| !is_printable(audience))
    {
        return Err(ValidateError::invalid(
            "source.federation.tokenAudience",
            "must be 1 to 512 printable ASCII characters without spaces",
        ));
    }
    Ok(Federation {
        kubernetes_service_account,
        provider,
        token_audience: source.token_audience,
    })
}

fn check_account(field: &str, text: &str) -> Result<(), ValidateError> {
    if is_service_account(text) {
        return Ok(());
    }
    let problem =
        "must be the e-mail address of a Google service account in lower case, or its numeric unique ID";
    Err(ValidateError::invalid(field, problem))
}

/// Checks that the operator's flags allow `source`.
///
/// # Errors
/// The field that they do not allow.
pub fn check_allowed(source: &TokenSource, settings: &SourceSettings) -> Result<(), ValidateError> {
    match source {
        TokenSource::Federation(federation) => federation.resolve(settings).map(drop),
        TokenSource::Developer if !settings.allow_developer => Err(ValidateError::SourceUnavailable(
            "developer",
            "an administrator must allow it with --allow-developer-source",
        )),
        TokenSource::Impersonation { .. } | TokenSource::MetadataServer { .. } | TokenSource::Developer => {
            Ok(())
        }
    }
}

impl Federation {
    /// The provider and the audience of the Kubernetes token.
    ///
    /// # Errors
    /// There is no provider, or the audience is not an allowed one: its verifier could use the token elsewhere.
    pub fn resolve<'a>(
        &'a self,
        settings: &'a SourceSettings,
    ) -> Result<(&'a IdentityProvider, String), ValidateError> {
        let provider = self
            .provider
            .as_ref()
            .or(settings.federation_provider.as_ref())
            .ok_or_else(|| {
                ValidateError::invalid(
                    "source.federation.provider",
                    "is required, since the operator runs without --federation-provider",
                )
            })?;
        let Some(audience) = &self.token_audience else {
            return Ok((provider, provider.token_audience()));
        };
        let allowed = provider.owns_audience(audience)
            || is_gke_pool(audience)
            || settings.allowed_token_audiences.contains(audience);
        if !allowed {
            return Err(ValidateError::invalid(
                "source.federation.tokenAudience",
                "must be the provider's name, with or without https:, or PROJECT.svc.id.goog; the operator must allow any other by \
                 --allowed-token-audience, since every verifier of that audience would accept the token",
            ));
        }
        Ok((provider, audience.clone()))
    }
}

#[cfg(test)]
#[path = "token_source_tests.rs"]
mod tests;
