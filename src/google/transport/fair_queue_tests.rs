use super::*;
use crate::google::transport::circuit_breaker::LAST_PROBE;
use crate::google::vocabulary::Reason;
use proptest::prelude::*;
use proptest::sample::select;

const TOLD: Told = Told {
    reason: Reason::UpstreamTimeout,
    status: None,
};
const FAILED: End = End::Failed {
    told: TOLD,
    after: None,
};

fn turns(in_flight: usize) -> Turns {
    Turns::new(Bounds {
        interval: Duration::ZERO,
        in_flight,
        waiting: 512,
    })
}

fn minutes(minutes: u64) -> Option<Duration> {
    Some(Duration::from_secs(minutes * 60))
}

/// The tickets that start.
fn starts(turns: &mut Turns, now: Instant) -> Vec<Ticket> {
    let started = |(ticket, verdict): (Ticket, Verdict)| (verdict == Verdict::Start).then_some(ticket);
    turns.due(now).0.into_iter().filter_map(started).collect()
}

#[test]
fn a_flood_costs_others_one_turn() {
    let now = Instant::now();
    let mut turns = turns(4);
    let flood: Vec<Ticket> = (0..500)
        .map(|_| turns.enter(now, "flood", minutes(30)).unwrap())
        .collect();
    // Half of the places, however long the queue.
    assert_eq!(starts(&mut turns, now), flood[..2]);
    let small = turns.enter(now, "small", minutes(30)).unwrap();
    assert_eq!(starts(&mut turns, now), [small]);
    // And when all places are taken, the next that is free.
    let third = turns.enter(now, "third", minutes(30)).unwrap();
    assert_eq!(starts(&mut turns, now), [third]);
    let fourth = turns.enter(now, "fourth", minutes(30)).unwrap();
    assert!(starts(&mut turns, now).is_empty());
    turns.ended(now, "flood", now, End::Answered);
    assert_eq!(starts(&mut turns, now), [fourth]);
}

#[test]
fn the_nearest_end_comes_first() {
    let now = Instant::now();
    let mut turns = turns(1);
    let first = turns.enter(now, "a", minutes(30)).unwrap();
    assert_eq!(starts(&mut turns, now), [first]);
    let far = turns.enter(now, "a", minutes(20)).unwrap();
    let none = turns.enter(now, "a", None).unwrap();
    let near = turns.enter(now, "a", Some(Duration::from_secs(20))).unwrap();
    let mut order = Vec::new();
    for _ in 0..3 {
        turns.ended(now, "a", now, End::Answered);
        order.extend(starts(&mut turns, now));
    }
    assert_eq!(order, [near, none, far]);
}

#[test]
fn a_lane_that_hangs_takes_one_place_in_the_end() {
    let start = Instant::now();
    let mut turns = turns(32);
    for _ in 0..100 {
        turns.enter(start, "hung", minutes(30)).unwrap();
    }
    assert_eq!(starts(&mut turns, start).len(), 16);
    let now = start + Duration::from_secs(20);
    for _ in 0..16 {
        turns.ended(now, "hung", start, FAILED);
    }
    // Those that wait hear of it and go.
    let (verdicts, _) = turns.due(now);
    assert_eq!(verdicts.len(), 84);
    assert!(
        verdicts
            .iter()
            .all(|(_, verdict)| matches!(verdict, Verdict::Shut { asked: None, .. }))
    );
    let now = now + LAST_PROBE;
    let probe = turns.enter(now, "hung", minutes(30)).unwrap();
    assert_eq!(starts(&mut turns, now), [probe]);
    assert!(turns.enter(now, "hung", minutes(30)).is_err());
    // Nobody else notices.
    let other = turns.enter(now, "other", minutes(30)).unwrap();
    assert_eq!(starts(&mut turns, now), [other]);
}

#[test]
fn a_lane_that_works_finds_the_way_though_others_fail() {
    let mut now = Instant::now();
    let mut turns = turns(32);
    for lane in ["bad", "worse"] {
        for _ in 0..4 {
            turns.enter(now, lane, minutes(30)).unwrap();
        }
    }
    assert_eq!(starts(&mut turns, now).len(), 8);
    for lane in ["bad", "worse"] {
        (0..4).for_each(|_| turns.ended(now, lane, now, FAILED));
    }
    assert!(turns.enter(now, "bad", minutes(30)).is_err());
    let good = turns.enter(now, "good", minutes(30)).unwrap();
    let (verdicts, wake) = turns.due(now);
    assert!(verdicts.is_empty());
    now = wake.unwrap();
    // Also if others come at the same moment.
    let _ = turns.enter(now, "bad", minutes(30));
    assert_eq!(starts(&mut turns, now), [good]);
    turns.ended(now, "good", now, End::Answered);
    let next = turns.enter(now, "good", minutes(30)).unwrap();
    assert_eq!(starts(&mut turns, now), [next]);
}

