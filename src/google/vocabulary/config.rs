//! Settings of the client of Google's endpoints, and what is wrong with them.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::{Host, Url};

use super::recoveries::Recoveries;
use super::transport::Transport;
use crate::clock::Clock;

/// The universe of the public Google Cloud.
pub const DEFAULT_UNIVERSE: &str = "googleapis.com";

/// The most calls a second for each endpoint: Google's default quota of a project.
pub const DEFAULT_RATE: u32 = 1000;
/// The most calls in flight at once for each endpoint. With answers in 200 ms, 200 make the default rate; a single namespace leaves a fifth.
pub const DEFAULT_MAX_IN_FLIGHT: usize = 320;

/// Settings of a [`Minter`](crate::google::Minter). `Default` is right for the public Google Cloud.
#[derive(Clone, Debug)]
pub struct GoogleConfig {
    /// The universe domain; endpoints and credentials must be in it.
    pub universe_domain: String,
    /// The base URL of the IAM Service Account Credentials API, if it is not `https://iamcredentials.{universe}` (Private Service
    /// Connect, mTLS, an emulator). https, unless the host is loopback.
    pub iam_credentials_url: Option<Url>,
    /// The base URL of the Security Token Service, if it is not `https://sts.{universe}`. https, unless the host is loopback.
    pub sts_url: Option<Url>,
    /// The URL of Google's signing keys, a JWKS document, if it is not `https://www.{universe}/oauth2/v3/certs`. https, unless the host is
    /// loopback.
    pub keys_url: Option<Url>,
    /// A file of PEM certificates to trust in addition to the platform's.
    pub ca_file: Option<PathBuf>,
    /// The timeout of one call, from connecting to the last byte. Connecting alone may take half of it.
    pub timeout: Duration,
    /// The most calls started a second, for each endpoint; `None` is no limit.
    pub rate_per_second: Option<NonZeroU32>,
    /// The most calls in flight at once, for each endpoint; at least 1. Fewer are, if the endpoint does not take so many.
    pub max_in_flight: usize,
    /// How long a call may wait for the rate limit and the in-flight cap before it fails.
    pub max_wait: Duration,
    /// A credential file, instead of `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's file and the metadata server.
    pub credentials_file: Option<PathBuf>,
    /// `host[:port]` of the metadata server, if `GCE_METADATA_HOST` is not set.
    pub metadata_host: Option<String>,
    /// Hosts that a credential file may name in addition to those of the universe and loopback: exact, or `.example.com` for all
    /// below that. An Azure identity needs `169.254.169.254` here.
    pub allowed_credential_hosts: Vec<String>,
    /// Checked right before each call; absent means that calls are always allowed.
    pub call_gate: Option<CallGate>,
    /// Receives the flows that may call again after an endpoint failed.
    pub recoveries: Recoveries,
    /// The clocks; the machine's by default.
    pub clock: Clock,
    /// How calls leave the process; the network by default.
    pub transport: Transport,
}

/// Whether this process may call at this moment.
#[derive(Clone)]
pub struct CallGate(Arc<dyn Fn() -> bool + Send + Sync>);

impl CallGate {
    /// A gate that is open while `is_open` returns true. `is_open` must not block.
    pub fn new(is_open: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_open))
    }

    /// Whether this process may call now.
    pub fn is_open(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for CallGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CallGate").field(&self.is_open()).finish()
    }
}

impl Default for GoogleConfig {
    fn default() -> Self {
        Self {
            universe_domain: DEFAULT_UNIVERSE.to_owned(),
            iam_credentials_url: None,
            sts_url: None,
            keys_url: None,
            ca_file: None,
            timeout: Duration::from_secs(20),
            rate_per_second: NonZeroU32::new(DEFAULT_RATE),
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            max_wait: Duration::from_secs(20),
            credentials_file: None,
            metadata_host: None,
            allowed_credential_hosts: Vec::new(),
            call_gate: None,
            recoveries: Recoveries::default(),
            clock: Clock::system(),
            transport: Transport::network(),
        }
    }
}

