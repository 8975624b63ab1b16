//! The command line. The flags of a command are beside the command.
//!
//! Imports all commands; only `main` imports it. Never decides, and never calls an API.

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use idtoken_operator::api::group;

use crate::commands::audit::{self, AuditArgs};
use crate::commands::can::{self, CanArgs};
use crate::commands::completion::{self, CompleteArgs, CompletionArgs};
use crate::commands::doctor::{self, DoctorArgs};
use crate::commands::explain::{self, ExplainArgs};
use crate::commands::grant::{self, GrantArgs};
use crate::commands::mint::{self, MintArgs};
use crate::commands::renew::{self, RenewArgs};
use crate::commands::try_target::{self, TryArgs};

/// Inspect Google ID tokens in Secrets, and who may have them.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-idtoken",
    bin_name = "kubectl idtoken",
    version,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 success or yes, 1 failure or no, 2 invalid usage."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Mint one ID token with your own Google credentials
    ///
    /// Calls Google as the operator does for spec.source.impersonation, but with your Application Default Credentials. They
    /// need roles/iam.serviceAccountOpenIdTokenCreator on the service account.
    ///
    /// Prints only the token, with a newline only on a terminal. With --claims, prints the claims instead.
    #[command(
        override_usage = "kubectl idtoken mint [OPTIONS] --service-account <ACCOUNT> --audience <AUDIENCE>"
    )]
    Mint(Box<MintArgs>),

    /// Explain the state of an IdTokenRequest and its Secret, and what to do next
    ///
    /// Shows the conditions, the claims and the remaining lifetime of the token in the Secret, differences from the spec, and
    /// what to do about them. Never prints the token. You need permission to get the request. Without permission to get its
    /// Secret, the token is not shown.
    ///
    /// Exits with 0 if the request is Ready and 1 if not.
    Explain(ExplainArgs),

    /// Print the IdTokenGrant that allows an IdTokenRequest and nothing else
    ///
    /// For a cluster administrator to review and apply: kubectl idtoken grant NAME | kubectl apply -f -
    ///
    /// Says on standard error whether a grant already allows the request, if you may list grants.
    Grant(GrantArgs),

    /// Check which IdTokenGrant allows a token, or why none does
    ///
    /// Decides with the operator's code. You need permission to list grants, and to get the namespace if a grant selects it
    /// by labels. Grants of the chart's values count too, if you may list the ConfigMap that has them.
    ///
    /// With --filename, decides on the requests in manifests by the grants in them, and calls no cluster.
    ///
    /// Exits with 0 for yes and 1 for no.
    #[command(override_usage = "kubectl idtoken can [OPTIONS] <NAME>\n       \
                                kubectl idtoken can [OPTIONS] --filename <FILE>\n       \
                                kubectl idtoken can [OPTIONS] --service-account <ACCOUNT> --audience <AUDIENCE>")]
    Can(CanArgs),

    /// Request a new token now
    #[command(
        override_usage = "kubectl idtoken renew [OPTIONS] <NAME | --all>",
        long_about = concat!(
            "Request a new token now\n\nSets the annotation ", group!("/renew"), " to the current time. You need permission to patch \
             the request, to get it for --wait, and to list requests for --all."
        )
    )]
    Renew(RenewArgs),

    /// Call the target with the Secret's token, and say what its answer means
    ///
    /// Prints who answered (Google's front end, Identity-Aware Proxy, the application), the status, the row of docs/targets.md that
    /// fits, and the command that fixes it. Never prints the token or the answer's body.
    ///
    /// Calls https:// only, except for loopback addresses, follows no redirect, and sends the token to no other host than the audience's
    /// without --any-host. You need permission to get the request and its Secret; with --from-pod to create, get and delete pods instead.
    ///
    /// Exits with 0 if the answer is 2xx, 1 if it is another or there is none, and 2 if the token may not be sent there.
    #[command(name = "try", override_usage = "kubectl idtoken try [OPTIONS] <NAME> [URL]")]
    Try(Box<TryArgs>),

    /// List grants that grant nothing, and federation requests whose author no policy has checked
    ///
    /// Lists the parts of IdTokenGrants that are invalid for this version. Such a part grants nothing. Run the plugin of the new version
    /// before you upgrade the operator.
    ///
    /// The chart's admission policy lets a user write such a request only if the user may create tokens of its ServiceAccount.
    /// The policy checks writes, not stored objects. So this command lists the requests that were created before the policy was installed
    /// or last changed. Only the creation time counts, because the API server sets it: an object does not prove who wrote it.
    ///
    /// You need permission to list idtokengrants, idtokenrequests, validatingadmissionpolicies and validatingadmissionpolicybindings.
    ///
    /// Exits with 0 if there are none and 1 if there are some.
    Audit(AuditArgs),

    /// Check whether the operator's installation works
    ///
    /// Checks the CRDs, the operator's Deployments, pods and Leases, the leader's metrics (its last tokens and rejections, egress, clock
    /// and watches), the admission policies, the grants, the requests and the Prometheus objects, and says how to fix each problem. Calls nothing but the API server, and writes nothing.
    ///
    /// Works with any rights, and says what it could not see. For the metrics you need permission to get pods/proxy.
    ///
    /// Exits with 1 if a check fails (✗), otherwise with 0.
    Doctor(DoctorArgs),

    /// Print the completion of a shell
    ///
    /// Names of requests and namespaces are completed from the cluster. kubectl's own completion completes kubectl idtoken, in every
    /// shell, if the program kubectl_complete-idtoken is in PATH: a link of that name to this program, or what
    /// kubectl idtoken completion kubectl prints.
    Completion(CompletionArgs),

    /// What shells ask
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete(CompleteArgs),
}

