//! The completion, as kubectl and the shells ask for it. A shell that this machine lacks is left out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::world::World;
use common::{clean, finish, plugin};

fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("completion-{test}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A folder that has the plugin, and the program that kubectl's completion runs, as a link or as the script.
fn install(test: &str, script: bool) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder(test);
    let program = env!("CARGO_BIN_EXE_kubectl-idtoken");
    std::os::unix::fs::symlink(program, folder.join("kubectl-idtoken")).unwrap();
    let completer = folder.join("kubectl_complete-idtoken");
    match script {
        false => std::os::unix::fs::symlink(program, &completer).unwrap(),
        true => {
            let printed = finish(plugin(&folder).args(["completion", "kubectl"])).exits(0);
            std::fs::write(&completer, printed.stdout).unwrap();
            std::fs::set_permissions(&completer, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectls_completion_has_names_of_the_cluster() {
    let world = World::start().await;
    world.install().await;
    for name in ["billing", "billing-two", "other"] {
        world.request("shop", name, "").await;
    }
    for script in [false, true] {
        let folder = install(&format!("kubectl-{script}"), script);
        let asked = |words: &[&str]| {
            let mut kubectl = world.cluster.kubectl_command(&world.admin);
            let path = format!("{}:/usr/bin:/bin", folder.display());
            kubectl
                .env("PATH", path)
                .args(["__complete", "idtoken"])
                .args(words);
            finish(&mut kubectl).exits(0).stdout
        };
        assert_eq!(
            asked(&["explain", "-n", "shop", "bill"]),
            "billing\nbilling-two\n:4\n"
        );
        assert_eq!(asked(&["try", "--namespace=shop", "o"]), "other\n:4\n");
        assert_eq!(asked(&["explain", "-n", "other", ""]), ":4\n");
        assert_eq!(asked(&["explain", "-n", "sh"]), "shop\n:4\n");
        assert!(asked(&["exp"]).starts_with("explain\tExplain the state"));
        assert_eq!(asked(&["can", "-f", ""]), ":0\n");
    }
    // Names that may not be read, and a cluster that does not answer, are no candidates and no error.
    let jane = world.user("jane", &[]).await;
    let asked = |kubeconfig: &Path| {
        let mut command = plugin(world.cluster.dir());
        command
            .args(["__complete", "explain", "-n", "shop", "b"])
            .env("KUBECONFIG", kubeconfig);
        let outcome = finish(&mut command).exits(0);
        assert_eq!(outcome.stderr, "");
        outcome.stdout
    };
    assert_eq!(asked(&jane), ":4\n");
    assert_eq!(asked(Path::new("/nonexistent")), ":4\n");
    world.cluster.stop().await.unwrap();
}

/// Whether this machine has the shell.
fn has(shell: &str) -> bool {
    Command::new(shell).arg("--version").output().is_ok()
}

/// Runs `script` in `shell`, in whose PATH the plugin is.
fn run(shell: &str, flags: &[&str], script: &str, folder: &Path) -> String {
    let mut command = Command::new(shell);
    clean(&mut command, folder);
    let path = std::env::var("PATH").unwrap();
    command
        .args(flags)
        .arg(script)
        .env("PATH", format!("{}:{path}", folder.display()))
        .env("KUBECONFIG", "/nonexistent");
    finish(&mut command).exits(0).stdout
}

#[test]
fn bash_completes_words_flags_and_values() {
    if !has("bash") {
        return;
    }
    let folder = install("bash", false);
    let complete = |words: &str, at: usize| {
        let script = format!(
            "source <(kubectl-idtoken completion bash); COMP_WORDS=({words}); COMP_CWORD={at}; _kubectl_idtoken; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"; complete -p kubectl-idtoken"
        );
        run("bash", &["--norc", "-c"], &script, &folder)
    };
    let registered = "complete -F _kubectl_idtoken kubectl-idtoken\n";
    assert_eq!(
        complete("kubectl-idtoken exp", 1),
        format!("explain\n{registered}")
    );
    assert_eq!(
        complete("kubectl-idtoken explain --out", 2),
        format!("--output\n{registered}")
    );
    // bash takes "=" for a word.
    assert_eq!(
        complete("kubectl-idtoken explain --output = js", 4),
        format!("json\n{registered}")
    );
    assert_eq!(
        complete("kubectl-idtoken explain --output =", 3),
        format!("text\njson\nyaml\n{registered}")
    );
    assert_eq!(
        complete("kubectl-idtoken explain -o y", 3),
        format!("yaml\n{registered}")
    );
}

#[test]
fn fish_completes_words_flags_and_values() {
    if !has("fish") {
        return;
    }
    let folder = install("fish", false);
    let complete = |line: &str| {
        let script = format!("kubectl-idtoken completion fish | source; complete --do-complete '{line}'");
        run("fish", &["--no-config", "-c"], &script, &folder)
    };
    assert!(complete("kubectl-idtoken exp").starts_with("explain\tExplain the state"));
    assert_eq!(
        complete("kubectl-idtoken explain -o y"),
        "yaml\tThe same as YAML\n"
    );
    assert_eq!(
        complete("kubectl-idtoken explain --output=j"),
        "--output=json\tOne JSON object\n"
    );
}

#[test]
fn zsh_loads_the_script() {
    if !has("zsh") {
        return;
    }
    let folder = install("zsh", false);
    let script = "compdef() { print registered $2 }; source <(kubectl-idtoken completion zsh); whence -w _kubectl_idtoken; \
                  words=(kubectl-idtoken explain -o y); CURRENT=4; _describe() { print ${(P)2} }; _kubectl_idtoken";
    assert_eq!(
        run("zsh", &["-fc"], script, &folder),
        "registered kubectl-idtoken\n_kubectl_idtoken: function\nyaml:The same as YAML\n"
    );
}

#[test]
fn every_shell_has_its_script() {
    let folder = folder("scripts");
    for (shell, says) in [
        ("bash", "complete -F _kubectl_idtoken kubectl-idtoken"),
        ("zsh", "compdef _kubectl_idtoken kubectl-idtoken"),
        ("fish", "complete -c kubectl-idtoken"),
        (
            "powershell",
            "Register-ArgumentCompleter -Native -CommandName 'kubectl-idtoken'",
        ),
        ("kubectl", "exec kubectl-idtoken __complete \"$@\""),
    ] {
        finish(plugin(&folder).args(["completion", shell]))
            .exits(0)
            .says(says);
    }
}