#[test]
fn an_outage_for_all_costs_a_probe_each_ten_seconds() {
    let start = Instant::now();
    let mut turns = turns(32);
    let mut calls = 0;
    for second in 0..1500 {
        let now = start + Duration::from_secs(second);
        // 500 requests of 100 namespaces, each trying anew every two minutes.
        for request in (second % 120..500).step_by(120) {
            let lane = format!("{}", request % 100);
            let _ = turns.enter(now, &lane, minutes(20));
        }
        for ticket in starts(&mut turns, now) {
            let _ = ticket;
            calls += 1;
        }
        let lanes: Vec<String> = turns
            .lanes
            .iter()
            .filter(|(_, lane)| lane.in_flight > 0)
            .map(|(name, _)| name.clone())
            .collect();
        for lane in lanes {
            turns.ended(now, &lane, now, FAILED);
        }
    }
    assert!((100..=170).contains(&calls), "{calls} calls in 25 minutes");
}

#[derive(Clone, Debug)]
enum Act {
    Enter(&'static str, Option<u64>),
    End(usize, u8),
    GiveUp(usize),
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (select(vec!["a", "b", "c"]), prop::option::of(1_u64..3600)).prop_map(|(lane, left)| Act::Enter(lane, left)),
        6 => (any::<usize>(), 0_u8..6).prop_map(|(which, how)| Act::End(which, how)),
        1 => any::<usize>().prop_map(Act::GiveUp),
        2 => (1_u64..20_000).prop_map(Act::Wait),
    ]
}

proptest! {
    #[test]
    fn nobody_is_lost_and_no_bound_is_broken(
        acts in prop::collection::vec(act(), 1..200),
        in_flight in 1_usize..8,
        interval in select(vec![0_u64, 100]),
    ) {
        let mut turns = Turns::new(Bounds { interval: Duration::from_millis(interval), in_flight, waiting: 5 });
        let mut now = Instant::now();
        let mut waiting: Vec<(&'static str, Ticket)> = Vec::new();
        let mut running: Vec<(&'static str, Instant)> = Vec::new();
        let mut wake = None;
        for act in acts {
            match act {
                Act::Enter(lane, left) => {
                    if let Ok(ticket) = turns.enter(now, lane, left.map(Duration::from_secs)) {
                        waiting.push((lane, ticket));
                    }
                }
                Act::End(which, how) if !running.is_empty() => {
                    let (lane, started) = running.swap_remove(which % running.len());
                    let end = match how {
                        0 => FAILED,
                        1 => End::Failed { told: TOLD, after: Some(Duration::from_secs(30)) },
                        2 => End::Unknown,
                        _ => End::Answered,
                    };
                    turns.ended(now, lane, started, end);
                }
                Act::GiveUp(which) if !waiting.is_empty() => {
                    let (lane, ticket) = waiting.swap_remove(which % waiting.len());
                    turns.give_up(lane, ticket);
                }
                Act::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                _ => {}
            }
            let (verdicts, next) = turns.due(now);
            for (ticket, verdict) in verdicts {
                let place = waiting.iter().position(|(_, other)| *other == ticket);
                let (lane, _) = waiting.swap_remove(place.expect("one that waits, once"));
                if verdict == Verdict::Start {
                    running.push((lane, now));
                }
            }
            wake = next;
            prop_assert!(running.len() <= in_flight);
            prop_assert_eq!(running.len(), turns.in_flight());
            prop_assert_eq!(waiting.len(), turns.lanes.values().map(|lane| lane.waiting.len()).sum::<usize>());
            prop_assert!(wake.is_none_or(|wake| wake > now), "it would spin");
            // Nobody waits for nothing: with all places free something else holds them, and it ends by itself.
            prop_assert!(waiting.is_empty() || !running.is_empty() || wake.is_some());
        }
        // When all is well, all get their turn.
        for _ in 0..1000 {
            for (lane, started) in running.drain(..) {
                turns.ended(now, lane, started, End::Answered);
            }
            let (verdicts, next) = turns.due(now);
            for (ticket, verdict) in verdicts {
                let place = waiting.iter().position(|(_, other)| *other == ticket);
                let (lane, _) = waiting.swap_remove(place.expect("one that waits, once"));
                if verdict == Verdict::Start {
                    running.push((lane, now));
                }
            }
            if waiting.is_empty() {
                break;
            }
            wake = next.or(wake);
            now = next.unwrap_or(now) + Duration::from_millis(1);
        }
        prop_assert!(waiting.is_empty(), "{} wait for ever", waiting.len());
    }
}
