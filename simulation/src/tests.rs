//! The operator's promises, for many requests and for days.

use std::num::NonZeroU32;

use crate::goals::{Goal, cases};
use crate::simulation::{InitialState, Settings, Simulation};
use crate::statistics::{mean, peak};
use crate::time::{DAY, HOUR, MINUTE, SECOND, START, Time};
use crate::upstream::{Outage, Quota, Random, Upstream};

/// How long calls are spread after an outage.
const RECOVERY: Time = 30 * MINUTE;

fn settings(requests: u32, shards: u16) -> Settings {
    Settings {
        requests,
        shards,
        namespaces: 100,
        rate: NonZeroU32::new(1000),
        in_flight: 320,
        concurrency: 32,
        writes: 20,
    }
}

fn no_faults() -> Upstream {
    Upstream {
        quota: Some(Quota::Window { per_minute: 60_000 }),
        latency: 200,
        ..Upstream::default()
    }
}

fn settled(settings: Settings, upstream: Upstream, length: Time) -> Simulation {
    let mut simulation = Simulation::new(settings, upstream, InitialState::Settled, length).unwrap();
    simulation.run(length).unwrap();
    simulation
}

/// An outage of 1 to 25 minutes and a burst of 429 of a minute each day. One of the outages has 25 minutes.
fn faults(length: Time) -> Upstream {
    let mut random = Random(1);
    let mut faults = Upstream {
        errors: 50,
        latency: 200,
        ..Upstream::default()
    };
    for day in 0..length.div_ceil(DAY) {
        let from = START + day * DAY + HOUR + random.below(20 * HOUR);
        let minutes = if day == 1 { 25 } else { 1 + random.below(25) };
        let how = if random.below(2) == 0 {
            Outage::Timeout
        } else {
            Outage::Unavailable
        };
        faults.outages.push((from, from + minutes * MINUTE, how));
        let from = START + day * DAY + random.below(23 * HOUR);
        faults.bursts.push((from, from + MINUTE));
    }
    faults
}

/// Runs days with faults, prints the results, and asserts the promises.
fn check(requests: u32, length: Time) {
    let faults = faults(length);
    let outages = faults.outages.clone();
    let mut simulation = Simulation::new(settings(requests, 1), faults, InitialState::New, length).unwrap();
    simulation.run(length).unwrap();
    let scheduled = simulation.scheduled(length).unwrap();
    let statistics = &simulation.statistics;
    let sum = |counts: &[u32]| counts.iter().map(|count| u64::from(*count)).sum::<u64>();
    let (minted, failed) = (sum(&statistics.minted), sum(&statistics.failed));
    let minutes = length / MINUTE;
    let mean = minted as f64 / minutes as f64;
    let after = |minute: u64| {
        let (from, to) = (START + minute * MINUTE, START + (minute + 1) * MINUTE);
        outages
            .iter()
            .any(|(start, end, _)| to > *start && from < *end + RECOVERY)
    };
    let peak = |recovering: bool| {
        let within = (DAY / MINUTE..minutes).filter(|minute| after(*minute) == recovering);
        within
            .map(|minute| statistics.minted[minute as usize])
            .max()
            .unwrap_or_default()
    };
    let (steady, recovering) = (peak(false), peak(true));
    println!(
        "requests                       {requests}, {} days, {} outages, 5 % errors, a burst of 429 a day\n\
         expired tokens                 {} for {} s\n\
         tokens by the schedule         {scheduled}\n\
         tokens issued                  {minted} ({:+.2} %)\n\
         failed calls                   {failed}, {} of them in outages\n\
         rejected locally, deferred     {}, {} (no call)\n\
         mean a minute                  {mean:.1}\n\
         peak minute after day 1        {steady} ({:.2} × mean)\n\
         peak minute of a recovery      {recovering} ({:.2} × mean)",
        length / DAY,
        outages.len(),
        statistics.expired,
        statistics.expired_for / SECOND,
        (minted as f64 / scheduled as f64 - 1.0) * 100.0,
        simulation.in_outages(),
        statistics.rejected_locally,
        statistics.deferred,
        f64::from(steady) / mean,
        f64::from(recovering) / mean,
    );
    assert_eq!(statistics.expired, 0, "tokens expired");
    assert!(
        minted.abs_diff(scheduled) * 50 <= scheduled,
        "{minted} tokens, {scheduled} by the schedule"
    );
    // 5 % of all calls, half of those in a burst until the circuit opens, and single probes in an outage.
    assert!(
        failed <= minted / 17 + simulation.in_outages() + 2000,
        "{failed} failed calls"
    );
    assert!(
        simulation.in_outages() <= outages.len() as u64 * 250,
        "{} calls in outages",
        simulation.in_outages()
    );
    assert!(
        f64::from(steady) <= 2.0 * mean,
        "{steady} in a minute, the mean is {mean}"
    );
    assert!(
        f64::from(recovering) <= 3.0 * mean,
        "{recovering} in a minute, the mean is {mean}"
    );
}

