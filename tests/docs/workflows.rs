//! GitHub's workflows: actionlint passes, every action is pinned, and a job has only the permissions that it names.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use idtoken_testenv::{Progress, binaries};
use regex::Regex;
use serde_json::Value;

use crate::root;

/// The jobs that may write anything.
const WRITERS: [(&str, &str); 1] = [("release.yml", "publish")];

/// Each workflow's file with its text.
fn workflows() -> Vec<(PathBuf, String)> {
    let mut found: Vec<_> = std::fs::read_dir(root().join(".github/workflows"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect();
    found.sort();
    assert!(found.len() >= 3, "where are the workflows? {found:?}");
    found
}

fn read(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// actionlint on the text of a workflow, which other workflows are found beside: what it says, where it has something to say.
fn lint(path: &Path, workflow: &str) -> Result<(), String> {
    let program = binaries::ACTIONLINT.build(&["actionlint"], Progress::Stderr);
    let mut child = Command::new(program.unwrap().join("actionlint"))
        // The linters of scripts are used where they are installed: not here, so that all machines judge the same.
        .args(["-no-color", "-shellcheck=", "-pyflakes=", "-stdin-filename"])
        .arg(path)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(workflow.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn actionlint_passes() {
    for (path, text) in workflows() {
        lint(&path, &text).unwrap_or_else(|said| panic!("{}:\n{said}", path.display()));
    }
    let (path, text) = workflows().remove(0);
    let wrong = text.replacen("${{ github.ref }}", "${{ github.reff }}", 1);
    let said = lint(&path, &wrong).unwrap_err();
    assert!(said.contains("reff"), "{said}");
}

/// Lines that use an action, or another repository's workflow, by anything but a commit with its tag as a comment.
fn unpinned(workflow: &str) -> Vec<&str> {
    let uses = Regex::new(r"^\s*(?:- )?uses:\s*\S").unwrap();
    let pinned =
        Regex::new(r"uses: (?:\./\.github/\S+|[\w.-]+(?:/[\w.-]+)+@[0-9a-f]{40} # v[0-9.]+)$").unwrap();
    workflow
        .lines()
        .filter(|line| uses.is_match(line) && !pinned.is_match(line))
        .collect()
}

#[test]
fn every_action_is_pinned_by_a_commit() {
    let mut used = 0;
    for (path, text) in workflows() {
        assert_eq!(unpinned(&text), [""; 0], "{}", path.display());
        used += text.matches("uses: ").count();
    }
    assert!(used >= 8, "only {used} uses were found");
    let commit = "3d3c42e5aac5ba805825da76410c181273ba90b1";
    for good in [
        format!("      - uses: a/b@{commit} # v1.2.3"),
        format!("    uses: a/b/c@{commit} # v1"),
        "    uses: ./.github/workflows/ci.yml".to_owned(),
    ] {
        assert_eq!(unpinned(&good), [""; 0]);
    }
    for bad in [
        "      - uses: a/b@v1 # v1".to_owned(),
        format!("      - uses: a/b@{commit}"),
        format!("      - uses: a/b@{} # v1", &commit[1..]),
        "        uses: docker://alpine:3".to_owned(),
    ] {
        assert_eq!(unpinned(&bad).len(), 1, "{bad}");
    }
}

/// What a workflow allows beyond reading, or does not say; by job.
fn liberties(file: &str, workflow: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if workflow["permissions"] != serde_json::json!({}) {
        found.push("permissions of all jobs".to_owned());
    }
    for (job, content) in workflow["jobs"].as_object().unwrap() {
        let Some(permissions) = content["permissions"].as_object() else {
            found.push(format!("{job}: no permissions of its own"));
            continue;
        };
        let writes = permissions.values().any(|access| access != "read");
        if writes && !WRITERS.contains(&(file, job)) {
            found.push(format!("{job}: may write"));
        }
        for step in content["steps"].as_array().into_iter().flatten() {
            let checks_out = step["uses"]
                .as_str()
                .is_some_and(|uses| uses.starts_with("actions/checkout@"));
            if checks_out && step["with"]["persist-credentials"] != false {
                found.push(format!("{job}: the token stays in the checkout"));
            }
        }
    }
    found
}

#[test]
fn permissions_are_the_least() {
    for (path, text) in workflows() {
        let workflow = read(&text);
        assert_eq!(liberties(&name(&path), &workflow), [""; 0], "{}", path.display());
        // These run a stranger's change with the repository's own rights.
        for trigger in ["pull_request_target", "workflow_run"] {
            assert!(workflow["on"][trigger].is_null(), "{}: {trigger}", path.display());
        }
    }
    let wide = "jobs: {a: {}, b: {permissions: {contents: write}}, \
                c: {permissions: {}, steps: [{uses: actions/checkout@v1}]}}";
    assert_eq!(liberties("release.yml", &read(wide)).len(), 4);
}
