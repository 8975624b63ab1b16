use super::*;
use crate::google::transport::circuit_breaker::LAST_PROBE;
use crate::google::vocabulary::Reason;
use proptest::prelude::*;
use proptest::sample::select;

const FAILURE: LastFailure = LastFailure {
    reason: Reason::UpstreamTimeout,
    status: None,
};
const FAILED: CallResult = CallResult::Failed {
    failure: FAILURE,
    retry_after: None,
};

fn queue(in_flight: usize) -> FairQueue {
    FairQueue::new(QueueLimits {
        interval: Duration::ZERO,
        in_flight,
        waiting: 512,
    })
}

fn minutes(minutes: u64) -> Option<Duration> {
    Some(Duration::from_secs(minutes * 60))
}

/// The calls that start.
fn starts(queue: &mut FairQueue, now: Instant) -> Vec<WaiterId> {
    let started = |(id, decision): (WaiterId, Decision)| (decision == Decision::Admit).then_some(id);
    queue.poll(now).0.into_iter().filter_map(started).collect()
}

#[test]
fn a_flood_costs_others_one_turn() {
    let now = Instant::now();
    let mut queue = queue(4);
    let flood: Vec<WaiterId> = (0..500)
        .map(|_| queue.enqueue(now, "flood", minutes(30)).unwrap())
        .collect();
    // All but the share of others, however long the queue is.
    assert_eq!(starts(&mut queue, now), flood[..3]);
    let small = queue.enqueue(now, "small", minutes(30)).unwrap();
    assert_eq!(starts(&mut queue, now), [small]);
    // With all slots taken, the next one that is free.
    let third = queue.enqueue(now, "third", minutes(30)).unwrap();
    assert!(starts(&mut queue, now).is_empty());
    queue.complete(now, "flood", now, CallResult::Answered);
    assert_eq!(starts(&mut queue, now), [third]);
}

#[test]
fn the_token_that_expires_first_comes_first() {
    let now = Instant::now();
    let mut queue = queue(1);
    let first = queue.enqueue(now, "a", minutes(30)).unwrap();
    assert_eq!(starts(&mut queue, now), [first]);
    let far = queue.enqueue(now, "a", minutes(20)).unwrap();
    let none = queue.enqueue(now, "a", None).unwrap();
    let near = queue.enqueue(now, "a", Some(Duration::from_secs(20))).unwrap();
    let mut order = Vec::new();
    for _ in 0..3 {
        queue.complete(now, "a", now, CallResult::Answered);
        order.extend(starts(&mut queue, now));
    }
    assert_eq!(order, [none, near, far]);
}

#[test]
fn a_flow_that_hangs_takes_one_slot_in_the_end() {
    let start = Instant::now();
    let mut queue = queue(32);
    for _ in 0..100 {
        queue.enqueue(start, "hung", minutes(30)).unwrap();
    }
    assert_eq!(starts(&mut queue, start).len(), 25);
    let now = start + Duration::from_secs(20);
    for _ in 0..25 {
        queue.complete(now, "hung", start, FAILED);
    }
    // The waiting calls are rejected.
    let (decisions, _) = queue.poll(now);
    assert_eq!(decisions.len(), 75);
    assert!(decisions.iter().all(|(_, decision)| matches!(
        decision,
        Decision::Reject {
            retry_after: None,
            ..
        }
    )));
    let now = now + LAST_PROBE;
    let probe = queue.enqueue(now, "hung", minutes(30)).unwrap();
    assert_eq!(starts(&mut queue, now), [probe]);
    assert!(queue.enqueue(now, "hung", minutes(30)).is_err());
    // No other flow is affected.
    let other = queue.enqueue(now, "other", minutes(30)).unwrap();
    assert_eq!(starts(&mut queue, now), [other]);
}

#[test]
fn a_flow_that_fails_beside_others_that_work_lowers_no_limit_but_two_do() {
    let start = Instant::now();
    let mut queue = queue(32);
    for flow in ["bad", "good", "worse"] {
        (0..4).for_each(|_| assert!(queue.enqueue(start, flow, minutes(30)).is_ok()));
    }
    assert_eq!(starts(&mut queue, start).len(), 12);
    let now = start + Duration::from_millis(200);
    queue.complete(now, "good", start, CallResult::Answered);
    (0..4).for_each(|_| drop(queue.complete(now, "bad", start, FAILED)));
    assert_eq!(queue.limit(), 32);
    queue.complete(now, "worse", start, FAILED);
    assert_eq!(queue.limit(), 8);
    assert_eq!(queue.limit_moves()[LimitMove::TimedOut as usize], 1);
}

