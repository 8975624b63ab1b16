//! The command line. Each command's own flags are beside the command.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::commands::audit::{self, AuditArgs};
use crate::commands::can::{self, CanArgs};
use crate::commands::explain::{self, ExplainArgs};
use crate::commands::grant::{self, GrantArgs};
use crate::commands::mint::{self, MintArgs};
use crate::commands::renew::{self, RenewArgs};

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
    Mint(MintArgs),

    /// Explain the state of an IdTokenRequest and of its Secret, and what to do next
    ///
    /// Shows its conditions, the claims of the Secret's token and how long it lasts, what is not as the spec asks, and what
    /// to do about each. Never prints the token. You need to get the request; without getting its Secret less is shown. Exits with
    /// 0 if the request is Ready and 1 if not.
    Explain(ExplainArgs),

    /// Print the IdTokenGrant that would allow an IdTokenRequest, and nothing more
    ///
    /// For an administrator of the cluster to read and apply: kubectl idtoken grant NAME | kubectl apply -f -
    ///
    /// Says on standard error whether a grant allows it already, where you may list grants.
    Grant(GrantArgs),

    /// Say which IdTokenGrant allows a token, or why none does
    ///
    /// Decides by the operator's code and with what you may read: the grants, which you must be allowed to list, and the
    /// labels of the namespace, where a grant selects by them. Exits with 0 for yes and 1 for no.
    #[command(override_usage = "kubectl idtoken can [OPTIONS] <NAME>\n       \
                                kubectl idtoken can [OPTIONS] --service-account <ACCOUNT> --audience <AUDIENCE>")]
    Can(CanArgs),

    /// Ask the operator for a new token now
    ///
    /// Sets the annotation idtoken.dev/renew to the current time. You need to patch the request, and for --wait to get it.
    #[command(override_usage = "kubectl idtoken renew [OPTIONS] <NAME | --all>")]
    Renew(RenewArgs),

    /// List requests with source.federation whose author no admission policy has checked
    ///
    /// The chart's policy lets only those write such a request who may create tokens of its ServiceAccount. It cannot look back: what
    /// was stored before it, or while it was away or changed, is listed here. A time of creation is the API server's own; who wrote
    /// an object cannot be told from the object, so no guess is made.
    ///
    /// You need to list idtokenrequests, validatingadmissionpolicies and validatingadmissionpolicybindings. Exits with 0 where there
    /// are none and 1 where there are.
    Audit(AuditArgs),
}

impl Command {
    /// Runs the command and returns the exit code of the process.
    ///
    /// # Errors
    /// Those of the command.
    pub(crate) async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Mint(args) => mint::run(args).await,
            Self::Explain(args) => explain::run(args).await,
            Self::Grant(args) => grant::run(args).await,
            Self::Can(args) => can::run(args).await,
            Self::Renew(args) => renew::run(args).await,
            Self::Audit(args) => audit::run(args).await,
        }
    }
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
            &["explain", "a", "--request-timeout", "99999999999999999999h"],
            &["renew", "a", "--wait", "--timeout", "99999999999999999999h"],
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
            &["audit", "-A", "--request-timeout", "0"],
        ] {
            assert_eq!(usage(right), None, "{right:?}");
        }
    }
}