/// The longest outage is on the second day.
#[test]
fn two_days_of_ten_thousand_requests() {
    check(10_000, 2 * DAY);
}

#[test]
#[ignore = "takes a minute without optimization: cargo test -p idtoken-simulation -- --ignored --nocapture"]
fn a_week_of_ten_thousand_requests() {
    check(10_000, 7 * DAY);
}

/// Asserts that steady operation and a failover have no peaks, and that shards have equal load.
fn assert_evenly_spread(requests: u32, shards: u16, length: Time) {
    let simulation = settled(settings(requests, shards), no_faults(), length);
    let statistics = &simulation.statistics;
    let minutes = &statistics.minted[..(length / MINUTE) as usize];
    assert_eq!((statistics.expired, statistics.over_quota), (0, 0));
    assert!(
        peak(minutes) <= 1.5 * mean(minutes),
        "{} of {}",
        peak(minutes),
        mean(minutes)
    );
    assert!(
        statistics.imbalance() <= 1.1,
        "the busiest shard has {} × the mean",
        statistics.imbalance()
    );
    let reconciled: u32 = statistics.reconciled.iter().sum();
    let minted: u32 = statistics.minted.iter().sum();
    assert!(
        reconciled <= minted + requests,
        "{reconciled} reconciles for {minted} tokens"
    );

    let mut simulation = Simulation::new(
        settings(requests, shards),
        no_faults(),
        InitialState::Settled,
        length,
    )
    .unwrap();
    simulation.restart(START + HOUR, 17 * SECOND);
    simulation.run(length).unwrap();
    let after = &simulation.statistics.minted[(HOUR / MINUTE) as usize..(length / MINUTE) as usize];
    assert_eq!(simulation.statistics.expired, 0);
    assert!(
        peak(after) <= 1.6 * mean(after),
        "{} of {}",
        peak(after),
        mean(after)
    );
}

#[test]
fn steady_operation_and_a_failover_have_no_peaks() {
    assert_evenly_spread(20_000, 4, 3 * HOUR);
}

#[test]
fn requests_that_are_created_at_once_do_not_stay_together() {
    let length = 6 * HOUR;
    let mut simulation =
        Simulation::new(settings(20_000, 1), no_faults(), InitialState::New, length).unwrap();
    simulation.run(length).unwrap();
    let minutes = &simulation.statistics.minted[..(length / MINUTE) as usize];
    let (all, last) = (mean(minutes), peak(&minutes[minutes.len() - 60..]));
    assert!(
        simulation.statistics.ready < 10 * MINUTE,
        "{} ms",
        simulation.statistics.ready
    );
    assert!(
        last <= 1.5 * all,
        "{last} in a minute of the last hour, the mean is {all}"
    );
}

#[test]
fn no_token_expires_in_an_outage_shorter_than_the_remaining_lifetime() {
    for how in [Outage::Timeout, Outage::Unavailable] {
        let from = START + HOUR;
        let upstream = Upstream {
            outages: vec![(from, from + 25 * MINUTE, how)],
            ..no_faults()
        };
        let simulation = settled(settings(5_000, 2), upstream, 2 * HOUR);
        assert_eq!(simulation.statistics.expired, 0, "{how:?}");
        assert!(simulation.in_outages() > 0);
    }
}

#[test]
fn a_cold_start_takes_what_the_quota_leaves_and_no_outage_of_half_an_hour_costs_a_token_or_makes_a_peak() {
    for case in cases(10_000) {
        if !matches!(
            case.goal,
            Goal::Cold { requests: 10_000 } | Goal::ShortOutage | Goal::Hang
        ) {
            continue;
        }
        let figures = case.run(&settings(10_000, 1)).unwrap();
        assert!(figures.are_reached(), "{case:?}: {:?}", figures.figures);
    }
}

#[test]
#[ignore = "takes minutes without optimization: cargo test --release -p idtoken-simulation -- --ignored"]
fn all_goals_are_reached_with_a_hundred_thousand_requests() {
    for case in cases(100_000) {
        let figures = case.run(&settings(100_000, 1)).unwrap();
        assert!(figures.are_reached(), "{case:?}: {:?}", figures.figures);
    }
}

#[test]
#[ignore = "takes minutes without optimization: cargo test --release -p idtoken-simulation -- --ignored"]
fn a_day_of_a_million_requests() {
    assert_evenly_spread(1_000_000, 16, DAY);
}
