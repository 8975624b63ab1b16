//! Child processes stop on request, and when their parent dies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use idtoken_testenv::{ControlPlane, Options, Process, RunDir, until};

const LIMIT: Duration = Duration::from_secs(60);
const HOLDER: &str = "IDTOKEN_TESTENV_TEST_HOLDER";

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// Whether a process runs, by `ps`; a zombie does not.
fn runs(pid: u32) -> bool {
    let output = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .unwrap();
    let state = String::from_utf8(output.stdout).unwrap();
    !state.trim().is_empty() && !state.trim_start().starts_with('Z')
}

async fn gone(pids: &[u32]) {
    until("all processes are gone", LIMIT, async || {
        Ok((!pids.iter().any(|pid| runs(*pid))).then_some(()))
    })
    .await
    .unwrap();
}

fn last_number(line: &str) -> u32 {
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn logs_and_exit_status() {
    let dir = RunDir::create("test").unwrap();
    let mut command = sh("echo \"out $GREETING $(pwd)\"; echo err >&2; exit 3");
    command.env("GREETING", "hello").current_dir("/");
    let process = Process::spawn("short", &command, dir.path()).unwrap();
    assert_eq!(process.wait(LIMIT).await.unwrap().code(), Some(3));
    assert_eq!(process.log(), "out hello /\nerr\n");
    let error = format!("{:#}", process.wait_for_line("never", LIMIT).await.unwrap_err());
    assert!(
        error.contains("exit status: 3") && error.contains("err"),
        "{error}"
    );
    assert_eq!(
        process.terminate(LIMIT).await.unwrap().code(),
        Some(3),
        "an exited process may be terminated"
    );
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let dir = RunDir::create("test").unwrap();
    let process = Process::spawn("none", &Command::new("/no/such/program"), dir.path()).unwrap();
    assert_eq!(process.wait(LIMIT).await.unwrap().code(), Some(127));
    assert!(process.log().contains("/no/such/program"), "{}", process.log());
}

#[tokio::test]
async fn terminate_lets_it_finish_and_kill_does_not() {
    let dir = RunDir::create("test").unwrap();
    let polite = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let process = Process::spawn("polite", &sh(polite), dir.path()).unwrap();
    process.wait_for_line("up", LIMIT).await.unwrap();
    assert!(process.terminate(LIMIT).await.unwrap().success());
    assert!(process.log().contains("bye"));

    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let process = Process::spawn("stubborn", &sh(stubborn), dir.path()).unwrap();
    process.wait_for_line("up", LIMIT).await.unwrap();
    assert_eq!(
        process
            .terminate(Duration::from_millis(300))
            .await
            .unwrap()
            .code(),
        None
    );
}

#[tokio::test]
async fn a_paused_process_writes_nothing_until_it_is_resumed() {
    let dir = RunDir::create("test").unwrap();
    let process = Process::spawn(
        "ticker",
        &sh("while :; do echo tick; sleep 0.05; done"),
        dir.path(),
    )
    .unwrap();
    process.wait_for_line("tick", LIMIT).await.unwrap();
    process.pause().unwrap();
    let state = async || {
        let output = Command::new("ps")
            .args(["-o", "stat=", "-p", &process.pid().to_string()])
            .output()?;
        Ok(output.stdout.starts_with(b"T").then_some(()))
    };
    until("it is stopped", LIMIT, state).await.unwrap();
    let before = process.log().len();
    process.resume().unwrap();
    until("it ticks again", LIMIT, async || {
        Ok((process.log().len() > before).then_some(()))
    })
    .await
    .unwrap();
    // Dropping must end a stopped process too.
    process.pause().unwrap();
    let pid = process.pid();
    drop(process);
    gone(&[pid]).await;
}

#[tokio::test]
async fn what_a_process_started_goes_with_it() {
    let dir = RunDir::create("test").unwrap();
    for ending in ["kill", "drop", "by itself"] {
        let wait = if ending == "by itself" { "exit 0" } else { "wait" };
        let script = format!("sleep 1000 & echo child $!; {wait}");
        let process = Process::spawn(&ending.replace(' ', "-"), &sh(&script), dir.path()).unwrap();
        let child = last_number(&process.wait_for_line("child", LIMIT).await.unwrap());
        match ending {
            "kill" => drop(process.kill().await.unwrap()),
            "drop" => drop(process),
            _ => drop(process.wait(LIMIT).await.unwrap()),
        }
        gone(&[child]).await;
    }
}

/// Not a test of its own: the process that the next test kills.
#[tokio::test]
async fn holder() {
    if std::env::var_os(HOLDER).is_none() {
        return;
    }
    // From a thread that exits: a guard that belongs to the thread would kill the children with it.
    let spawn = || {
        Process::spawn(
            "sleeper",
            &sh("trap '' HUP TERM; sleep 1000 & wait"),
            &std::env::temp_dir(),
        )
    };
    let sleeper = std::thread::spawn(spawn).join().unwrap().unwrap();
    let cluster = ControlPlane::start(Options::default()).await.unwrap();
    println!("dir {}", cluster.dir().display());
    for pid in cluster.pids().await.into_iter().chain([sleeper.pid()]) {
        println!("pid {pid}");
    }
    // Stopped processes must go too.
    sleeper.pause().unwrap();
    cluster.pause_apiserver().await.unwrap();
    println!("held");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_parent_leaves_nothing() {
    idtoken_testenv::Assets::locate(Default::default()).unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder", "--nocapture"])
        .env(HOLDER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pids = Vec::new();
    let mut dir = String::new();
    for line in BufReader::new(holder.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.rsplit_once("dir ") {
            Some((_, path)) => dir = path.to_owned(),
            None if line.starts_with("pid ") => pids.push(last_number(&line)),
            None => {}
        }
        if line == "held" {
            break;
        }
    }
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| runs(*pid)));
    holder.kill().unwrap();
    holder.wait().unwrap();
    gone(&pids).await;

    if std::env::var_os("IDTOKEN_TESTENV_KEEP").is_none() {
        // The next user of the folder removes what the killed one left.
        drop(RunDir::create("test").unwrap());
        assert!(!Path::new(&dir).exists(), "{dir}");
    }
}
