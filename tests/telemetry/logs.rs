//! The log: one line for each reconcile that did something or failed.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::common::{LOCKED, Setup, World, has};

/// The lines about reconciles.
fn outcomes(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| !line["duration"].is_null()).collect()
}

/// Creates requests that succeed, are rejected, and are invalid, and returns all log lines.
async fn lines(log: &'static str) -> Result<(World, Vec<Value>)> {
    let world = World::with(Setup {
        log,
        flags: vec!["--log-format=json".to_owned()],
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    for name in ["a", "b", "c"] {
        world.issued("shop", name, json!({})).await?;
    }
    world.renew("shop", "a", "now").await?;
    world
        .wait("a is renewed", async || Ok(world.google.mint_count() == 4))
        .await?;
    world
        .request("shop", "locked", json!({"serviceAccount": LOCKED}))
        .await?;
    world
        .request(
            "shop",
            "wrong",
            json!({"target": {"template": {"data": {"x": "$(nothing)"}}}}),
        )
        .await?;
    for (name, type_) in [("locked", "Reconciling"), ("wrong", "Stalled")] {
        world
            .until("shop", name, "the condition is set", |object| {
                has(object, type_, "True", "")
            })
            .await?;
    }
    let rejected = "idtoken_mint_total{source=\"Impersonation\",result=\"PermissionDenied\"}";
    world
        .wait(
            "it was retried",
            async || Ok(world.metric(rejected).await? >= 2.0),
        )
        .await?;
    world.stop_operator(false).await?;
    let log = world.operator_log();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")));
    let lines = lines.collect::<Result<_>>()?;
    Ok((world, lines))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_outcome_is_one_line_of_json() -> Result<()> {
    let (world, lines) = lines("info").await?;
    let outcomes = outcomes(&lines);
    let mut ids = BTreeSet::new();
    for line in &outcomes {
        for field in [
            "timestamp",
            "level",
            "message",
            "namespace",
            "name",
            "source",
            "reason",
        ] {
            assert!(
                line[field].as_str().is_some_and(|text| !text.is_empty()),
                "{field}: {line}"
            );
        }
        assert!(
            line["duration"].as_f64().is_some_and(|seconds| seconds >= 0.0),
            "{line}"
        );
        assert_eq!(line["spans"][0]["name"], "reconcile");
        assert!(
            ids.insert(line["spans"][0]["id"].as_u64().context("an id")?),
            "{line}"
        );
    }
    let of = |name: &str, reason: &str| {
        let found = outcomes
            .iter()
            .filter(|line| line["name"] == name && line["reason"] == reason);
        found.copied().collect::<Vec<_>>()
    };
    assert_eq!(
        (
            of("a", "Issued").len(),
            of("b", "Issued").len(),
            of("c", "Issued").len()
        ),
        (2, 1, 1)
    );
    let issued = of("a", "Issued");
    assert_eq!(
        (&issued[0]["level"], &issued[0]["source"]),
        (&json!("INFO"), &json!("Impersonation"))
    );
    let causes: Vec<&Value> = issued.iter().map(|line| &line["cause"]).collect();
    assert_eq!(causes, ["Missing", "Requested"]);
    assert!(
        issued[0]["expires"].is_string() && issued[0]["next"].is_string(),
        "{}",
        issued[0]
    );
    // One line each: a reconcile without an action writes none.
    for name in ["b", "c"] {
        let all = outcomes.iter().filter(|line| line["name"] == name).count();
        assert_eq!(all, 1, "{outcomes:#?}");
    }
    let refused = of("locked", "PermissionDenied");
    let attempts: Vec<u64> = refused
        .iter()
        .filter_map(|line| line["attempts"].as_u64())
        .collect();
    let asked = world.asked() - world.google.mint_count();
    assert_eq!(attempts, (1..=asked).collect::<Vec<_>>(), "{refused:#?}");
    assert!(refused.iter().all(|line| line["level"] == "WARN"), "{refused:#?}");
    assert!(
        refused[0]["message"]
            .as_str()
            .is_some_and(|text| text.contains("gcloud"))
    );
    let wrong: Vec<_> = outcomes.iter().filter(|line| line["name"] == "wrong").collect();
    assert_eq!(
        (wrong.len(), &wrong[0]["level"]),
        (1, &json!("WARN")),
        "{wrong:#?}"
    );
    let targets: BTreeSet<&str> = lines.iter().filter_map(|line| line["target"].as_str()).collect();
    assert!(
        targets
            .iter()
            .all(|target| target.starts_with("idtoken_operator")),
        "{targets:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libraries_log_on_demand() -> Result<()> {
    let (_world, lines) = lines("info,hyper_util=debug").await?;
    let by = |target: &str| {
        let found = lines
            .iter()
            .filter(|line| line["target"].as_str().is_some_and(|own| own.starts_with(target)));
        found.count()
    };
    assert!(by("hyper_util") > 0 && by("idtoken_operator") > 0);
    assert_eq!(by("hyper_util") + by("idtoken_operator"), lines.len());
    Ok(())
}
