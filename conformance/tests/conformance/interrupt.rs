//! Real signals to a real process: Ctrl-C in a run, while what it created is deleted, and once more.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use clap::Parser;
use idtoken_conformance::{ConformanceArgs, main_with};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::scripted::{Google, OTHERS, PROJECT, Signals};

/// How long a process may take for what should happen soon.
const LIMIT: Duration = Duration::from_secs(60);
/// The first call for a token, when all is created.
const FIRST_TOKEN: usize = 20;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    conformance: ConformanceArgs,
}

/// What `cargo xtask conformance` does, on a Google at a URL.
#[tokio::test]
#[ignore = "the process that the other tests interrupt"]
async fn child() {
    let variable = |name| std::env::var(name).unwrap();
    let arguments = variable("TEST_ARGUMENTS");
    let cli = Cli::parse_from(std::iter::once("conformance").chain(arguments.split(' ')));
    let url = variable("TEST_GOOGLE");
    let code = main_with(cli.conformance, |outside| outside.go_to(&url, None)).await;
    std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
}

/// Starts it, as whoever may use the scripted Google.
fn start(google: &Google, arguments: &str, stderr: Stdio) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "interrupt::child", "--ignored", "--nocapture"])
        .env("TEST_ARGUMENTS", arguments)
        .env("TEST_GOOGLE", google.base())
        .env("GOOGLE_OAUTH_ACCESS_TOKEN", google.runner())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // No call is answered before this returns, since the script is served by this thread.
    google.script().process = child.id();
    child
}

/// Waits for its end. Its lines reach the script as they are written. Returns them all.
async fn ended(google: &Google, mut child: Child) -> (ExitStatus, String) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let read = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            google.shown(&line);
        }
        child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(LIMIT, read).await.expect("it ends");
    (status, google.all_shown())
}

/// A Google on which no run ever gets beyond the wait for its bindings, so that an interrupt cannot be late.
async fn slow_google() -> Google {
    let google = Google::start().await;
    google.script().early = usize::MAX;
    google.script().interrupt.insert(FIRST_TOKEN);
    google
}

fn run() -> String {
    format!("--google {PROJECT} id-token")
}

/// The first signal ends the run, and the second does not end the deletion.
async fn two_signals(signal: &'static str) {
    let google = slow_google().await;
    google.script().signals = Signals::OneMore(signal);
    let child = start(&google, &run(), Stdio::piped());
    let (status, shown) = ended(&google, child).await;
    assert_eq!(status.code(), Some(1), "{shown}");
    assert!(
        shown.contains("interrupted; deleting what was created"),
        "{shown}"
    );
    let (_, after) = shown
        .split_once("interrupted; the deletion goes on")
        .expect("it says so");
    // The pool is the first to be deleted, and the call for it was on its way.
    for left in ["idtoken-conf-", "-caller@my-project", "--cleanup my-project"] {
        assert!(after.contains(left), "{left}: {shown}");
    }
    assert!(shown.ends_with("\ninterrupted"), "{shown}");
    assert!(!shown.contains(google.runner()), "a token is shown");
    let script = google.script();
    assert_eq!(script.names().len(), OTHERS.len(), "{shown}");
    assert_eq!(script.sent, 2);
}

#[tokio::test]
async fn the_second_control_c_says_what_is_left_and_the_deletion_goes_on() {
    two_signals("INT").await;
}

#[tokio::test]
async fn so_does_the_second_sigterm() {
    two_signals("TERM").await;
}

#[tokio::test]
async fn the_third_signal_ends_all_and_names_what_is_left() {
    let google = slow_google().await;
    google.script().signals = Signals::Hang("INT");
    let child = start(&google, &run(), Stdio::piped());
    let (status, shown) = ended(&google, child).await;
    assert_eq!((status.code(), google.script().sent), (Some(1), 3), "{shown}");
    let (_, left) = shown.split_once("\nnot deleted:\n").expect("what is left");
    // The pool is deleted; the call for the last account was never answered.
    let names = left.lines().filter(|line| line.ends_with(": interrupted"));
    assert_eq!(names.count(), 6, "{shown}");
    assert!(
        left.contains("`cargo xtask conformance --cleanup my-project`"),
        "{shown}"
    );
    assert_eq!(google.script().names().len(), OTHERS.len() + 6);

    google.script().signals = Signals::None;
    google.forget_shown();
    let child = start(&google, &format!("--cleanup {PROJECT}"), Stdio::piped());
    let (status, shown) = ended(&google, child).await;
    assert!(status.success() && shown.contains("6 to delete"), "{shown}");
    assert_eq!(google.script().names().len(), OTHERS.len());
}

/// As after SIGHUP: nobody reads what it shows.
#[tokio::test]
async fn a_terminal_that_is_closed_leaves_nothing() {
    let google = slow_google().await;
    google.script().signals = Signals::One("HUP");
    let mut child = start(&google, &run(), Stdio::piped());
    drop(child.stderr.take());
    let status = tokio::time::timeout(LIMIT, child.wait()).await.expect("it ends");
    assert_eq!(status.unwrap().code(), Some(1));
    let script = google.script();
    assert_eq!((script.names().len(), script.deleted.len()), (OTHERS.len(), 7));
}
