//! The flags of Google's endpoints.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use url::Url;

use super::vocabulary::{DEFAULT_MAX_IN_FLIGHT, DEFAULT_RATE, DEFAULT_UNIVERSE, GoogleConfig};

/// Google's endpoints, shared with `kubectl idtoken`. Proxies are taken from HTTPS_PROXY and NO_PROXY.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Google")]
pub struct GoogleArgs {
    /// Universe domain of the endpoints and credentials.
    #[arg(long, env = "IDTOKEN_UNIVERSE_DOMAIN", default_value = DEFAULT_UNIVERSE)]
    pub universe_domain: String,

    /// Base URL of the IAM Service Account Credentials API, for private endpoints; https unless loopback.
    #[arg(long, env = "IDTOKEN_IAM_CREDENTIALS_URL")]
    pub iam_credentials_url: Option<Url>,

    /// Base URL of the Security Token Service, for regional and private endpoints; https unless loopback.
    #[arg(long, env = "IDTOKEN_STS_URL")]
    pub sts_url: Option<Url>,

    /// URL of Google's signing keys (JWKS), for private endpoints; https unless loopback. Default: `https://www.UNIVERSE/oauth2/v3/certs`.
    #[arg(long, env = "IDTOKEN_GOOGLE_KEYS_URL")]
    pub google_keys_url: Option<Url>,

    /// PEM file of certificates to trust in addition to the platform's.
    #[arg(long, env = "IDTOKEN_CA_FILE")]
    pub ca_file: Option<PathBuf>,

    /// Timeout of one call, in seconds.
    #[arg(long, env = "IDTOKEN_GOOGLE_TIMEOUT", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub google_timeout: u64,

    /// The most calls a second for each endpoint; 0 means no limit. The default is Google's default quota.
    #[arg(long, env = "IDTOKEN_GOOGLE_RATE", default_value_t = DEFAULT_RATE)]
    pub google_rate: u32,

    /// The most calls in flight at once for each endpoint. The operator finds the present limit by how the endpoint answers. One namespace leaves
    /// a fifth of the calls to others.
    #[arg(long, env = "IDTOKEN_GOOGLE_MAX_IN_FLIGHT", default_value_t = DEFAULT_MAX_IN_FLIGHT)]
    pub google_max_in_flight: usize,

    /// Credential file, instead of GOOGLE_APPLICATION_CREDENTIALS.
    #[arg(long, env = "IDTOKEN_CREDENTIALS_FILE")]
    pub credentials_file: Option<PathBuf>,

    /// Host that a credential file may name in addition to those of the universe; repeatable.
    #[arg(
        long = "allowed-credential-host",
        env = "IDTOKEN_ALLOWED_CREDENTIAL_HOSTS",
        value_delimiter = ','
    )]
    pub allowed_credential_hosts: Vec<String>,

    /// Deprecated, without effect, and to be removed: a credential file that names an executable is refused.
    #[arg(long, env = "IDTOKEN_ALLOW_EXECUTABLE_CREDENTIALS")]
    pub allow_executable_credentials: bool,
}

impl GoogleArgs {
    /// What to warn of where a flag is set that has no effect any more.
    pub fn deprecation(&self) -> Option<&'static str> {
        self.allow_executable_credentials.then_some(
            "--allow-executable-credentials (IDTOKEN_ALLOW_EXECUTABLE_CREDENTIALS) has no effect and will be removed: a credential \
             file that names an executable is refused",
        )
    }
}

impl From<GoogleArgs> for GoogleConfig {
    fn from(args: GoogleArgs) -> Self {
        Self {
            universe_domain: args.universe_domain,
            iam_credentials_url: args.iam_credentials_url,
            sts_url: args.sts_url,
            keys_url: args.google_keys_url,
            ca_file: args.ca_file,
            timeout: Duration::from_secs(args.google_timeout),
            rate_per_second: NonZeroU32::new(args.google_rate),
            max_in_flight: args.google_max_in_flight,
            credentials_file: args.credentials_file,
            allowed_credential_hosts: args.allowed_credential_hosts,
            ..Self::default()
        }
    }
}
