//! The command line: each flag has an environment variable of the same name.
//!
//! May import the settings that flags become, and the checks of their values. Reads no file and starts nothing: that is [`crate::app`]'s.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;
use url::Url;

use crate::controller::Settings;
use crate::controller::cache::CacheLimits;
use crate::google::IdentityProvider;
use crate::google::args::GoogleArgs;
use crate::request::{SourceSettings, syntax};
use crate::shard::Shard;
use crate::telemetry::LogFormat;

/// Keeps Google-signed OIDC ID tokens in Kubernetes Secrets, always fresh.
#[derive(Debug, Parser)]
#[command(name = "idtoken-operator", version, arg_required_else_help = true)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator against the cluster of KUBECONFIG or of its own pod. If a flag is given twice, the last one counts.
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinitions as YAML, for kubectl apply -f -.
    Crds,
    /// Send a GET to a URL, such as /readyz of an operator, and fail unless the status is 2xx. The image has no other program for it.
    Probe {
        /// How long to try again where it fails, in seconds; 0 means one attempt.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        timeout: u64,
        /// The URL.
        url: Url,
    },
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where /livez, /readyz and /metrics are served. `[::]` is every address, of IPv4 too, also on a machine without IPv6.
    #[arg(
        long,
        env = "IDTOKEN_LISTEN",
        default_value = "[::]:8080",
        help_heading = "Operation"
    )]
    pub listen: SocketAddr,

    /// Export metrics of each request by name, in addition to the counts. Each request adds three series, so do not set it for many thousands of requests.
    #[arg(
        long,
        env = "IDTOKEN_METRICS_PER_REQUEST",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        help_heading = "Operation"
    )]
    pub metrics_per_request: bool,

    /// Format of the log lines.
    #[arg(
        long,
        env = "IDTOKEN_LOG_FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Operation"
    )]
    pub log_format: LogFormat,

    /// What to log: a level of the operator itself, such as info or debug. info,hyper=debug adds a library, all=debug all
    /// libraries, which otherwise log only warnings.
    #[arg(long, env = "IDTOKEN_LOG", default_value = "info", help_heading = "Operation")]
    pub log: String,

    /// How many requests are reconciled at once, without those that wait for Google.
    #[arg(long, env = "IDTOKEN_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Operation")]
    pub concurrency: u16,

    /// Most watches on one connection to the API server. Calls have a connection of their own.
    #[arg(long, env = "IDTOKEN_MAX_WATCHES_PER_CONNECTION", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=100), help_heading = "Operation")]
    pub max_watches_per_connection: u16,

    /// Longest time for one reconcile to get a token, and again to write it, in seconds. The wait for a permit does not count.
    #[arg(long, env = "IDTOKEN_RECONCILE_TIMEOUT", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Operation")]
    pub reconcile_timeout: u64,

    /// Shortest time between two renewals of a request by its annotation, in seconds. An earlier renewal is deferred, not lost.
    #[arg(
        long,
        env = "IDTOKEN_MIN_RENEW_INTERVAL",
        default_value_t = 60,
        help_heading = "Operation"
    )]
    pub min_renew_interval: u32,

    /// Most memory for requests and their Secrets, in MiB. If it does not suffice, the oldest requests are served and the others report
    /// CacheFull. The memory limit of the pod has to be 64 MiB larger.
    #[arg(long, env = "IDTOKEN_MAX_CACHE_MIB", default_value_t = 192, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Operation")]
    pub max_cache_mib: u32,

    /// Most memory for the requests and Secrets of one namespace, in MiB.
    #[arg(long, env = "IDTOKEN_MAX_NAMESPACE_CACHE_MIB", default_value_t = 96, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Operation")]
    pub max_namespace_cache_mib: u32,

    /// Namespace whose requests are reconciled; repeatable, absent means all. With this flag, nothing is read cluster-wide, so grants come from --grants-file alone.
    #[arg(
        long = "namespace",
        env = "IDTOKEN_NAMESPACES",
        value_delimiter = ',',
        value_parser = namespace_name,
        help_heading = "Operation"
    )]
    pub namespaces: Vec<String>,

    /// Label selector of the requests to reconcile, such as shard=a; absent means all.
    #[arg(long, env = "IDTOKEN_SELECTOR", help_heading = "Operation")]
    pub selector: Option<String>,

    /// File with grants in addition to the IdTokenGrant objects: a YAML list of {name, from, to}, reloaded when it changes.
    #[arg(long, env = "IDTOKEN_GRANTS_FILE", help_heading = "Authorization")]
    pub grants_file: Option<PathBuf>,

    /// Provider for federation requests that name none: a workload identity pool provider, or GKE's identitynamespace:….
    #[arg(long, env = "IDTOKEN_FEDERATION_PROVIDER", help_heading = "Sources")]
    pub federation_provider: Option<IdentityProvider>,

    /// Audience that federation requests may set for the Kubernetes token, in addition to their provider's default; repeatable.
    #[arg(
        long = "allowed-token-audience",
        env = "IDTOKEN_ALLOWED_TOKEN_AUDIENCES",
        value_delimiter = ',',
        help_heading = "Sources"
    )]
    pub allowed_token_audiences: Vec<String>,

    /// The google.subject of a ServiceAccount, such as prod:{namespace}:{name} or {uid}, if the attribute mapping is not
    /// google.subject=assertion.sub. Messages name the principal by this subject.
    #[arg(long, env = "IDTOKEN_FEDERATION_SUBJECT_TEMPLATE", help_heading = "Sources")]
    pub federation_subject_template: Option<String>,

    /// Allow requests for generic ID tokens of the operator's gcloud user credentials, which only Cloud Run and Cloud Functions may accept.
    #[arg(long, env = "IDTOKEN_ALLOW_DEVELOPER_SOURCE", help_heading = "Sources")]
    pub allow_developer_source: bool,

    /// Leader election.
    #[command(flatten)]
    pub leader: LeaderArgs,

    /// Google's endpoints and how they are called.
    #[command(flatten)]
    pub google: GoogleArgs,
}