#[test]
fn a_flow_that_works_closes_the_circuit_though_others_fail() {
    let mut now = Instant::now();
    let mut queue = queue(32);
    for flow in ["bad", "worse"] {
        for _ in 0..4 {
            queue.enqueue(now, flow, minutes(30)).unwrap();
        }
    }
    assert_eq!(starts(&mut queue, now).len(), 8);
    for flow in ["bad", "worse"] {
        (0..4).for_each(|_| drop(queue.complete(now, flow, now, FAILED)));
    }
    assert!(queue.enqueue(now, "bad", minutes(30)).is_err());
    let good = queue.enqueue(now, "good", minutes(30)).unwrap();
    let (decisions, wake) = queue.poll(now);
    assert!(decisions.is_empty());
    now = wake.unwrap();
    // Also if calls of a failing flow come at the same moment.
    let _ = queue.enqueue(now, "bad", minutes(30));
    assert_eq!(starts(&mut queue, now), [good]);
    queue.complete(now, "good", now, CallResult::Answered);
    let next = queue.enqueue(now, "good", minutes(30)).unwrap();
    assert_eq!(starts(&mut queue, now), [next]);
}

#[test]
fn an_outage_for_all_costs_a_probe_each_ten_seconds() {
    let start = Instant::now();
    let mut queue = queue(32);
    let mut calls = 0;
    for second in 0..1500 {
        let now = start + Duration::from_secs(second);
        // 500 requests of 100 namespaces, each trying again every two minutes.
        for request in (second % 120..500).step_by(120) {
            let flow = format!("{}", request % 100);
            let _ = queue.enqueue(now, &flow, minutes(20));
        }
        calls += starts(&mut queue, now).len();
        let flows: Vec<String> = queue
            .flows
            .iter()
            .filter(|(_, flow)| flow.in_flight > 0)
            .map(|(name, _)| name.clone())
            .collect();
        for flow in flows {
            queue.complete(now, &flow, now, FAILED);
        }
    }
    assert!((100..=170).contains(&calls), "{calls} calls in 25 minutes");
}

#[test]
fn the_end_of_an_outage_is_told_to_each_flow_that_it_held_back() {
    let mut now = Instant::now();
    let mut queue = queue(32);
    let start = |queue: &mut FairQueue, now: Instant, flow: &str, calls: usize| {
        (0..calls).for_each(|_| assert!(queue.enqueue(now, flow, None).is_ok()));
        assert_eq!(starts(queue, now).len(), calls, "{flow}");
    };
    let fail = |queue: &mut FairQueue, now: Instant, flow: &str, calls: usize| {
        (0..calls).for_each(|_| assert!(queue.complete(now, flow, now, FAILED).is_empty()));
    };
    let answer = |queue: &mut FairQueue, now: Instant, flow: &str| {
        let mut recovered = queue.complete(now, flow, now, CallResult::Answered);
        recovered.sort();
        recovered
    };
    // One flow fails by itself, while another is answered.
    start(&mut queue, now, "own", 5);
    start(&mut queue, now, "good", 2);
    assert!(answer(&mut queue, now, "good").is_empty());
    fail(&mut queue, now, "own", 5);
    assert!(answer(&mut queue, now, "good").is_empty());
    // Then calls of others fail too, and further ones are rejected.
    now += Duration::from_secs(60);
    start(&mut queue, now, "a", 6);
    start(&mut queue, now, "b", 6);
    fail(&mut queue, now, "a", 6);
    now += Duration::from_secs(1);
    fail(&mut queue, now, "b", 6);
    for flow in ["a", "b"] {
        assert!(queue.enqueue(now, flow, None).is_err(), "{flow}");
    }
    queue.enqueue(now, "good", None).unwrap();
    now = queue.poll(now).1.unwrap();
    assert_eq!(starts(&mut queue, now).len(), 1);
    assert_eq!(answer(&mut queue, now, "good"), ["a", "b"]);
    // Their circuits are closed with that of the endpoint, and they are told once.
    for flow in ["a", "b"] {
        now += Duration::from_secs(1);
        start(&mut queue, now, flow, 1);
        assert!(answer(&mut queue, now, flow).is_empty());
    }
    // The one that failed by itself is told when a call of its own is answered.
    now += Duration::from_secs(1);
    start(&mut queue, now, "own", 1);
    assert_eq!(answer(&mut queue, now, "own"), ["own"]);
}

