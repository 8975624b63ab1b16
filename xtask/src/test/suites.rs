//! The suites: the test executables that cargo builds, the programs that each needs, and the order in which they start.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo;
use crate::programs::Programs;

/// Seconds of each suite in the last run.
const TIMES: &str = "test-times.json";

/// The third-party programs that suites need, and their minutes on two cores, which decide the order. Another suite needs all programs,
/// unless it is one of unit tests, which need none. A test that needs more than is said here builds it itself.
const KNOWN: [(&str, &[Programs], u64); 33] = {
    use Programs::{Chart, Consumers, ControlPlane, Controllers, Tools};
    [
        ("idtoken-operator: operator", &[ControlPlane, Controllers], 8),
        ("idtoken-operator: chart", &[ControlPlane, Chart], 4),
        ("idtoken-operator: telemetry", &[ControlPlane, Consumers], 4),
        ("idtoken-operator: consumers", &[ControlPlane, Consumers], 3),
        ("idtoken-operator: specs", &[ControlPlane], 1),
        ("idtoken-operator: docs", &[ControlPlane, Chart, Tools], 2),
        ("idtoken-operator: google", &[], 1),
        ("idtoken-operator: reconcile", &[], 1),
        ("idtoken-operator: referees", &[ControlPlane], 3),
        ("idtoken-operator: release", &[], 0),
        ("idtoken-operator: undecodable", &[], 0),
        ("idtoken-testenv: control_plane", &[ControlPlane], 2),
        ("idtoken-testenv: process", &[ControlPlane], 1),
        ("idtoken-testenv: oci", &[Tools], 0),
        ("kubectl-idtoken: cluster", &[ControlPlane], 2),
        ("kubectl-idtoken: completion", &[ControlPlane], 0),
        ("kubectl-idtoken: doctor", &[ControlPlane], 0),
        ("kubectl-idtoken: kubectl", &[ControlPlane], 1),
        ("kubectl-idtoken: manifests", &[], 0),
        ("kubectl-idtoken: mint", &[], 0),
        ("kubectl-idtoken: try_target", &[ControlPlane], 1),
        ("idtoken-conformance: conformance", &[], 1),
        ("idtoken-emulator: binary", &[], 0),
        ("idtoken-emulator: faults", &[], 0),
        ("idtoken-emulator: iam_credentials", &[], 0),
        ("idtoken-emulator: metadata", &[], 0),
        ("idtoken-emulator: oauth", &[], 0),
        ("idtoken-emulator: proxy", &[], 0),
        ("idtoken-emulator: sts", &[], 0),
        ("idtoken-emulator: target", &[], 0),
        ("idtoken-emulator: x509", &[], 0),
        ("documentation", &[], 1),
        ("idtoken-simulation: idtoken-simulation (bin)", &[], 2),
    ]
};

/// The suite that would run alone in the end. Its tests mostly wait, each for a control plane of its own, so half as many more of them run
/// at once as there are processors.
const LONGEST: &str = "idtoken-operator: operator";
/// How many tests of a suite run at once: <https://doc.rust-lang.org/rustc/tests/index.html#--test-threads-num_threads>.
const THREADS: &str = "RUST_TEST_THREADS";

/// Programs that only some modules of a suite need.
const OF_MODULES: [(&str, Programs, &[&str]); 8] = {
    use Programs::{Chart, Consumers, ControlPlane, Controllers, Tools};
    [
        ("idtoken-operator: operator", Controllers, &["roles"]),
        (
            "idtoken-operator: chart",
            ControlPlane,
            &["conform", "lifecycle", "run"],
        ),
        ("idtoken-operator: telemetry", Consumers, &["alerts", "run"]),
        (
            "idtoken-operator: consumers",
            Consumers,
            &["caddy", "manifests", "opentelemetry", "prometheus", "recipes"],
        ),
        ("idtoken-operator: referees", ControlPlane, &["verify"]),
        ("idtoken-operator: docs", ControlPlane, &["shell"]),
        ("idtoken-operator: docs", Chart, &["shell"]),
        ("idtoken-operator: docs", Tools, &["workflows"]),
    ]
};

