//! What the operator promises, at many requests and for days.

use crate::calendar::{DAY, HOUR, MINUTE, SECOND, Time};
use crate::tally::{mean, peak};
use crate::upstream::{Outage, Random, Upstream};
use crate::world::{Begin, START, Settings, World};

/// How long after an outage calls are spread.
const AFTERMATH: Time = 30 * MINUTE;

fn settings(requests: u32, shards: u16) -> Settings {
    Settings {
        requests,
        shards,
        namespaces: 100,
        rate: None,
        in_flight: 32,
        concurrency: 32,
        writes: 20,
    }
}

fn calm() -> Upstream {
    Upstream {
        quota: Some(60_000),
        answer: 200,
        ..Upstream::default()
    }
}

fn settled(settings: Settings, upstream: Upstream, length: Time) -> World {
    let mut world = World::new(settings, upstream, Begin::Settled, length).unwrap();
    world.run(length).unwrap();
    world
}

/// Outages of one to 25 minutes, the longest among them, and bursts of a minute, about one of each a day.
fn faults(length: Time) -> Upstream {
    let mut random = Random(1);
    let mut faults = Upstream {
        errors: 50,
        answer: 200,
        ..Upstream::default()
    };
    for day in 0..length.div_ceil(DAY) {
        let from = START + day * DAY + HOUR + random.below(20 * HOUR);
        let minutes = if day == 1 { 25 } else { 1 + random.below(25) };
        let how = if random.below(2) == 0 {
            Outage::Hangs
        } else {
            Outage::Refuses
        };
        faults.outages.push((from, from + minutes * MINUTE, how));
        let from = START + day * DAY + random.below(23 * HOUR);
        faults.bursts.push((from, from + MINUTE));
    }
    faults
}

/// Runs days of faults, prints what came of them, and holds it against the promises.
fn check(requests: u32, length: Time) {
    let faults = faults(length);
    let outages = faults.outages.clone();
    let mut world = World::new(settings(requests, 1), faults, Begin::New, length).unwrap();
    world.run(length).unwrap();
    let scheduled = world.scheduled(length).unwrap();
    let tally = &world.tally;
    let sum = |counts: &[u32]| counts.iter().map(|count| u64::from(*count)).sum::<u64>();
    let (minted, failed) = (sum(&tally.minted), sum(&tally.failed));
    let minutes = length / MINUTE;
    let mean = minted as f64 / minutes as f64;
    let after = |minute: u64| {
        let (from, to) = (START + minute * MINUTE, START + (minute + 1) * MINUTE);
        outages
            .iter()
            .any(|(start, end, _)| to > *start && from < *end + AFTERMATH)
    };
    let peak = |recovering: bool| {
        let within = (DAY / MINUTE..minutes).filter(|minute| after(*minute) == recovering);
        within
            .map(|minute| tally.minted[minute as usize])
            .max()
            .unwrap_or_default()
    };
    let (calm, recovering) = (peak(false), peak(true));
    println!(
        "requests                       {requests}, {} days, {} outages, 5 % errors, a burst of 429 a day\n\
         tokens that ended              {} for {} s\n\
         tokens by the schedule         {scheduled}\n\
         tokens issued                  {minted} ({:+.2} %)\n\
         failed tries                   {failed}, {} of them in outages\n\
         held back, put off             {}, {} (no call)\n\
         mean a minute                  {mean:.1}\n\
         peak minute after day 1        {calm} ({:.2} × mean)\n\
         peak minute of a recovery      {recovering} ({:.2} × mean)",
        length / DAY,
        outages.len(),
        tally.expired,
        tally.expired_for / SECOND,
        (minted as f64 / scheduled as f64 - 1.0) * 100.0,
        world.in_outages(),
        tally.held_back,
        tally.put_off,
        f64::from(calm) / mean,
        f64::from(recovering) / mean,
    );
    assert_eq!(tally.expired, 0, "tokens ended");
    assert!(
        minted.abs_diff(scheduled) * 50 <= scheduled,
        "{minted} tokens, {scheduled} by the schedule"
    );
    // 5 % of all, one in two of the bursts until it is noticed, and single probes of an outage.
    assert!(
        failed <= minted / 17 + world.in_outages() + 2000,
        "{failed} failed tries"
    );
    assert!(
        world.in_outages() <= outages.len() as u64 * 250,
        "{} calls in outages",
        world.in_outages()
    );
    assert!(
        f64::from(calm) <= 2.0 * mean,
        "{calm} in a minute, the mean is {mean}"
    );
    assert!(
        f64::from(recovering) <= 3.0 * mean,
        "{recovering} in a minute, the mean is {mean}"
    );
}