/// A setting that cannot be used; the operator does not start with it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An endpoint override without https to another machine.
    #[error(
        "the {setting} URL must be https (http is for loopback addresses only), not {scheme}: tokens travel over it"
    )]
    NotHttps {
        /// Which endpoint.
        setting: &'static str,
        /// The scheme that was given.
        scheme: String,
    },
    /// An endpoint override with parts that a base URL does not have.
    #[error("the {setting} URL must be a base URL such as https://host/: without user, query or fragment")]
    NotBase {
        /// Which endpoint.
        setting: &'static str,
    },
    /// The universe domain is not a domain name.
    #[error("the universe domain {0:?} is not a domain name such as googleapis.com")]
    Universe(String),
    /// The project for the quota is not a project.
    #[error("GOOGLE_CLOUD_QUOTA_PROJECT is not the ID or number of a project")]
    QuotaProject,
    /// A limit of zero would let no call through.
    #[error("{0} must be more than zero")]
    MustBePositive(&'static str),
    /// The CA file cannot be read.
    #[error("the CA file {path} cannot be read: {source}")]
    CaFile {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The CA file has no certificate, or a malformed one.
    #[error("the CA file {path} must hold PEM certificates: {detail}")]
    CaPem {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The TLS client cannot be set up, usually because the image has no CA bundle.
    #[error("TLS cannot be set up: {0}; give a CA bundle to the image (SSL_CERT_FILE) or a CA file")]
    Tls(rustls::Error),
    /// The HTTP client cannot be set up, usually because a proxy variable is not a URL.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
}

impl GoogleConfig {
    /// Checks what can be checked without reading a file.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !is_domain(&self.universe_domain) {
            return Err(ConfigError::Universe(self.universe_domain.clone()));
        }
        if self.max_in_flight == 0 {
            return Err(ConfigError::MustBePositive("the in-flight cap"));
        }
        if self.timeout.is_zero() {
            return Err(ConfigError::MustBePositive("the timeout"));
        }
        if let Some(url) = &self.iam_credentials_url {
            check_endpoint("IAM credentials", url)?;
        }
        if let Some(url) = &self.sts_url {
            check_endpoint("STS", url)?;
        }
        if let Some(url) = &self.keys_url {
            check_endpoint("Google keys", url)?;
        }
        Ok(())
    }

    /// The base URL of an API: the override, or `https://{api}.{universe}/`.
    pub(crate) fn endpoint(&self, api: &str, given: Option<&Url>) -> Result<Url, ConfigError> {
        match given {
            Some(url) => Ok(url.clone()),
            None => Url::parse(&format!("https://{api}.{}/", self.universe_domain))
                .map_err(|_| ConfigError::Universe(self.universe_domain.clone())),
        }
    }
}

/// Whether an endpoint override may carry tokens.
///
/// # Errors
/// [`ConfigError::NotHttps`] or [`ConfigError::NotBase`].
pub fn check_endpoint(setting: &'static str, url: &Url) -> Result<(), ConfigError> {
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(url) => {}
        scheme => {
            return Err(ConfigError::NotHttps {
                setting,
                scheme: scheme.to_owned(),
            });
        }
    }
    let has_user = !url.username().is_empty() || url.password().is_some();
    if has_user || url.query().is_some() || url.fragment().is_some() || url.host().is_none() {
        return Err(ConfigError::NotBase { setting });
    }
    Ok(())
}

/// Whether a URL stays on this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Whether a URL leads to a link-local address, where clouds keep their metadata servers, which speak plain http.
pub(crate) fn is_link_local(url: &Url) -> bool {
    let ip = match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip),
        _ => return false,
    };
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        // AWS serves its metadata at fd00:ec2::254, a unique local address.
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unique_local(),
    }
}

fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_url(url: &str) -> Result<(), ConfigError> {
        let iam_credentials_url = Some(Url::parse(url).expect("a URL"));
        GoogleConfig {
            iam_credentials_url,
            ..GoogleConfig::default()
        }
        .validate()
    }

    #[test]
    fn endpoints_are_https_unless_loopback() {
        for good in [
            "https://iam.internal.example",
            "https://h:8443/base/",
            "http://127.0.0.1:80",
            "http://[::1]:1/",
            "http://localhost:1/",
        ] {
            assert!(with_url(good).is_ok(), "{good}");
        }
        for bad in [
            "http://iam.internal.example",
            "http://127.0.0.1.example",
            "http://10.0.0.1/",
            "ftp://127.0.0.1/",
        ] {
            assert!(
                matches!(with_url(bad), Err(ConfigError::NotHttps { .. })),
                "{bad}"
            );
        }
        for bad in ["https://u@h/", "https://u:p@h/", "https://h/?q", "https://h/#f"] {
            assert!(matches!(with_url(bad), Err(ConfigError::NotBase { .. })), "{bad}");
        }
    }

    #[test]
    fn universe_is_a_domain() {
        for bad in [
            "",
            "com",
            "a..b",
            "a.b/c",
            "a.b:1",
            "A.b",
            "evil.example#.googleapis.com",
            "-a.b",
            "a.b.",
        ] {
            let config = GoogleConfig {
                universe_domain: bad.to_owned(),
                ..GoogleConfig::default()
            };
            assert!(
                matches!(config.validate(), Err(ConfigError::Universe(_))),
                "{bad}"
            );
        }
        assert!(GoogleConfig::default().validate().is_ok());
    }
}