/// A program of tests.
#[derive(Clone, Debug)]
pub(super) struct Suite {
    /// Package and target, such as `idtoken-operator: chart`.
    pub(super) name: String,
    /// Whether it is a library's or program's own tests.
    pub(super) unit: bool,
    /// Its executable; none of the tests in the documentation, which cargo runs.
    executable: Option<PathBuf>,
    /// The folder of its package.
    folder: PathBuf,
    /// Which of its tests run; none for all.
    tests: Option<Vec<String>>,
}

impl Suite {
    /// The suite of the tests in documentation.
    pub(super) fn documentation() -> Self {
        Self {
            name: "documentation".to_owned(),
            unit: false,
            executable: None,
            folder: crate::workspace(),
            tests: None,
        }
    }

    #[cfg(test)]
    pub(super) fn for_tests(name: &str, executable: PathBuf) -> Self {
        Self {
            executable: Some(executable),
            name: name.to_owned(),
            ..Self::documentation()
        }
    }

    /// The suites among the messages of `cargo test --no-run --message-format=json`.
    pub(super) fn all(messages: &str) -> Vec<Self> {
        let messages = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        messages.filter_map(|message| Self::of(&message)).collect()
    }

    fn of(message: &Value) -> Option<Self> {
        let executable = message["executable"].as_str()?;
        if message["profile"]["test"] != true {
            return None;
        }
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
        let (target, kind) = (&message["target"], message["target"]["kind"][0].as_str()?);
        let unit = kind != "test";
        let target = target["name"].as_str()?;
        let target = if unit {
            format!("{target} ({kind})")
        } else {
            target.to_owned()
        };
        Some(Self {
            name: format!("{}: {target}", package(message["package_id"].as_str()?)),
            unit,
            executable: Some(executable.into()),
            folder: folder.to_owned(),
            tests: None,
        })
    }

    /// The third-party programs that those of its tests need that run.
    pub(super) fn needs(&self) -> Vec<Programs> {
        let needs: &[Programs] = match self.known() {
            Some((_, needs, _)) => needs,
            None if self.unit => &[],
            None => &Programs::OF_TESTS,
        };
        needs.iter().copied().filter(|need| self.uses(*need)).collect()
    }

    /// Those of [`Self::needs`] without which it does not start. For kube-controller-manager the one test that needs it waits itself, since it is
    /// among the last of the longest suite.
    pub(super) fn awaits(&self) -> Vec<Programs> {
        let mut needs = self.needs();
        needs.retain(|need| *need != Programs::Controllers);
        needs
    }

    fn uses(&self, programs: Programs) -> bool {
        let mut rows = OF_MODULES.iter();
        let row = rows.find(|(suite, of, _)| *suite == self.name && *of == programs);
        let (Some((_, _, modules)), Some(tests)) = (row, &self.tests) else {
            return true;
        };
        let module = |test: &String| {
            test.split("::")
                .next()
                .is_some_and(|name| modules.contains(&name))
        };
        tests.iter().any(module)
    }

    fn known(&self) -> Option<&'static (&'static str, &'static [Programs], u64)> {
        KNOWN.iter().find(|(name, _, _)| *name == self.name)
    }

    /// The command that runs those of its tests that have `filter` in their name, as cargo would.
    pub(super) fn command(&self, filter: Option<&str>) -> Command {
        let Some(executable) = &self.executable else {
            let mut command = cargo::cargo();
            command.args(["test", "--workspace", "--doc", "--no-fail-fast"]);
            command.args(filter);
            return command;
        };
        let mut command = Command::new(executable);
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .args(filter);
        if self.name == LONGEST && std::env::var_os(THREADS).is_none() {
            let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
            command.env(THREADS, (cores + cores.div_ceil(2)).to_string());
        }
        command
    }

    /// The same suite with only those tests that have `filter` in their name; none where there is no such test.
    ///
    /// # Errors
    /// When it does not list its tests.
    pub(super) fn only(self, filter: &str) -> Result<Option<Self>> {
        let output = self
            .command(Some(filter))
            .args(["--list", "--format", "terse"])
            .output()
            .with_context(|| format!("cannot run {}", self.name))?;
        let listed = String::from_utf8_lossy(&output.stdout);
        let tests: Vec<_> = listed
            .lines()
            .filter_map(|line| Some(line.strip_suffix(": test")?.to_owned()))
            .collect();
        let found = output.status.success() && !tests.is_empty();
        Ok(found.then_some(Self {
            tests: Some(tests),
            ..self
        }))
    }
}

