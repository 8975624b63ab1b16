#![allow(clippy::unwrap_used)]

use super::*;

fn job(name: &'static str, script: &str) -> Job {
    Job {
        name,
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..Job::default()
    }
}

async fn run(jobs: Vec<Job>) -> (RunDir, Result<()>) {
    let dir = RunDir::create("jobs-test").unwrap();
    let output = Output::new();
    let result = Jobs::new(&output, dir.path(), Duration::ZERO).run(jobs).await;
    (dir, result)
}

#[tokio::test]
async fn runs_in_order_and_side_by_side() {
    // Each of the first two waits for the other's file.
    let meet = |own: &str, other: &str| format!("touch {own}; until test -e {other}; do sleep 0.05; done");
    let jobs = vec![
        Job {
            after: vec!["one", "two"],
            ..job("three", "test -e a && test -e b && touch c")
        },
        job("one", &meet("a", "b")),
        job("two", &meet("b", "a")),
        Job {
            needs: vec!["three"],
            nice: 10,
            ..job("four", "test -e c && test $(nice) -ge 10 && touch d")
        },
    ];
    let (dir, result) = run(jobs).await;
    result.unwrap();
    assert!(dir.path().join("d").exists());
}

#[tokio::test]
async fn a_failure_stops_only_what_needs_it() {
    let jobs = vec![
        job("bad", "exit 3"),
        Job {
            needs: vec!["bad"],
            ..job("useless", "touch useless")
        },
        Job {
            needs: vec!["useless"],
            ..job("as useless", "touch useless")
        },
        Job {
            after: vec!["bad", "useless"],
            ..job("good", "touch good")
        },
        job("69", "exit 69"),
        Job {
            may_be_left_out: true,
            ..job("left out", "exit 69")
        },
    ];
    let (dir, result) = run(jobs).await;
    let error = result.unwrap_err().to_string();
    let failed = error.strip_prefix("failed or skipped: ").unwrap();
    let mut failed: Vec<_> = failed.split(", ").collect();
    failed.sort_unstable();
    assert_eq!(failed, ["69", "as useless", "bad", "useless"]);
    assert!(dir.path().join("good").exists());
    assert!(!dir.path().join("useless").exists());
}

#[tokio::test]
async fn a_job_that_waits_for_none_is_refused() {
    let jobs = vec![Job {
        after: vec!["nothing"],
        ..job("waits", "exit 0")
    }];
    assert!(run(jobs).await.1.is_err());
}

#[test]
fn the_last_lines_of_a_log() {
    assert_eq!(last_lines("a\nb\nc\n\n", 2), "b\nc");
    assert_eq!(last_lines("a\n", 2), "a");
    assert_eq!(last_lines("", 2), "");
}

#[test]
fn reads_processor_time() {
    let dash = "0m0.000000s 0m0.000000s\n1m2.500000s 0m3.250000s\n";
    assert_eq!(processor_time(dash), Some(Duration::from_millis(65_750)));
    let bash = "0m0.001s 0m0.002s\n0m0.000s 0m0.010s\n";
    assert_eq!(processor_time(bash), Some(Duration::from_millis(10)));
    assert_eq!(processor_time(""), None);
}
