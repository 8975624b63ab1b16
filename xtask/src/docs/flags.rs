//! docs/flags.md: a table for each heading of `idtoken-operator run --help`.

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, CommandFactory};
use idtoken_operator::cli::Cli;

use super::{head, notice, row};

pub(super) fn page() -> Result<String> {
    let command = Cli::command();
    let run = command
        .find_subcommand("run")
        .context("there is no command run")?;
    let mut headings: Vec<&str> = Vec::new();
    let mut args: Vec<&Arg> = Vec::new();
    for arg in run.get_arguments().filter(|arg| arg.get_env().is_some()) {
        args.push(arg);
        let heading = arg.get_help_heading().unwrap_or("Other");
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let mut page = format!("# Flags of the operator\n\n{}\n", notice("src/cli.rs"));
    page.push_str(
        "`idtoken-operator run` takes these flags. Each flag has an environment variable, and a flag takes precedence over its variable. For a \
         repeatable flag, the variable has a list with commas. A flag without a value is a switch, and is off by default.\n",
    );
    for heading in headings {
        page.push_str(&format!("\n## {heading}\n\n"));
        page.push_str(&head(&["Flag", "Variable", "Default", "Meaning"]));
        for arg in args.iter().filter(|arg| arg.get_help_heading() == Some(heading)) {
            page.push_str(&flag(arg)?);
        }
    }
    page.push_str(OTHERS);
    Ok(page)
}

fn flag(arg: &Arg) -> Result<String> {
    let long = arg
        .get_long()
        .with_context(|| format!("{} has no flag", arg.get_id()))?;
    let variable = arg.get_env().unwrap_or_default().to_string_lossy();
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue) || default(arg) == "false";
    let shown = match is_switch {
        true => format!("`--{long}`"),
        false => format!("`--{long}={}`", value(arg)),
    };
    let default = match default(arg).as_str() {
        "" | "false" => String::new(),
        default => format!("`{default}`"),
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let variable = format!("`{variable}`");
    Ok(row([shown.as_str(), &variable, &default, &help]))
}

fn default(arg: &Arg) -> String {
    let values: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    values.join(",")
}

/// The placeholder for a value of the flag: its possible values, or `…`.
fn value(arg: &Arg) -> String {
    let possible: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    match possible.is_empty() {
        true => "…".to_owned(),
        false => possible.join("|"),
    }
}

/// The section of environment variables that other programs define.
const OTHERS: &str = "
## Variables of others

| Variable | Meaning |
|---|---|
| `KUBECONFIG` | The kubeconfig of the cluster; absent means `~/.kube/config` or, in a pod, its ServiceAccount |
| `GOOGLE_APPLICATION_CREDENTIALS` | The credential file, where `--credentials-file` is absent |
| `GOOGLE_CLOUD_QUOTA_PROJECT` | The project whose quota the calls of the operator's own credentials count for, before the credential file's `quota_project_id`. Calls of `federation` never count for it |
| `GCE_METADATA_HOST` | `host[:port]` of the metadata server, in place of `169.254.169.254` |
| `HTTPS_PROXY`, `NO_PROXY` | The proxy for Google's endpoints, and for the API server of a kubeconfig without a `proxy-url`. The metadata server and loopback are never called through a proxy |
| `SSL_CERT_FILE` | The trusted certificates in place of the platform's; `--ca-file` adds to them |
";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_there_with_its_variable_and_default() {
        let page = page().unwrap();
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for arg in run.get_arguments().filter(|arg| arg.get_id() != "help") {
            assert!(
                page.contains(&format!("| `--{}", arg.get_long().unwrap())),
                "{}",
                arg.get_id()
            );
        }
        assert!(
            page.contains("| `--log-format=text\\|json` | `IDTOKEN_LOG_FORMAT` | `text` |"),
            "{page}"
        );
        assert!(
            page.contains("| `--leader-elect` | `IDTOKEN_LEADER_ELECT` |  |"),
            "{page}"
        );
    }
}