/// The package's name in its id: <https://doc.rust-lang.org/cargo/reference/pkgid-spec.html>.
fn package(id: &str) -> &str {
    let (source, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name,
        None => source.rsplit('/').next().unwrap_or(source),
    }
}

/// How long suites take: as in the last run, otherwise as [`KNOWN`] has it.
#[derive(Debug, Default)]
pub(super) struct Times(BTreeMap<String, u64>);

impl Times {
    /// Those of the last run; none where there was none.
    pub(super) fn read() -> Self {
        let text = std::fs::read_to_string(path()).unwrap_or_default();
        Self(serde_json::from_str(&text).unwrap_or_default())
    }

    /// Keeps how long a suite took.
    pub(super) fn add(&mut self, suite: &Suite, took: Duration) {
        self.0.insert(suite.name.clone(), took.as_secs());
    }

    /// Writes them for the next run.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn write(&self) -> Result<()> {
        let path = path();
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        let text = serde_json::to_string_pretty(&self.0)?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Sorts suites into the order in which they start: first unit tests, which are quick and find most; then the longest; last the one that
    /// cargo compiles, which waits while another cargo compiles.
    pub(super) fn sort(&self, suites: &mut [Suite]) {
        suites.sort_by_cached_key(|suite| {
            let known = suite.known().map(|(_, _, minutes)| minutes * 60);
            let seconds = self.0.get(&suite.name).copied().or(known).unwrap_or(60);
            let order = (suite.executable.is_none(), !suite.unit);
            (order, std::cmp::Reverse(seconds), suite.name.clone())
        });
    }
}

