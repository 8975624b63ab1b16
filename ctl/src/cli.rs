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
    ///
    /// Takes the way that the operator takes for spec.source.impersonation, with your Application Default Credentials in
    /// place of the operator's. They need roles/iam.serviceAccountOpenIdTokenCreator on the service account.
    ///
    /// Prints the token alone, with a newline only on a terminal; or by --claims what it says.
    #[command(
        override_usage = "kubectl idtoken mint [OPTIONS] --service-account <ACCOUNT> --audience <AUDIENCE>"
    )]
    Mint(crate::commands::mint::MintArgs),

    /// Explain the state of an IdTokenRequest and of its Secret, and what to do next
    ///
    /// Shows its conditions, the claims of the Secret's token and how long it lasts, what is not as the spec asks, and what
    /// to do about each. Never prints the token. You need to get the request; without getting its Secret less is shown.
    Explain(crate::commands::explain::ExplainArgs),

    /// Print the IdTokenGrant that would allow an IdTokenRequest, and nothing more
    ///
    /// For an administrator of the cluster to read and apply: kubectl idtoken grant NAME | kubectl apply -f -
    ///
    /// Says on standard error whether a grant allows it already, where you may list grants.
    Grant(crate::commands::grant::GrantArgs),

    /// Say which IdTokenGrant allows a token, or why none does
    ///
    /// Decides by the operator's code and with what you may read: the grants, which you must be allowed to list, and the
    /// labels of the namespace, where a grant selects by them. Exits with 0 for yes and 1 for no.
    #[command(override_usage = "kubectl idtoken can [OPTIONS] <NAME>\n       \
                                kubectl idtoken can [OPTIONS] --service-account <ACCOUNT> --audience <AUDIENCE>")]
    Can(crate::commands::can::CanArgs),

    /// Ask the operator for a new token now
    ///
    /// Sets the annotation idtoken.dev/renew to the current time. You need to patch the request, and for --wait to get it.
    #[command(override_usage = "kubectl idtoken renew [OPTIONS] <NAME | --all>")]
    Renew(crate::commands::renew::RenewArgs),

    /// List requests with source.federation whose author no admission policy has checked
    ///
    /// The chart's policy lets only those write such a request who may create tokens of its ServiceAccount. It cannot look back: what
    /// was stored before it, or while it was away or changed, is listed here. A time of creation is the API server's own; who wrote
    /// an object cannot be told from the object, so no guess is made.
    ///
    /// You need to list idtokenrequests, validatingadmissionpolicies and validatingadmissionpolicybindings. Exits with 0 where there
    /// are none and 1 where there are.
    Audit(crate::commands::audit::AuditArgs),
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
    fn every_flag_has_a_heading() {
        for command in Cli::command().get_subcommands() {
            for arg in command.get_opts().filter(|arg| arg.get_id() != "help") {
                let name = format!("{} --{}", command.get_name(), arg.get_id());
                assert!(arg.get_help_heading().is_some(), "{name} has no heading");
            }
        }
    }

    /// Every page of Markdown, but for what is built or hidden.
    fn pages(dir: &std::path::Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                found.extend(pages(&path));
            } else if name.ends_with(".md") {
                found.push(std::fs::read_to_string(&path).unwrap());
            }
        }
        found
    }

    #[test]
    fn every_command_that_a_page_names_exists() {
        let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let command = Cli::command();
        let mut named = 0;
        for page in pages(root) {
            for rest in page.split("kubectl idtoken ").skip(1) {
                let line = rest.split(['\n', '`', '|', ';', ')']).next().unwrap_or_default();
                let mut words = line.split_whitespace();
                let Some(verb) = words.next().and_then(|word| word.split('/').next()) else {
                    continue;
                };
                let found = command.find_subcommand(verb);
                let found = found.unwrap_or_else(|| panic!("there is no kubectl idtoken {verb}: {line}"));
                for word in words.filter(|word| word.starts_with('-')) {
                    let flag = word.trim_start_matches('-').split('=').next().unwrap_or_default();
                    let has = found.get_arguments().any(|arg| {
                        arg.get_long() == Some(flag)
                            || arg.get_short().is_some_and(|short| flag == short.to_string())
                    });
                    assert!(
                        has || flag == "help",
                        "kubectl idtoken {verb} has no {word}: {line}"
                    );
                }
                named += 1;
            }
        }
        assert!(named > 10, "only {named} were found");
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
            &["audit", "-A", "-n", "shop"],
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
            &["audit", "-A"],
        ] {
            assert_eq!(usage(right), None, "{right:?}");
        }
    }
}
