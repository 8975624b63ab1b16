//! `cargo xtask test`: every test of the workspace, with the real control plane and all other programs in place before cargo starts.

use std::cell::{Cell, RefCell};

use anyhow::{Context, Result, bail};
use idtoken_testenv::{Progress, binaries, consumers};

use crate::output::Output;
use crate::{cargo, crds};

/// Runs the tests.
///
/// # Errors
/// When a test fails, or what the tests need cannot be built.
pub(crate) async fn run(output: &Output, unit: bool, filter: Option<&str>) -> Result<()> {
    crds::check(output)?;
    let mut cargo = cargo::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]);
    if unit {
        cargo.args(["--lib", "--bins"]);
    } else {
        let assets = control_plane(output).await?;
        // So that no test looks for it, or builds it, again.
        cargo.env(
            "KUBEBUILDER_ASSETS",
            assets.etcd.parent().context("etcd is in no folder")?,
        );
        consumers(output).await?;
        chart_tools(output).await?;
        // Tests of the whole start the programs of other packages, which cargo test does not build.
        cargo::build_programs(output).await?;
    }
    cargo.args(filter);

    let step = output.begin("cargo test");
    let (suites, passed) = (Cell::new(0_u32), Cell::new(0_u32));
    let failed = RefCell::new(Vec::new());
    let result = cargo::run(cargo, &step, |line| {
        if let Some(count) = counted(line) {
            suites.set(suites.get() + 1);
            passed.set(passed.get() + count);
        }
        if let Some(name) = failing(line) {
            failed.borrow_mut().push(name.to_owned());
        }
        if is_news(line) {
            output.line(line);
        }
    })
    .await;
    let failed = failed.into_inner();
    match result {
        Ok(_) if passed.get() == 0 => bail!("no test ran: is the filter right?"),
        Ok(_) => {
            step.done(&format!(
                "{} tests passed in {} suites",
                passed.get(),
                suites.get()
            ));
            Ok(())
        }
        Err(error) if failed.is_empty() => Err(error),
        Err(_) => bail!("{} tests failed:\n  {}", failed.len(), failed.join("\n  ")),
    }
}

/// Finds or builds etcd, kube-apiserver and kubectl.
///
/// # Errors
/// When they can be neither found nor built.
pub(crate) async fn control_plane(output: &Output) -> Result<binaries::Assets> {
    // The builder shows its own progress on stderr.
    let step = output.begin("etcd, kube-apiserver and kubectl");
    let assets = tokio::task::spawn_blocking(|| binaries::locate(Progress::Stderr)).await??;
    let dir = assets.etcd.parent().unwrap_or(&assets.etcd);
    let dir = dir.strip_prefix(crate::workspace()).unwrap_or(dir);
    step.done(&format!(
        "etcd, kube-apiserver and kubectl are in {}",
        dir.display()
    ));
    Ok(assets)
}

/// Builds the programs of others that the examples are tested with, where they are not built yet.
///
/// # Errors
/// When Go is missing or fails.
async fn consumers(output: &Output) -> Result<()> {
    let step =
        output.begin("Prometheus, kube-state-metrics, OpenTelemetry Collector, Caddy and controller-gen");
    tokio::task::spawn_blocking(|| consumers::build_all(Progress::Stderr)).await??;
    step.done("Prometheus, kube-state-metrics, OpenTelemetry Collector, Caddy and controller-gen are built");
    Ok(())
}

/// Builds what the chart is tested with, where it is not built yet.
///
/// # Errors
/// When Go is missing or fails.
async fn chart_tools(output: &Output) -> Result<()> {
    let step = output.begin("Helm 3, Helm 4 and kubeconform");
    tokio::task::spawn_blocking(|| {
        binaries::HELM.build(&["helm"], Progress::Stderr)?;
        binaries::HELM_4.build(&["helm"], Progress::Stderr)?;
        binaries::KUBECONFORM.build(&["kubeconform"], Progress::Stderr)
    })
    .await??;
    step.done("Helm 3, Helm 4 and kubeconform are built");
    Ok(())
}

/// How many tests a suite's closing line says have passed.
fn counted(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("test result: ")?;
    let (_, rest) = rest.split_once(". ")?;
    rest.split_once(" passed")?.0.trim().parse().ok()
}

fn failing(line: &str) -> Option<&str> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    rest.contains("FAILED").then_some(name)
}

/// Whether a line of cargo's is shown: not tests that pass, nor what is being compiled.
fn is_news(line: &str) -> bool {
    const BUILDING: [&str; 6] = [
        "Compiling ",
        "Downloading ",
        "Downloaded ",
        "Blocking ",
        "Locking ",
        "Updating ",
    ];
    let passes = line.starts_with("test ") && (line.ends_with(" ... ok") || line.contains(" ... ignored"));
    let builds = BUILDING.iter().any(|word| line.trim_start().starts_with(word));
    !(line.trim().is_empty() || passes || builds || line.starts_with("running "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargos_lines() {
        let closing =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.52s";
        assert_eq!(counted(closing), Some(12));
        assert_eq!(counted("test result: FAILED. 3 passed; 1 failed"), Some(3));
        assert_eq!(counted("test a::b ... ok"), None);
        assert_eq!(failing("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failing("test a::b ... ok"), None);
        assert!(is_news(closing));
        assert!(is_news("test a::b has been running for over 60 seconds"));
        assert!(is_news("     Running unittests src/lib.rs (target/debug/deps/x)"));
        for line in [
            "",
            "test a::b ... ok",
            "   Compiling tokio v1.54.0",
            "running 3 tests",
        ] {
            assert!(!is_news(line), "{line}");
        }
    }
}
