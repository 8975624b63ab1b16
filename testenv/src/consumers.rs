//! Programs that read tokens from files, and CRDs of other projects, for the tests of the examples.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::go_module::{GoModule, GoTool};
use crate::{Process, Progress, PythonEnvironment, RunDir};

/// Prometheus v0.316.0 (3.16), and promtool.
pub const PROMETHEUS: GoModule = GoModule {
    name: "prometheus",
    go_mod: include_str!("../tools/prometheus/go.mod"),
    go_sum: include_str!("../tools/prometheus/go.sum"),
    files: &[],
    ldflags: "-s -w",
    // The tests need only static targets, and the service discovery of all clouds is most of the build.
    tags: "remove_all_sd",
    optimized: false,
    tools: &[
        GoTool {
            name: "prometheus",
            package: "github.com/prometheus/prometheus/cmd/prometheus",
        },
        GoTool {
            name: "promtool",
            package: "github.com/prometheus/prometheus/cmd/promtool",
        },
    ],
};

/// kube-state-metrics v2.20.0.
pub const KUBE_STATE_METRICS: GoModule = GoModule {
    name: "kube-state-metrics",
    go_mod: include_str!("../tools/kube-state-metrics/go.mod"),
    go_sum: include_str!("../tools/kube-state-metrics/go.sum"),
    files: &[],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "kube-state-metrics",
        package: "k8s.io/kube-state-metrics/v2",
    }],
};

/// An OpenTelemetry Collector v0.165.0 with the OTLP receiver, the OTLP/HTTP exporter and `bearertokenauth`.
pub const OTELCOL: GoModule = GoModule {
    name: "otelcol",
    go_mod: include_str!("../tools/otelcol/go.mod"),
    go_sum: include_str!("../tools/otelcol/go.sum"),
    files: &[("main.go", include_str!("../tools/otelcol/main.go"))],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "otelcol",
        package: ".",
    }],
};

/// Caddy v2.11.9.
pub const CADDY: GoModule = GoModule {
    name: "caddy",
    go_mod: include_str!("../tools/caddy/go.mod"),
    go_sum: include_str!("../tools/caddy/go.sum"),
    files: &[],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "caddy",
        package: "github.com/caddyserver/caddy/v2/cmd/caddy",
    }],
};

/// Reads the recipes of `docs/connecting-services.md` by the code of Alertmanager v0.34.1, vmagent v1.147.0, Argo CD notifications v0.5.0 and
/// Envoy's API v1.40.0. Its go.mod has the versions of Prometheus', so that their common packages are compiled once.
pub const RECIPES: GoModule = GoModule {
    name: "recipes",
    go_mod: include_str!("../tools/recipes/go.mod"),
    go_sum: include_str!("../tools/recipes/go.sum"),
    files: &[("main.go", include_str!("../tools/recipes/main.go"))],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "recipes",
        package: ".",
    }],
};

/// The MCP SDK for Python, and PowerShell's grammar.
pub const RECIPES_IN_PYTHON: PythonEnvironment = PythonEnvironment {
    name: "recipes",
    requirements: include_str!("../tools/recipes/requirements.txt"),
};

const CRDS: GoModule = GoModule {
    name: "crds",
    go_mod: include_str!("../tools/crds/go.mod"),
    go_sum: include_str!("../tools/crds/go.sum"),
    files: &[],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "controller-gen",
        package: "sigs.k8s.io/controller-tools/cmd/controller-gen",
    }],
};

/// The Go packages with the types of other projects' kinds.
const TYPES: [&str; 4] = [
    "github.com/fluxcd/kustomize-controller/api/v1",
    "github.com/fluxcd/notification-controller/api/v1beta3",
    "github.com/fluxcd/source-controller/api/v1",
    "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1",
];

/// Other projects' kinds in the examples, the pages and the chart: group and plural.
const KINDS: [(&str, &str); 7] = [
    ("kustomize.toolkit.fluxcd.io", "kustomizations"),
    ("monitoring.coreos.com", "podmonitors"),
    ("monitoring.coreos.com", "prometheusrules"),
    ("monitoring.coreos.com", "servicemonitors"),
    ("notification.toolkit.fluxcd.io", "alerts"),
    ("notification.toolkit.fluxcd.io", "providers"),
    ("source.toolkit.fluxcd.io", "gitrepositories"),
];

/// Builds the programs of this module that are not built yet: about 10 minutes of processor time, once. Blocks.
///
/// # Errors
/// When Go is missing, too old or fails.
pub fn build_all(progress: Progress) -> Result<()> {
    for module in [CRDS, PROMETHEUS, KUBE_STATE_METRICS, OTELCOL, CADDY, RECIPES] {
        let names: Vec<_> = module.tools.iter().map(|tool| tool.name).collect();
        module.build(&names, progress)?;
    }
    Ok(())
}

/// The CustomResourceDefinitions of the Prometheus operator and of Flux that the examples, the pages and the chart use, as YAML
/// documents. controller-gen generates them from the projects' own Go types, as in those projects.
///
/// # Errors
/// When controller-gen cannot be built or fails.
pub async fn foreign_crds(progress: Progress) -> Result<Vec<String>> {
    let build = move || anyhow::Ok((CRDS.build(&["controller-gen"], progress)?, CRDS.source_dir()?));
    let (tools, sources) = tokio::task::spawn_blocking(build).await??;
    let scratch = RunDir::create("crds")?;
    let out = scratch.path().join("out");
    let mut command = std::process::Command::new(tools.join("controller-gen"));
    command
        .arg("crd")
        .args(TYPES.map(|package| format!("paths={package}")))
        .arg(format!("output:crd:dir={}", out.display()))
        .current_dir(sources)
        .env("GOFLAGS", "-mod=readonly")
        .env("GOWORK", "off");
    let process = Process::spawn("controller-gen", &command, scratch.path())?;
    let status = process.wait(std::time::Duration::from_secs(300)).await?;
    anyhow::ensure!(status.success(), "controller-gen failed:\n{}", process.log_tail());
    let read = |(group, plural): (&str, &str)| {
        let path: PathBuf = out.join(format!("{group}_{plural}.yaml"));
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    KINDS.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_have_the_documented_versions() {
        assert!(
            PROMETHEUS
                .go_mod
                .contains("github.com/prometheus/prometheus v0.316.0 ")
        );
        assert!(
            KUBE_STATE_METRICS
                .go_mod
                .contains("k8s.io/kube-state-metrics/v2 v2.20.0 ")
        );
        assert!(
            OTELCOL
                .go_mod
                .contains("extension/bearertokenauthextension v0.165.0\n")
        );
        assert!(CADDY.go_mod.contains("github.com/caddyserver/caddy/v2 v2.11.9 "));
        for module in [
            "github.com/prometheus/alertmanager v0.34.1\n",
            "github.com/VictoriaMetrics/VictoriaMetrics v1.147.0\n",
            "github.com/argoproj/notifications-engine v0.5.0\n",
            "github.com/envoyproxy/go-control-plane/envoy v1.40.0\n",
        ] {
            assert!(RECIPES.go_mod.contains(module), "{module}");
        }
    }
}