impl Command {
    /// Runs the command and returns the exit code of the process.
    ///
    /// # Errors
    /// Those of the command.
    pub(crate) async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Mint(args) => mint::run(*args).await,
            Self::Explain(args) => explain::run(args).await,
            Self::Grant(args) => grant::run(args).await,
            Self::Can(args) => can::run(args).await,
            Self::Renew(args) => renew::run(args).await,
            Self::Try(args) => try_target::run(*args).await,
            Self::Audit(args) => audit::run(args).await,
            Self::Doctor(args) => doctor::run(args).await,
            Self::Completion(args) => completion::run(&args),
            Self::Complete(args) => completion::complete(args, Cli::command()).await,
        }
    }
}

#[cfg(test)]
mod tests {
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

    /// Every Markdown page outside of hidden folders and `target`.
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
                let line = rest
                    .split(['\n', '`', '|', ';', ')', '"'])
                    .next()
                    .unwrap_or_default();
                let mut words = line.split_whitespace();
                let Some(verb) = words.next().and_then(|word| word.split('/').next()) else {
                    continue;
                };
                let found = command.find_subcommand(verb);
                let found = found.unwrap_or_else(|| panic!("there is no kubectl idtoken {verb}: {line}"));
                for word in words.filter(|word| word.len() > 1 && word.starts_with('-')) {
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
        assert!(named > 10, "found only {named}");
    }

    fn usage(args: &[&str]) -> Option<i32> {
        let args = std::iter::once("kubectl-idtoken").chain(args.iter().copied());
        Cli::try_parse_from(args).err().map(|error| error.exit_code())
    }

    #[test]
    fn invalid_usage_is_2() {
        for invalid in [
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
            &["can", "billing", "--as-user-extra", "team"],
            &["explain", "a", "--insecure-skip-tls-verify=maybe"],
            &["explain", "a", "--request-timeout", "99999999999999999999h"],
            &["renew", "a", "--wait", "--timeout", "99999999999999999999h"],
            &["completion", "tcsh"],
            &["try"],
            &["try", "a", "--method", "get"],
            &["try", "a", "--method", "CONNECT"],
            &["try", "a", "--header", "Host: evil.example"],
            &["try", "a", "--header", "no colon"],
            &["try", "a", "--header", "X-A: b\r\nHost: evil.example"],
            &["try", "a", "--authorization-header", "Host"],
            &["try", "a", "--from-pod"],
        ] {
            assert_eq!(usage(invalid), Some(2), "{invalid:?}");
        }
        for valid in [
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
            &["audit", "-A", "-n", "shop", "-o", "yaml"],
            &["audit", "-A", "--request-timeout", "0"],
            &[
                "try",
                "a",
                "https://h",
                "--method=POST",
                "--header",
                "X-A: b",
                "--any-host",
            ],
            &["can", "-f", "a.yaml", "-f", "-"],
            &[
                "explain",
                "a",
                "-s",
                "https://h",
                "--insecure-skip-tls-verify",
                "--as=j",
            ],
        ] {
            assert_eq!(usage(valid), None, "{valid:?}");
        }
    }
}
