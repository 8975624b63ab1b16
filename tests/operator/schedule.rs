//! When tokens are renewed: what the status says is what happens, for lifetimes and leads of all lengths.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_emulator::{Endpoint, Fault};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use jiff::Timestamp;
use kube::api::ListParams;
use serde_json::json;

use crate::common::{Setup, World, condition, is_ready};

fn renewal(object: &IdTokenRequest) -> Option<Timestamp> {
    let status = object.status.as_ref()?;
    status.renewal_time.as_ref().map(|time| time.0)
}

/// Times of the calls that minted a token for `shop/name`, in milliseconds.
fn mints(world: &World, name: &str) -> Vec<i64> {
    let reason = format!("shop/{name}");
    let calls = world.google.calls().into_iter();
    calls
        .filter(|call| call.endpoint == Endpoint::GenerateIdToken && call.status == Some(200))
        .filter(|call| call.request_reason.as_ref() == Some(&reason))
        .map(|call| call.time_unix_ms)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_status_says_is_what_happens() -> Result<()> {
    let world = World::with(Setup::lifetime(20)).await?;
    world.granted("shop").await?;
    // Asked for, and what comes of it: least and most seconds before the end, a jitter of a tenth included. The status has whole seconds, the
    // ones before.
    let leads = [
        ("absent", None, 10.0, 12.0),
        ("long", Some("1h30m"), 14.0, 16.0),
        ("zero", Some("0s"), 2.0, 4.0),
        ("fits", Some("5s"), 5.0, 7.0),
        ("parts", Some("0.1m500ms"), 7.0, 9.0),
    ];
    for (name, lead, ..) in leads {
        let spec = lead.map_or_else(|| json!({}), |lead| json!({"renewBefore": lead}));
        world.request("shop", name, spec).await?;
    }
    let mut due = BTreeMap::new();
    for (name, _, least, most) in leads {
        let object = world.ready("shop", name).await?;
        let status = object.status.clone().context("a status")?;
        let end = status.token.and_then(|token| token.expiration_time);
        let at = renewal(&object).context("status.renewalTime")?;
        let before = end.context("an end")?.0.duration_since(at).as_secs_f64();
        assert!(
            (least..=most).contains(&before),
            "{name}: {before} s before the end"
        );
        let message = condition(&object, "Ready")
            .map(|ready| ready.message.clone())
            .unwrap_or_default();
        let clamped = message.contains("renewBefore");
        assert_eq!(clamped, ["long", "zero"].contains(&name), "{name}: {message}");
        due.insert(name, at);
    }
    // The same after a restart: the jitter stays.
    world.stop_operator(false).await?;
    world.start_operator().await?;
    for (name, at) in due {
        world
            .wait(&format!("{name} is renewed"), async || {
                Ok(mints(&world, name).len() >= 2)
            })
            .await?;
        let late = mints(&world, name)[1] - at.as_millisecond();
        // Not before, and not after its token expired. A busy machine adds seconds.
        assert!(
            (0..10_000).contains(&late),
            "{name} was renewed {late} ms after its time"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_seconds_are_kept_and_of_days_are_refused() -> Result<()> {
    let world = World::with(Setup::lifetime(3)).await?;
    world.granted("shop").await?;
    world.issued("shop", "seconds", json!({})).await?;
    world
        .wait("tokens of 3 s are renewed in time", async || {
            Ok(mints(&world, "seconds").len() >= 8)
        })
        .await?;
    // After 1.2 to 1.5 s each: neither late nor in a hurry. The `iat` is in whole seconds, which makes it up to 1 s less.
    let gaps: Vec<i64> = mints(&world, "seconds")
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .collect();
    let mean = gaps.iter().sum::<i64>() / i64::try_from(gaps.len())?;
    assert!((500..3000).contains(&mean), "{gaps:?}");
    world.claims("shop", "seconds").await?;

    // No token of Google's is valid for more than an hour: one that says so is not Google's.
    for (name, hours) in [("hours", 2), ("years", 3 * 365 * 24)] {
        world.google.set_lifetime(Duration::from_secs(hours * 3600));
        world.request("shop", name, json!({})).await?;
        world
            .until("shop", name, "the token is refused", |object| {
                condition(object, "Ready").is_some_and(|ready| ready.reason == "TokenMalformed")
            })
            .await?;
        assert!(world.secrets("shop").get_opt(name).await?.is_none(), "{name}");
    }
    world.google.set_lifetime(Duration::from_secs(3600));
    world.issued("shop", "probe", json!({})).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_clock_is_reported() -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "right", json!({})).await?;
    assert!(world.metric("idtoken_clock_skew_seconds").await?.abs() <= 2.0);
    for (name, ahead) in [("behind", 600_i32), ("again", 601), ("ahead", -300)] {
        world.google.fault(Fault::clock(ahead.into()).times(1))?;
        world.issued("shop", name, json!({})).await?;
        let shown = world.metric("idtoken_clock_skew_seconds").await?;
        assert!((shown - f64::from(ahead)).abs() <= 5.0, "{name}: {shown}");
    }
    // One event, since all requests would find the same.
    world
        .wait("it is reported", async || {
            let events = [
                "get",
                "events",
                "-n",
                "shop",
                "--field-selector=reason=ClockSkew",
                "-o",
                "jsonpath={.items[*].note}{.items[*].message}",
            ];
            let reported = world.cluster.kubectl(events).await?;
            Ok(reported.matches("behind Google's").count() == 1
                && reported.matches("the clock of").count() == 1)
        })
        .await?;
    // So far ahead that every token looks expired: nothing is written, and the condition says why.
    world.google.fault(Fault::clock(-7200).times(1))?;
    world.request("shop", "far", json!({})).await?;
    let object = world
        .until("shop", "far", "it is reported", |object| {
            condition(object, "Ready").is_some_and(|ready| ready.reason == "TokenExpired")
        })
        .await?;
    let message = condition(&object, "Ready").map(|ready| ready.message.clone());
    assert!(message.unwrap_or_default().contains("this machine's clock says"));
    let listed = world.requests("shop").list(&ListParams::default()).await?;
    assert_eq!(listed.items.iter().filter(|object| is_ready(object)).count(), 4);
    Ok(())
}
