//! The files that are generated from the chart: the schema and table of its values, config/, manifests for kubectl and the tests, and
//! examples/try/.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use idtoken_operator::api::GROUP;
use idtoken_testenv::{Progress, binaries};
use serde_json::Value;

use crate::crds::{difference, shown, with_between};
use crate::progress::Output;
use crate::{values, values_schema};

/// A file of config/: its templates and values.
#[derive(Clone, Copy)]
struct File {
    name: &'static str,
    about: &'static str,
    /// Starts with the Namespace, so that it can be applied to an empty cluster.
    namespace: bool,
    templates: &'static [&'static str],
    values: &'static [&'static str],
}

const OPERATOR: &[&str] = &["serviceaccount", "rbac"];

/// Where the images are while the chart's values name no repository.
const REGISTRY: &str = "registry.example.com";

const INSTALL: File = File {
    name: "install.yaml",
    about: "Everything that the chart installs by default, in one file. Replace the image's registry.",
    namespace: true,
    templates: &[
        "crds",
        "serviceaccount",
        "configmaps",
        "rbac",
        "roles",
        "admission/federation-authors",
        "admission/namespace-labels",
        "admission/secret-writes",
        "admission/token-requests",
        "metrics/service",
        "deployment",
    ],
    values: &[],
};

/// The chart's part of [`TRY`].
const TRIED: File = File {
    name: TRY,
    about: "The operator, an emulated Google and a request, in one file for kubectl apply: docs/tutorial.md. Replace the images' registry.",
    namespace: false,
    ..INSTALL
};
const TRY: &str = "examples/try/try.yaml";

const FILES: &[File] = &[
    File {
        name: "rbac.yaml",
        about: "What the operator may do where it serves the whole cluster, without source.federation.",
        namespace: true,
        templates: OPERATOR,
        values: &[],
    },
    File {
        name: "rbac-federation.yaml",
        about: "What the operator may do where it serves the whole cluster, source.federation for every ServiceAccount.",
        namespace: true,
        templates: OPERATOR,
        values: &["federation.mode=enabled"],
    },
    File {
        name: "rbac-federation-strict.yaml",
        about: "What the operator may do where it serves the whole cluster, source.federation only where tenants allow it.",
        namespace: true,
        templates: OPERATOR,
        values: &["federation.mode=strict"],
    },
    File {
        name: "rbac-namespaces.yaml",
        about: "What the operator may do where it serves the namespaces shop and yard: nothing in the cluster's scope.",
        namespace: true,
        templates: OPERATOR,
        values: &["watchNamespaces={shop,yard}"],
    },
    File {
        name: "roles.yaml",
        about: "What the built-in ClusterRoles view, edit and admin add for IdTokenRequests.",
        namespace: false,
        templates: &["roles"],
        values: &[],
    },
    File {
        name: "admission.yaml",
        about: "The admission policies, for an operator that is installed by one of rbac*.yaml.",
        namespace: false,
        templates: &[
            "admission/federation-authors",
            "admission/namespace-labels",
            "admission/secret-writes",
            "admission/token-requests",
        ],
        values: &[],
    },
    INSTALL,
];

/// Paths and the content of the files.
type Files = Vec<(PathBuf, String)>;

/// Lines that make sense only in Helm's releases.
const HELM_ONLY: [&str; 3] = [
    "# Source: ",
    "app.kubernetes.io/managed-by: Helm",
    "app.kubernetes.io/version: ",
];
/// A label that says nothing without a release, but for the Deployment: there it is in the selector, which cannot be changed later.
const INSTANCE: &str = "app.kubernetes.io/instance: ";

/// The lines around the table of values in the chart's README.
const TABLE: [&str; 2] = ["<!-- values -->\n", "<!-- end of values -->\n"];

/// Writes all files.
///
/// # Errors
/// When helm cannot be built or refuses the chart, or a file cannot be written.
pub(crate) async fn write(output: &Output) -> Result<()> {
    // The schema first: helm validates the values by it.
    write_files(output, of_values()?)?;
    write_files(output, rendered(output).await?)
}

fn write_files(output: &Output, files: Files) -> Result<()> {
    for (path, text) in files {
        let step = output.begin("manifests");
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        step.done(&format!("{} is written", shown(&path)));
    }
    Ok(())
}

/// Compares all files with the chart.
///
/// # Errors
/// When helm cannot be built or refuses the chart, or a file is missing or differs: with the first differences.
pub(crate) async fn check(output: &Output) -> Result<()> {
    check_files(of_values()?)?;
    check_files(rendered(output).await?)?;
    output
        .begin("manifests")
        .done("config/, examples/try/ and the schema and table of the chart's values are up to date");
    Ok(())
}

fn check_files(files: Files) -> Result<()> {
    for (path, wanted) in files {
        let found = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: run `cargo xtask manifests`", shown(&path)))?;
        if found != wanted {
            bail!(
                "{} differs from the chart: run `cargo xtask manifests` and commit it\n{}",
                shown(&path),
                difference(&found, &wanted)
            );
        }
    }
    Ok(())
}

