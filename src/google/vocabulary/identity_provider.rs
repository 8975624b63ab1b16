//! The providers of Workload Identity Federation, and the audiences they expect.

use std::fmt;

/// The longest `google.subject`, in bytes: <https://cloud.google.com/iam/docs/reference/rest/v1/projects.locations.workloadIdentityPools.providers>.
pub const MAX_SUBJECT_BYTES: usize = 127;

/// The longest name of a provider, in bytes.
const MAX_NAME_BYTES: usize = 512;

/// The provider that vouches for a Kubernetes ServiceAccount at the Security Token Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IdentityProvider {
    /// A provider of a workload identity pool.
    Pool {
        /// `//iam.googleapis.com/projects/N/locations/L/workloadIdentityPools/P/providers/Q`.
        name: String,
    },
    /// A GKE cluster. It vouches for identities of the pool that each project has automatically.
    Gke {
        /// `identitynamespace:PROJECT.svc.id.goog:https://container.googleapis.com/v1/projects/P/locations/L/clusters/C`.
        name: String,
    },
}

/// The text is not the name of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be //iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER, or GKE's \
     identitynamespace:PROJECT.svc.id.goog:https://container.googleapis.com/v1/projects/PROJECT/locations/LOCATION/clusters/CLUSTER"
)]
pub struct ParseProviderError;

impl std::str::FromStr for IdentityProvider {
    type Err = ParseProviderError;

    fn from_str(name: &str) -> Result<Self, ParseProviderError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(ParseProviderError);
        }
        let name = name.to_owned();
        if gke_parts(&name).is_some() {
            Ok(Self::Gke { name })
        } else if pool_parts(&name).is_some() {
            Ok(Self::Pool { name })
        } else {
            Err(ParseProviderError)
        }
    }
}

impl IdentityProvider {
    /// The name, which is also the `audience` of an exchange.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Pool { name } | Self::Gke { name } => name,
        }
    }

    /// The audience that the provider expects in a Kubernetes token by default: its own name after `https:`, or GKE's pool.
    #[must_use]
    pub fn token_audience(&self) -> String {
        match self {
            Self::Pool { name } => format!("https:{name}"),
            Self::Gke { name } => gke_parts(name).unwrap_or_default().0.to_owned(),
        }
    }

    /// Whether a Kubernetes token with this audience is meant for this provider alone.
    #[must_use]
    pub fn owns_audience(&self, audience: &str) -> bool {
        match self {
            Self::Pool { name } => audience.strip_prefix("https:").unwrap_or(audience) == name,
            Self::Gke { .. } => audience == self.token_audience(),
        }
    }

    /// Project number, location, pool and provider; none for GKE.
    pub(crate) fn pool_parts(&self) -> Option<[&str; 4]> {
        match self {
            Self::Pool { name } => pool_parts(name),
            Self::Gke { .. } => None,
        }
    }
}

impl fmt::Display for IdentityProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether an audience is the pool of a Google Cloud project's GKE clusters.
#[must_use]
pub fn is_gke_pool(audience: &str) -> bool {
    audience.strip_suffix(".svc.id.goog").is_some_and(|project| {
        !project.is_empty() && project.split([':', '.']).all(|part| is_id(part.as_bytes()))
    })
}

/// Pool and cluster.
fn gke_parts(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix("identitynamespace:")?;
    let (pool, cluster) = rest.split_once(":https://")?;
    let plain = cluster.bytes().all(|b| b.is_ascii_graphic()) && cluster.contains('/');
    (is_gke_pool(pool) && plain).then_some((pool, cluster))
}

/// Project number, location, pool and provider.
fn pool_parts(name: &str) -> Option<[&str; 4]> {
    let parts: Vec<&str> = name.split('/').collect();
    let [
        "",
        "",
        host,
        "projects",
        number,
        "locations",
        location,
        "workloadIdentityPools",
        pool,
        "providers",
        provider,
    ] = parts[..]
    else {
        return None;
    };
    let is_host = host
        .strip_prefix("iam.")
        .is_some_and(|domain| domain.split('.').all(|label| is_id(label.as_bytes())));
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let ids = [location, pool, provider];
    (is_host && is_number && ids.iter().all(|id| is_id(id.as_bytes())))
        .then_some([number, location, pool, provider])
}

fn is_id(id: &[u8]) -> bool {
    !id.is_empty()
        && id
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
    const GKE: &str = "identitynamespace:p.svc.id.goog:https://container.googleapis.com/v1/projects/p/locations/l/clusters/c";

    #[test]
    fn pools_and_gke_differ() {
        let pool: IdentityProvider = POOL.parse().unwrap();
        assert_eq!(pool, IdentityProvider::Pool { name: POOL.into() });
        assert_eq!(pool.token_audience(), format!("https:{POOL}"));
        assert!(pool.owns_audience(POOL) && pool.owns_audience(&format!("https:{POOL}")));
        let gke: IdentityProvider = GKE.parse().unwrap();
        assert_eq!(gke, IdentityProvider::Gke { name: GKE.into() });
        assert_eq!(gke.token_audience(), "p.svc.id.goog");
        assert!(gke.owns_audience("p.svc.id.goog"));
        for other in [
            "",
            "https://kubernetes.default.svc",
            "https:https:",
            "q.svc.id.goog",
        ] {
            assert!(!pool.owns_audience(other) && !gke.owns_audience(other), "{other}");
        }
        assert!(!pool.owns_audience(&format!("{POOL}x")) && !pool.owns_audience(&format!("http:{POOL}")));
    }

    #[test]
    fn anything_else_is_rejected() {
        for wrong in [
            "",
            "https://kubernetes.default.svc",
            "//iam.googleapis.com/projects/p/locations/global/workloadIdentityPools/p/providers/q",
            "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/",
            "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q/",
            "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p",
            "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p\n/providers/q",
            "//evil.example/projects/1/locations/global/workloadIdentityPools/p/providers/q",
            "https://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
            "identitynamespace:p.svc.id.goog",
            "identitynamespace:p.svc.id.goog:http://container.googleapis.com/v1/x",
            "identitynamespace:kubernetes.default.svc:https://container.googleapis.com/v1/x",
            "identitynamespace:p.svc.id.goog:https://",
        ] {
            assert_eq!(
                wrong.parse::<IdentityProvider>(),
                Err(ParseProviderError),
                "{wrong}"
            );
        }
        assert!(
            format!("{POOL}{}", "x".repeat(512))
                .parse::<IdentityProvider>()
                .is_err()
        );
        assert!(
            is_gke_pool("p.example.com.svc.id.goog") && !is_gke_pool(".svc.id.goog") && !is_gke_pool("p")
        );
    }
}
