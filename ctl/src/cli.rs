//! The command line. Each command's own flags are beside the command; those for the cluster are here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Looks at Google ID tokens in Secrets, and at who may have them.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-idtoken",
    bin_name = "kubectl idtoken",
    version,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 success or yes, 1 failure or no, 2 wrong usage."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Mint one ID token with your own Google credentials, by the operator's code
    Mint(crate::mint::MintArgs),
    /// Explain the state of an IdTokenRequest and of its Secret, and what to do next
    Explain(crate::explain::ExplainArgs),
    /// Print the IdTokenGrant that would allow an IdTokenRequest, and nothing more
    Grant(crate::grant::GrantArgs),
    /// Say which IdTokenGrant allows a token, or why none does
    Can(crate::can::CanArgs),
    /// Ask the operator for a new token now
    Renew(crate::renew::RenewArgs),
}

/// Which cluster, as whom, and where in it; as kubectl's own flags.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Namespace of the request [default: that of the context]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,

    /// Path of the kubeconfig [env: KUBECONFIG, which may list several] [default: ~/.kube/config, or in a pod its
    /// ServiceAccount]
    // Not by clap's `env`: the variable can be a list of paths.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// Longest time to wait for one answer of the API server, such as 30s
    #[arg(long, value_name = "DURATION", env = "IDTOKEN_REQUEST_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub(crate) request_timeout: Duration,
}

/// How a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Reads a Go duration such as `90s` or `1h30m`, as kubectl writes them.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed: kube::core::Duration = text
        .parse()
        .map_err(|error| format!("is no duration such as 30s or 1m30s: {error}"))?;
    let duration = Duration::from(parsed);
    if parsed.is_negative() || duration.is_zero() {
        return Err("must be more than zero".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "0s", "-1s", "1 s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    fn usage(args: &[&str]) -> Option<i32> {
        let args = std::iter::once("kubectl-idtoken").chain(args.iter().copied());
        Cli::try_parse_from(args).err().map(|error| error.exit_code())
    }

    #[test]
    fn wrong_usage_is_2() {
        for wrong in [
            &["mint", "--audience", "a"][..],
            &["can"],
            &["can", "--audience", "a"],
            &[
                "can",
                "billing",
                "--audience",
                "a",
                "--service-account",
                "s@d.example",
            ],
            &["renew"],
            &["renew", "billing", "--all"],
            &["renew", "billing", "--timeout", "1s"],
            &["grant"],
            &["explain", "a", "-o", "wide"],
        ] {
            assert_eq!(usage(wrong), Some(2), "{wrong:?}");
        }
        for right in [
            &["can", "billing"][..],
            &[
                "can",
                "--audience",
                "a",
                "--service-account",
                "s@d.example",
                "--delegate",
                "t@d.example",
            ],
            &["renew", "--all", "--wait", "--timeout", "1s"],
            &["explain", "a", "-n", "shop", "-o", "json"],
        ] {
            assert_eq!(usage(right), None, "{right:?}");
        }
    }
}