async fn rendered(output: &Output) -> Result<Files> {
    // The builder shows its own progress on stderr.
    let step = output.begin("helm");
    let helm = tokio::task::spawn_blocking(|| binaries::HELM.build(&["helm"], Progress::Stderr)).await??;
    step.done(&format!("helm {} is built", binaries::HELM_VERSION));
    let helm = helm.join("helm");
    let values = std::fs::read_to_string(crate::workspace().join("charts/idtoken-operator/values.yaml"))?;
    let registry = registry(&values)?;
    let config = |file: &File| {
        let path = crate::workspace().join("config").join(file.name);
        Ok((path, render(&helm, file, &registry, None)?))
    };
    let mut files = FILES.iter().map(config).collect::<Result<Files>>()?;
    files.push((crate::workspace().join(TRY), tried(&helm, &registry)?));
    Ok(files)
}

/// The registry in the chart's values: an owner decides it there.
fn registry(values: &str) -> Result<String> {
    let values: Value = serde_saphyr::from_str(values).context("values.yaml")?;
    let repository = values["image"]["repository"]
        .as_str()
        .context("values.yaml has no image.repository")?;
    match repository {
        "" => Ok(REGISTRY.to_owned()),
        _ => repository
            .strip_suffix("/idtoken-operator")
            .map(str::to_owned)
            .with_context(|| format!("{repository} does not end with /idtoken-operator")),
    }
}

/// What install.yaml has, with a sidecar that emulates Google, and an example.
fn tried(helm: &Path, registry: &str) -> Result<String> {
    let workspace = crate::workspace();
    let text = render(
        helm,
        &TRIED,
        registry,
        Some("xtask/src/manifests/try-values.yaml"),
    )?;
    let containers = "\n      containers:\n";
    let (about, installed) = text.split_once("---\n").context("there are no objects")?;
    let (head, tail) = installed
        .split_once(containers)
        .context("there is no Deployment")?;
    let request = std::fs::read_to_string(workspace.join("examples/idtokenrequest.yaml"))?;
    let request: String = request.lines().map(|line| format!("    {line}\n")).collect();
    let sidecar = include_str!("manifests/try-sidecar.yaml")
        .replace("REGISTRY", registry)
        .replace("VERSION", env!("CARGO_PKG_VERSION"));
    let after = include_str!("manifests/try-after.yaml")
        .replace("KUBERNETES", binaries::KUBERNETES_VERSION)
        .replace("GROUP", GROUP)
        .replace("EXAMPLE", &request);
    let before = include_str!("manifests/try-before.yaml");
    let containers = containers.trim_start_matches('\n');
    Ok(format!(
        "{about}{before}---\n{head}\n{sidecar}{containers}{tail}{after}"
    ))
}

/// The schema of the values, and the README with their table.
fn of_values() -> Result<Files> {
    let chart = crate::workspace().join("charts/idtoken-operator");
    let read = |name: &str| {
        let path = chart.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let entries = values::parse(&read("values.yaml")?)?;
    let readme = read("README.md")?;
    let readme = with_between(&readme, TABLE, &values::table(&entries))
        .context("the chart's README.md has no place for the table of values")?;
    Ok(vec![
        (chart.join("values.schema.json"), values_schema::text(&entries)?),
        (chart.join("README.md"), readme),
    ])
}

/// The text of a file, with the values of another one.
fn render(helm: &Path, file: &File, registry: &str, values: Option<&str>) -> Result<String> {
    let chart = crate::workspace().join("charts/idtoken-operator");
    let mut command = Command::new(helm);
    command.args(["template", "idtoken-operator"]).arg(&chart).args([
        "--namespace",
        "idtoken-system",
        "--kube-version",
        "1.30.0",
        "--set",
        &format!("image.repository={registry}/idtoken-operator"),
    ]);
    for template in file.templates {
        command.args(["--show-only", &format!("templates/{template}.yaml")]);
    }
    for value in file.values {
        command.args(["--set", value]);
    }
    if let Some(values) = values {
        command.arg("--values").arg(crate::workspace().join(values));
    }
    let done = command.output().context("cannot run helm")?;
    if !done.status.success() {
        bail!(
            "helm refuses the chart for {}: {}",
            file.name,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    let rendered = String::from_utf8(done.stdout).context("helm wrote something that is not text")?;
    let mut text = format!(
        "# {}\n# Generated by `cargo xtask manifests` from charts/idtoken-operator; not edited by hand.\n",
        file.about
    );
    if file.namespace {
        text.push_str("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: idtoken-system\n");
    }
    for line in rendered.lines() {
        let starts = |start: &&str| line.trim_start().starts_with(*start);
        let instance = starts(&INSTANCE) && !file.templates.contains(&"deployment");
        if !instance && !HELM_ONLY.iter().any(starts) {
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_that_of_the_chart() {
        let of = |repository: &str| registry(&format!("image: {{repository: {repository}}}")).ok();
        assert_eq!(of("\"\"").as_deref(), Some(REGISTRY));
        assert_eq!(
            of("ghcr.io/owner/idtoken-operator").as_deref(),
            Some("ghcr.io/owner")
        );
        assert_eq!(of("ghcr.io/owner/operator"), None);
        assert_eq!(registry("image: {}").ok(), None);
    }
}
