//! The plugin as a process, without the settings of the user who runs the tests.
// Each test binary uses a part of this.
#![allow(dead_code)]

pub(crate) mod proxy;
pub(crate) mod world;

use std::path::Path;
use std::process::Command;

use idtoken_emulator::{EmulatorHandle, Options, Policy, ServiceAccount, TOKEN_CREATOR};

/// The identity of the caller.
pub(crate) const ME: &str = "me@p.iam.gserviceaccount.com";
/// An account that [`ME`] may impersonate.
pub(crate) const CALLER: &str = "caller@p.iam.gserviceaccount.com";
/// An account that [`CALLER`] may impersonate, and [`ME`] through [`CALLER`].
pub(crate) const FAR: &str = "far@p.iam.gserviceaccount.com";
/// An audience.
pub(crate) const AUDIENCE: &str = "https://billing-x.run.app";

/// The result of a process.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Asserts the exit code.
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that standard output contains `text`.
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(
            self.stdout.contains(text),
            "no {text:?} in\n{}\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Asserts that standard error contains `text`.
    pub(crate) fn warns(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "no {text:?} in\n{}\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// The plugin without arguments. `home` has no credentials.
pub(crate) fn plugin(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-idtoken"));
    clean(&mut command, home);
    command
}

/// Removes variables that could change the result.
pub(crate) fn clean(command: &mut Command, home: &Path) {
    command.env("HOME", home).env("NO_PROXY", "*");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_uppercase();
        let proxy = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].contains(&text.as_str());
        let google = ["GOOGLE_", "GCE_", "CLOUDSDK_", "IDTOKEN_"]
            .iter()
            .any(|prefix| text.starts_with(prefix));
        if (proxy || google || text == "KUBECONFIG") && !text.starts_with("IDTOKEN_TESTENV") {
            command.env_remove(name);
        }
    }
}

/// Runs `command` until it exits.
pub(crate) fn finish(command: &mut Command) -> Outcome {
    let output = command.output().expect("the process starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Outcome {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Google's endpoints, where [`ME`] is the identity of the metadata server.
pub(crate) async fn google() -> EmulatorHandle {
    let mut policy = Policy {
        organization_number: Some(42),
        service_accounts: vec![
            ServiceAccount::new(ME),
            ServiceAccount::new(CALLER)
                .impersonated_by(format!("serviceAccount:{ME}"))
                .bind(TOKEN_CREATOR, format!("serviceAccount:{ME}")),
            ServiceAccount::new(FAR).impersonated_by(format!("serviceAccount:{CALLER}")),
        ],
        ..Policy::default()
    };
    policy.metadata_server.service_account = Some(ME.to_owned());
    EmulatorHandle::start(policy, Options::default())
        .await
        .expect("the emulator starts")
}