/// Parses the name of a namespace. An empty one would stand for all, and one with a slash for another path.
fn namespace_name(text: &str) -> Result<String, &'static str> {
    let is_name = syntax::is_dns_subdomain(text) && text.len() <= 63 && !text.contains('.');
    is_name
        .then(|| text.to_owned())
        .ok_or("no name of a namespace; leave the flag and its variable out to serve all namespaces")
}

/// Leader election among several replicas.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Leader election")]
pub struct LeaderArgs {
    /// Reconcile only while holding a Lease, so that several replicas can run.
    #[arg(
        long,
        env = "IDTOKEN_LEADER_ELECT",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub leader_elect: bool,

    /// Name of the Lease, the same for all replicas; absent means idtoken-operator, with a hash of --namespace and --selector if either is set.
    #[arg(long, env = "IDTOKEN_LEASE_NAME")]
    pub lease_name: Option<String>,

    /// Namespace of the Lease; absent means the namespace of the pod.
    #[arg(long, env = "IDTOKEN_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// How long other replicas wait for a renewal by the leader before they take the Lease, in seconds.
    #[arg(long, env = "IDTOKEN_LEASE_DURATION", default_value_t = 15)]
    pub lease_duration: u64,

    /// How long a leader that cannot renew the Lease continues to act, in seconds.
    #[arg(long, env = "IDTOKEN_RENEW_DEADLINE", default_value_t = 10)]
    pub renew_deadline: u64,

    /// Time between two renewals, and between two reads of a Lease that another replica holds, in seconds.
    #[arg(long, env = "IDTOKEN_RETRY_PERIOD", default_value_t = 2)]
    pub retry_period: u64,
}

impl RunArgs {
    /// Settings of the controller.
    pub fn settings(&self) -> Settings {
        Settings {
            reconcile_timeout: Duration::from_secs(self.reconcile_timeout),
            min_renew_interval: SignedDuration::from_secs(self.min_renew_interval.into()),
            concurrency: self.concurrency,
            cache_limits: CacheLimits::from_mib(self.max_cache_mib, self.max_namespace_cache_mib),
            shard: Shard::new(self.namespaces.clone(), self.selector.clone()),
            grants_file: self.grants_file.clone(),
            sources: SourceSettings {
                federation_provider: self.federation_provider.clone(),
                allowed_token_audiences: self.allowed_token_audiences.clone(),
                federation_subject_template: self.federation_subject_template.clone(),
                allow_developer: self.allow_developer_source,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_flag_without_effect_is_accepted_and_warned_of() {
        let deprecation = |flags: &[&str]| {
            let words = ["idtoken-operator", "run"].iter().chain(flags);
            match Cli::try_parse_from(words).unwrap().command {
                Command::Run(args) => args.google.deprecation(),
                _ => panic!("run"),
            }
        };
        assert_eq!(deprecation(&[]), None);
        let warning = deprecation(&["--allow-executable-credentials"]).unwrap();
        assert!(warning.contains("--allow-executable-credentials") && warning.contains("no effect"));
    }

    #[test]
    fn what_is_no_name_of_a_namespace_is_refused() {
        let namespaces = |value: &str| {
            let flag = format!("--namespace={value}");
            let parsed = Cli::try_parse_from(["idtoken-operator", "run", &flag]).ok()?;
            match parsed.command {
                Command::Run(args) => Some(args.namespaces),
                _ => panic!("run"),
            }
        };
        let names = ["shop".to_owned(), "yard-2".to_owned()];
        assert_eq!(namespaces("shop,yard-2").as_deref(), Some(&names[..]));
        let long = "a".repeat(64);
        for wrong in [
            "",
            "shop,",
            ",shop",
            "Shop",
            "a/b",
            "a.b",
            "-a",
            "shop, yard",
            &long,
        ] {
            assert_eq!(namespaces(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn every_flag_has_an_environment_variable_and_a_heading() {
        Cli::command().debug_assert();
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for arg in run
            .get_arguments()
            .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
        {
            assert!(
                arg.get_env().is_some(),
                "--{} has no environment variable",
                arg.get_id()
            );
            assert!(
                arg.get_help_heading().is_some(),
                "--{} has no heading",
                arg.get_id()
            );
        }
    }
}