/// With the longest outage in the second day.
#[test]
fn two_days_of_ten_thousand_requests() {
    check(10_000, 2 * DAY);
}

#[test]
#[ignore = "takes a minute where the build is not optimised: cargo test -p idtoken-simulation -- --ignored --nocapture"]
fn a_week_of_ten_thousand_requests() {
    check(10_000, 7 * DAY);
}

/// Steady operation has no peaks, shards share alike, and a failover makes no herd.
fn even(requests: u32, shards: u16, length: Time) {
    let world = settled(settings(requests, shards), calm(), length);
    let tally = &world.tally;
    let minutes = &tally.minted[..(length / MINUTE) as usize];
    assert_eq!((tally.expired, tally.over_quota), (0, 0));
    assert!(
        peak(minutes) <= 1.5 * mean(minutes),
        "{} of {}",
        peak(minutes),
        mean(minutes)
    );
    assert!(
        tally.imbalance() <= 1.1,
        "the busiest shard has {} × the mean",
        tally.imbalance()
    );
    let looked: u32 = tally.reconciled.iter().sum();
    let minted: u32 = tally.minted.iter().sum();
    assert!(looked <= minted + requests, "{looked} looks for {minted} tokens");

    let mut world = World::new(settings(requests, shards), calm(), Begin::Settled, length).unwrap();
    world.restart(START + HOUR, 17 * SECOND);
    world.run(length).unwrap();
    let after = &world.tally.minted[(HOUR / MINUTE) as usize..(length / MINUTE) as usize];
    assert_eq!(world.tally.expired, 0);
    assert!(
        peak(after) <= 1.6 * mean(after),
        "{} of {}",
        peak(after),
        mean(after)
    );
}

#[test]
fn steady_operation_and_a_failover_have_no_peaks() {
    even(20_000, 4, 3 * HOUR);
}

#[test]
fn requests_that_are_all_made_at_once_do_not_stay_together() {
    let length = 6 * HOUR;
    let mut world = World::new(settings(20_000, 1), calm(), Begin::New, length).unwrap();
    world.run(length).unwrap();
    let minutes = &world.tally.minted[..(length / MINUTE) as usize];
    let (all, last) = (mean(minutes), peak(&minutes[minutes.len() - 60..]));
    assert!(world.tally.ready < 10 * MINUTE, "{} ms", world.tally.ready);
    assert!(
        last <= 1.5 * all,
        "{last} in a minute of the last hour, the mean is {all}"
    );
}

#[test]
fn no_token_ends_in_an_outage_that_is_shorter_than_what_is_left_of_them() {
    for how in [Outage::Hangs, Outage::Refuses] {
        let from = START + HOUR;
        let upstream = Upstream {
            outages: vec![(from, from + 25 * MINUTE, how)],
            ..calm()
        };
        let world = settled(settings(5_000, 2), upstream, 2 * HOUR);
        assert_eq!(world.tally.expired, 0, "{how:?}");
        assert!(world.in_outages() > 0);
    }
}

#[test]
#[ignore = "takes minutes where the build is not optimised: cargo test --release -p idtoken-simulation -- --ignored"]
fn a_day_of_a_million_requests() {
    even(1_000_000, 16, DAY);
}