#[test]
fn after_an_outage_the_limit_grows_as_fast_as_at_a_cold_start() {
    let (mut queue, mut now) = (queue(256), Instant::now());
    // A few calls at once, as of an operator that renews now and then. All fail.
    for call in 0..10 {
        let flow = ["a", "b"][call % 2];
        if queue.enqueue(now, flow, None).is_ok() && !starts(&mut queue, now).is_empty() {
            now += Duration::from_millis(100);
            queue.complete(now, flow, now, FAILED);
        }
    }
    assert!(queue.is_open(now));
    assert_eq!(queue.limit(), 8);
    now += LAST_PROBE;
    // Seven seconds of answers after 200 ms, with more calls waiting than may start.
    let mut started = VecDeque::new();
    for _ in 0..7000 {
        while queue.waiting() < 300 && queue.enqueue(now, "c", None).is_ok() {}
        started.extend(starts(&mut queue, now).iter().map(|_| now));
        now += Duration::from_millis(1);
        while let Some(at) = started.pop_front_if(|at| *at + Duration::from_millis(200) <= now) {
            queue.complete(now, "c", at, CallResult::Answered);
        }
    }
    assert_eq!(queue.limit(), 256);
}

#[test]
fn an_outage_is_waited_out_by_a_few_calls_and_rejects_all_others() {
    let start = Instant::now();
    let mut queue = queue(32);
    let flow = |n: usize| format!("flow-{n}");
    for n in 0..40 {
        (0..5).for_each(|_| assert!(queue.enqueue(start, &flow(n), None).is_ok()));
    }
    assert_eq!(starts(&mut queue, start).len(), 32);
    // The first calls time out, while as many as there may be still hang.
    let now = start + Duration::from_secs(20);
    (0..5).for_each(|n| drop(queue.complete(now, &flow(n), start, FAILED)));
    assert!(queue.in_flight() > queue.limit());
    let (decisions, _) = queue.poll(now);
    let rejects = |(_, decision): &(WaiterId, Decision)| matches!(decision, Decision::Reject { .. });
    assert!(decisions.iter().all(rejects), "{decisions:?}");
    assert_eq!((decisions.len(), queue.waiting()), (200 - 32 - PROBERS, PROBERS));
    // Nor does any of the others wait that come now.
    for n in 0..100 {
        assert!(queue.enqueue(now, &flow(n), minutes(30)).is_err(), "{n}");
    }
    // One of those that wait is the next probe. Its answer lets all flows call again.
    (5..32).for_each(|n| drop(queue.complete(now, &flow(n), start, CallResult::Cancelled)));
    let now = queue.poll(now).1.unwrap();
    assert_eq!((starts(&mut queue, now).len(), queue.waiting()), (1, PROBERS - 1));
    let probe = queue.flows.iter().find(|(_, flow)| flow.in_flight > 0);
    let probe = probe.unwrap().0.clone();
    assert_eq!(queue.complete(now, &probe, now, CallResult::Answered).len(), 100);
}

#[test]
fn a_flow_with_waiting_calls_is_congested_until_the_endpoint_stands_still_and_one_without_never() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut queue = queue(32);
    let fill = |queue: &mut FairQueue, flow: &str, calls: usize| {
        (0..calls).for_each(|_| assert!(queue.enqueue(start, flow, minutes(30)).is_ok()));
        starts(queue, start).len()
    };
    assert_eq!(fill(&mut queue, "shop", 25 + CONGESTED_FLOW - 1), 25);
    assert!(!queue.is_congested(start, "shop"));
    assert_eq!(fill(&mut queue, "shop", 1), 0);
    assert!(queue.is_congested(start, "shop"));
    assert!(!queue.is_congested(start, "bank"));
    for flow in ["bank", "depot", "farm", "forge", "mill"] {
        fill(&mut queue, flow, CONGESTED_FLOW - 1);
    }
    assert!(queue.waiting() >= CONGESTED && queue.is_congested(after(1), "mill"));
    // What a namespace without a waiting call starts next may be a repair, which calls nobody.
    assert!(!queue.is_congested(after(1), "neighbour"));
    // Whoever waits for it must not keep those from starting who do not call it.
    assert!(!queue.is_congested(after(2), "mill") && !queue.is_congested(after(2), "shop"));
    queue.complete(after(3), "shop", start, CallResult::Answered);
    assert!(queue.is_congested(after(4), "mill"));
}

