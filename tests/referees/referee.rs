//! The referees: programs on Google's client libraries, built at pinned versions, with one command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use idtoken_emulator::EmulatorHandle;
use idtoken_testenv::{GoModule, GoTool, Progress, PythonEnvironment, RunDir, or_skip};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::common::LIMIT;

const PYTHON: PythonEnvironment = PythonEnvironment {
    name: "referee",
    requirements: include_str!("python/requirements.txt"),
};
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/referees/python/referee.py");

const GO: GoModule = GoModule {
    name: "referee",
    go_mod: include_str!("go/go.mod"),
    go_sum: include_str!("go/go.sum"),
    files: &[("main.go", include_str!("go/main.go"))],
    ldflags: "-s -w",
    tags: "",
    optimized: false,
    tools: &[GoTool {
        name: "referee",
        package: ".",
    }],
};

/// A language with a client library of Google's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Python,
    Go,
}

/// One referee, in an environment of its own: nothing of whoever runs the tests reaches it.
pub(crate) struct Referee {
    program: Vec<PathBuf>,
    variables: BTreeMap<String, String>,
    dir: RunDir,
}

impl Referee {
    /// Builds the referee. None where it cannot be had, which is said, unless `IDTOKEN_REQUIRE_REFEREES=1` forbids that.
    pub(crate) async fn new(language: Language) -> Result<Option<Self>> {
        let program = tokio::task::spawn_blocking(move || {
            anyhow::Ok(match language {
                Language::Python => vec![PYTHON.build(Progress::Stderr)?, SCRIPT.into()],
                Language::Go => vec![GO.build(&["referee"], Progress::Stderr)?.join("referee")],
            })
        });
        let Some(program) = or_skip(&format!("referee in {language:?}"), program.await?)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            program,
            variables: BTreeMap::new(),
            dir: RunDir::create("referee")?,
        }))
    }

    /// Gives it an environment variable.
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// Lets it find the metadata server.
    pub(crate) fn with_metadata(self, google: &EmulatorHandle) -> Self {
        let host = google.address().to_string();
        self.with("GCE_METADATA_HOST", &host)
            .with("GCE_METADATA_IP", &host)
            .with("GCE_METADATA_ROOT", &host)
    }

    /// Gives it Application Default Credentials in a file.
    pub(crate) fn with_credentials(self, content: &Value) -> Result<Self> {
        let path = self.write("credentials.json", &content.to_string())?;
        Ok(self.with("GOOGLE_APPLICATION_CREDENTIALS", path))
    }

    /// Has it reach Google's fixed hosts by the emulator's proxy, and trust that.
    pub(crate) fn with_proxy(self, google: &EmulatorHandle) -> Result<Self> {
        let ca = self.write("ca.pem", google.proxy_ca_pem().context("no proxy")?)?;
        Ok(self
            .with("HTTPS_PROXY", google.proxy_url().context("no proxy")?)
            .with("REQUESTS_CA_BUNDLE", &ca)
            .with("SSL_CERT_FILE", &ca))
    }

    /// Writes a file that goes when the referee does, and gives its path.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<String> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Runs it to its end and gives what it answered.
    ///
    /// # Errors
    /// With what it complained of, when it fails.
    pub(crate) async fn run(&self, args: &[&str], input: &str) -> Result<String> {
        let (program, first) = self.program.split_first().context("a program")?;
        let mut child = Command::new(program)
            .args(first)
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .envs(&self.variables)
            .current_dir(Path::new("/"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().context("its standard input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
        let output = output.context("the referee does not end")??;
        let complaint = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("the referee fails ({}): {complaint}", output.status);
        }
        let answer = String::from_utf8(output.stdout)?.trim().to_owned();
        ensure!(!answer.is_empty(), "the referee says nothing: {complaint}");
        Ok(answer)
    }
}

impl Referee {
    /// Runs it and gives what it complained of.
    ///
    /// # Errors
    /// When it does not fail.
    pub(crate) async fn refused(&self, args: &[&str], input: &str) -> Result<String> {
        match self.run(args, input).await {
            Ok(_) => bail!("the referee is content with {args:?}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }
}

/// Makes a module of tests for each referee out of functions that take one.
macro_rules! for_each_referee {
    ($($test:ident),+ $(,)?) => {
        mod python {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() -> anyhow::Result<()> {
                match crate::referee::Referee::new(crate::referee::Language::Python).await? {
                    Some(referee) => super::$test(referee).await,
                    None => Ok(()),
                }
            })+
        }
        mod go {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() -> anyhow::Result<()> {
                match crate::referee::Referee::new(crate::referee::Language::Go).await? {
                    Some(referee) => super::$test(referee).await,
                    None => Ok(()),
                }
            })+
        }
    };
}
pub(crate) use for_each_referee;