fn path() -> PathBuf {
    idtoken_testenv::target_dir().join("xtask").join(TIMES)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(package: &str, target: &str, kind: &str, test: bool) -> String {
        serde_json::json!({
            "reason": "compiler-artifact",
            "package_id": format!("path+file:///src/{package}#0.1.0"),
            "manifest_path": format!("/src/{package}/Cargo.toml"),
            "target": {"name": target, "kind": [kind]},
            "profile": {"test": test},
            "executable": format!("/target/{target}"),
        })
        .to_string()
    }

    #[test]
    fn reads_the_suites_in_the_order_they_start() {
        let messages = [
            message("kubectl-idtoken", "mint", "test", true),
            message("idtoken-operator", "operator", "test", true),
            message("idtoken-operator", "new", "test", true),
            message("idtoken-operator", "idtoken-operator", "bin", false),
            message("idtoken-operator", "idtoken_operator", "lib", true),
            "   Compiling something".to_owned(),
        ];
        let mut suites = Suite::all(&messages.join("\n"));
        suites.push(Suite::documentation());
        let mut times = Times::default();
        times.sort(&mut suites);
        let names =
            |suites: &[Suite]| -> Vec<String> { suites.iter().map(|suite| suite.name.clone()).collect() };
        let unit = "idtoken-operator: idtoken_operator (lib)";
        let (operator, new, mint) = (
            "idtoken-operator: operator",
            "idtoken-operator: new",
            "kubectl-idtoken: mint",
        );
        assert_eq!(names(&suites), [unit, operator, new, mint, "documentation"]);
        times.add(&suites[3], Duration::from_secs(1000));
        times.sort(&mut suites);
        assert_eq!(names(&suites)[..2], [unit, mint]);

        let needs = |name: &str| suites.iter().find(|suite| suite.name == name).unwrap().needs();
        assert_eq!(needs(unit), []);
        assert_eq!(needs(mint), []);
        assert_eq!(needs(operator), [Programs::ControlPlane, Programs::Controllers]);
        // An unknown suite: no program is built while its tests wait.
        assert_eq!(needs(new), Programs::OF_TESTS);
    }

    #[test]
    fn a_test_needs_no_program_of_other_tests() {
        use Programs::{Chart, Consumers, ControlPlane, Controllers, Tools};
        let needs = |name: &str, tests: &[&str]| {
            let suite = Suite {
                name: format!("idtoken-operator: {name}"),
                tests: Some(tests.iter().map(|test| (*test).to_owned()).collect()),
                ..Suite::documentation()
            };
            suite.needs()
        };
        assert_eq!(needs("operator", &["issue::first", "rolesx::a"]), [ControlPlane]);
        assert_eq!(
            needs("operator", &["issue::first", "roles::garbage"]),
            [ControlPlane, Controllers]
        );
        assert_eq!(needs("telemetry", &["logs::each_outcome"]), [ControlPlane]);
        assert_eq!(needs("docs", &["links::all"]), []);
        assert_eq!(needs("docs", &["workflows::all"]), [Tools]);
        assert_eq!(needs("chart", &["render::names"]), [Chart]);
        assert_eq!(needs("consumers", &["curl::all"]), [ControlPlane]);
        assert_eq!(needs("consumers", &["caddy::all"]), [ControlPlane, Consumers]);
        assert_eq!(needs("referees", &["fetch::all"]), []);
        let operator = Suite::for_tests("idtoken-operator: operator", PathBuf::new());
        assert_eq!(operator.needs(), [ControlPlane, Controllers]);
        assert_eq!(operator.awaits(), [ControlPlane]);
        // The modules that are named exist.
        for (suite, _, modules) in OF_MODULES {
            let folder = suite.replace("idtoken-operator: ", "tests/");
            for module in modules {
                let module = crate::workspace().join(&folder).join(module);
                assert!(
                    module.is_dir() || module.with_extension("rs").is_file(),
                    "{module:?}"
                );
            }
        }
    }

    #[test]
    fn what_each_suite_needs_is_known() {
        let root = crate::workspace();
        let manifest = |folder: &Path| std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let workspace = manifest(&root);
        let members = workspace.split("members = [").nth(1).unwrap();
        let members = members.split(']').next().unwrap().split('"').skip(1).step_by(2);
        let mut unknown = Vec::new();
        for folder in members.map(|member| root.join(member)) {
            let manifest = manifest(&folder);
            let name = manifest.split("[package]\nname = \"").nth(1).unwrap();
            let package = name.split('"').next().unwrap();
            for entry in std::fs::read_dir(folder.join("tests")).into_iter().flatten() {
                let path = entry.unwrap().path();
                let target = path.file_stem().unwrap().to_string_lossy();
                let suite = path.join("main.rs").is_file() || path.extension().is_some_and(|end| end == "rs");
                let name = format!("{package}: {target}");
                if suite && !KNOWN.iter().any(|(known, _, _)| *known == name) {
                    unknown.push(name);
                }
            }
        }
        assert!(
            unknown.is_empty(),
            "all programs are built for {unknown:?}: say in KNOWN what these need"
        );
    }

    #[test]
    fn finds_the_tests_with_a_name() {
        let dir = idtoken_testenv::RunDir::create("suites").unwrap();
        let program = dir.path().join("suite");
        let list = "#!/bin/sh\ntest \"$1\" = nothing || printf 'a::first: test\\nb::other: test\\n'\n";
        std::fs::write(&program, list).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, executable).unwrap();
        let suite = Suite::for_tests("idtoken-operator: operator", program);
        assert!(suite.clone().only("nothing").unwrap().is_none());
        let found = suite.only("s").unwrap().unwrap();
        assert_eq!(found.tests.unwrap(), ["a::first", "b::other"]);
    }

    #[test]
    fn runs_a_suite_in_its_package() {
        let suites = Suite::all(&message("ctl", "mint", "test", true));
        let command = suites[0].command(Some("a::b"));
        assert_eq!(command.get_current_dir(), Some(Path::new("/src/ctl")));
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["a::b"]);
    }
}
