//! `completion`: prints the completion of a shell. `__complete`: what these and kubectl's completion ask.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Command, FromArgMatches, ValueEnum};

use crate::args::{ClusterArgs, RequestTimeout};
use crate::decisions::completion::{self, Wanted};
use crate::kubernetes::client::KubeClient;
use crate::output;

/// Longest wait for names: the user waits for the shell.
const NAMES_LIMIT: Duration = Duration::from_secs(3);

/// Flags of `completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell; kubectl prints the program kubectl_complete-idtoken
    shell: Shell,
}

/// What completes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    /// For kubectl-idtoken in bash
    Bash,
    /// For kubectl-idtoken in zsh
    Zsh,
    /// For kubectl-idtoken in fish
    Fish,
    /// For kubectl-idtoken in PowerShell
    Powershell,
    /// For kubectl idtoken, in every shell that completes kubectl
    Kubectl,
}

/// Words of a command line, of which the last is unfinished.
#[derive(Debug, Args)]
pub(crate) struct CompleteArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Prints the completion of a shell.
///
/// # Errors
/// Standard output is closed.
pub(crate) fn run(args: &CompletionArgs) -> Result<ExitCode> {
    output::verbatim(match args.shell {
        Shell::Bash => include_str!("../output/completions/kubectl-idtoken.bash"),
        Shell::Zsh => include_str!("../output/completions/kubectl-idtoken.zsh"),
        Shell::Fish => include_str!("../output/completions/kubectl-idtoken.fish"),
        Shell::Powershell => include_str!("../output/completions/kubectl-idtoken.ps1"),
        Shell::Kubectl => include_str!("../output/completions/kubectl_complete-idtoken.sh"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what may follow the words, by the definition `root` of the command line. Names that cannot be read are no candidates.
///
/// # Errors
/// Standard output is closed.
pub(crate) async fn complete(args: CompleteArgs, mut root: Command) -> Result<ExitCode> {
    root.build();
    let found = completion::complete(&root, &args.words);
    let candidates = match found.wanted {
        Wanted::Words(ref words) => words.clone(),
        Wanted::Requests => completion::names(names(&args.words, false).await, &found.typed),
        Wanted::Namespaces => completion::names(names(&args.words, true).await, &found.typed),
        Wanted::Files | Wanted::Anything => Vec::new(),
    };
    let is_file = found.wanted == Wanted::Files;
    output::verbatim(&completion::lines(&candidates, &found.before, is_file))?;
    Ok(ExitCode::SUCCESS)
}

/// Names of requests or namespaces of the cluster that the words' flags lead to; none if they cannot be read in time.
async fn names(words: &[String], namespaces: bool) -> Vec<String> {
    let command = ClusterArgs::augment_args(Command::new("kubectl-idtoken").no_binary_name(true));
    let flags = completion::cluster_flags(&command, words);
    let parsed = command.try_get_matches_from(flags).ok();
    let Some(mut cluster) = parsed.and_then(|matches| ClusterArgs::from_arg_matches(&matches).ok()) else {
        return Vec::new();
    };
    cluster.request_timeout = RequestTimeout(Some(NAMES_LIMIT));
    let Ok(client) = KubeClient::connect(&cluster) else {
        return Vec::new();
    };
    let found = match namespaces {
        true => client.namespace_names().await,
        false => client.request_names().await,
    };
    found.unwrap_or_default()
}
