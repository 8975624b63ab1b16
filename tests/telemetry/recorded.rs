//! What a real operator serves, recorded for the tests of `kubectl idtoken doctor`: `IDTOKEN_RECORD=1 cargo xtask test the_recorded_answers`
//! writes it again.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use idtoken_testenv::until;
use regex::Regex;
use serde_json::json;

use crate::common::{LIMIT, LOCKED, Setup, World, has};
use crate::page::read;

const FOLDER: &str = "ctl/tests/recorded";

/// The series of a scrape without their values: names and names of labels, and also the values of labels that the plugin decides by.
fn series(text: &str) -> BTreeSet<String> {
    const DECIDING: [&str; 4] = [
        "idtoken_mint_total",
        "idtoken_upstream_request_duration_seconds_count",
        "idtoken_upstream_circuits_open",
        "idtoken_watches_failing",
    ];
    let value = Regex::new(r#"="(?:[^"\\]|\\.)*""#).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let names = samples.filter_map(|line| Some(line.rsplit_once(' ')?.0));
    names
        .map(
            |name| match DECIDING.iter().any(|known| name.starts_with(known)) {
                true => name.to_owned(),
                false => value.replace_all(name, "").into_owned(),
            },
        )
        .collect()
}

/// An answer of `/readyz?verbose` without its times.
fn timeless(text: &str) -> String {
    let time = Regex::new(r"since [0-9T:.-]+Z").unwrap();
    time.replace_all(text, "since then").into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorded_answers_are_those_of_the_operator() -> Result<()> {
    let world = World::with(Setup {
        flags: ["--leader-elect", "--lease-namespace=idtoken-system"]
            .map(str::to_owned)
            .into(),
        grants_file: Some("[]".to_owned()),
        ..Setup::lifetime(600)
    })
    .await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let locked = json!({"serviceAccount": LOCKED});
    world.request("shop", "locked", locked).await?;
    world
        .until("shop", "locked", "it is refused", |object| {
            has(object, "Ready", "False", "PermissionDenied")
        })
        .await?;
    std::fs::write(world.grants_file(), "- name: broken\n")?;
    let metrics = until("the broken file is reported", LIMIT, async || {
        let scrape = world.scrape().await?;
        let fails = scrape
            .lines()
            .any(|line| line.starts_with("idtoken_grants_file_failing_since"));
        Ok(fails.then_some(scrape))
    })
    .await?;
    let health = world.running()?.get("/readyz?verbose").await?.text().await?;
    if std::env::var_os("IDTOKEN_RECORD").is_some() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("metrics.txt"), &metrics)?;
        std::fs::write(folder.join("readyz.txt"), &health).context("the folder can be written")?;
    }
    let again = "record them again: see tests/telemetry/recorded.rs";
    let recorded = series(&read(&format!("{FOLDER}/metrics.txt")));
    let served = series(&metrics);
    let gone: Vec<_> = recorded.difference(&served).collect();
    let new: Vec<_> = served.difference(&recorded).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "gone {gone:?}, new {new:?}: {again}"
    );
    assert_eq!(
        timeless(&health),
        timeless(&read(&format!("{FOLDER}/readyz.txt"))),
        "{again}"
    );
    Ok(())
}