#[test]
fn calls_that_start_at_once_are_a_surge_until_they_are_the_average() {
    let start = Instant::now();
    let mut queue = queue(32);
    let mut surge = |calls: usize| {
        (0..calls).for_each(|_| assert!(queue.enqueue(start, "shop", minutes(30)).is_ok()));
        starts(&mut queue, start);
        queue.surge(start)
    };
    assert_eq!((surge(8), surge(17)), (0, 17));
    // None of them has ended: calls that hang hold nobody back.
    assert_eq!(queue.surge(start + Duration::from_secs(1)), 0);
}

#[derive(Clone, Debug)]
enum Act {
    Enqueue(&'static str, Option<u64>),
    Complete(usize, u8),
    Cancel(usize),
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (select(vec!["a", "b", "c"]), prop::option::of(1_u64..3600)).prop_map(|(flow, remaining)| Act::Enqueue(flow, remaining)),
        6 => (any::<usize>(), 0_u8..6).prop_map(|(which, how)| Act::Complete(which, how)),
        1 => any::<usize>().prop_map(Act::Cancel),
        2 => (1_u64..20_000).prop_map(Act::Wait),
    ]
}

proptest! {
    #[test]
    fn no_call_is_lost_and_no_limit_is_exceeded(
        acts in prop::collection::vec(act(), 1..200),
        in_flight in 1_usize..8,
        interval in select(vec![0_u64, 100]),
    ) {
        let mut queue = FairQueue::new(QueueLimits { interval: Duration::from_millis(interval), in_flight, waiting: 5 });
        let mut now = Instant::now();
        let mut waiting: Vec<(&'static str, WaiterId)> = Vec::new();
        let mut running: Vec<(&'static str, Instant)> = Vec::new();
        let mut wake = None;
        for act in acts {
            match act {
                Act::Enqueue(flow, remaining) => {
                    if let Ok(id) = queue.enqueue(now, flow, remaining.map(Duration::from_secs)) {
                        waiting.push((flow, id));
                    }
                }
                Act::Complete(which, how) if !running.is_empty() => {
                    let (flow, started) = running.swap_remove(which % running.len());
                    let result = match how {
                        0 => FAILED,
                        1 => CallResult::Failed { failure: FAILURE, retry_after: Some(Duration::from_secs(30)) },
                        2 => CallResult::Cancelled,
                        _ => CallResult::Answered,
                    };
                    queue.complete(now, flow, started, result);
                }
                Act::Cancel(which) if !waiting.is_empty() => {
                    let (flow, id) = waiting.swap_remove(which % waiting.len());
                    queue.cancel(flow, id);
                }
                Act::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                _ => {}
            }
            let (decisions, next) = queue.poll(now);
            for (id, decision) in decisions {
                let position = waiting.iter().position(|(_, other)| *other == id);
                let (flow, _) = waiting.swap_remove(position.expect("decided once, while it waits"));
                if decision == Decision::Admit {
                    running.push((flow, now));
                }
            }
            wake = next;
            prop_assert!(running.len() <= in_flight);
            prop_assert_eq!(running.len(), queue.in_flight());
            prop_assert_eq!(waiting.len(), queue.flows.values().map(|flow| flow.waiting.len()).sum::<usize>());
            prop_assert_eq!(waiting.len(), queue.waiting());
            prop_assert!(wake.is_none_or(|wake| wake > now), "it would spin");
            // Nothing waits in vain: with all slots free something else holds the calls back, and that passes with time.
            prop_assert!(waiting.is_empty() || !running.is_empty() || wake.is_some());
        }
        // Once all calls are answered, each waiting call starts.
        for _ in 0..1000 {
            for (flow, started) in running.drain(..) {
                queue.complete(now, flow, started, CallResult::Answered);
            }
            let (decisions, next) = queue.poll(now);
            for (id, decision) in decisions {
                let position = waiting.iter().position(|(_, other)| *other == id);
                let (flow, _) = waiting.swap_remove(position.expect("decided once, while it waits"));
                if decision == Decision::Admit {
                    running.push((flow, now));
                }
            }
            if waiting.is_empty() {
                break;
            }
            wake = next.or(wake);
            now = next.unwrap_or(now) + Duration::from_millis(1);
        }
        prop_assert!(waiting.is_empty(), "{} wait forever", waiting.len());
    }
}
