use super::*;
use proptest::prelude::*;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Answers as many calls as the limit allows, all in flight at once, `rounds` times. Returns the limit after each.
fn answer(limit: &mut AdaptiveLimit, now: &mut Instant, latency: Duration, rounds: usize) -> Vec<usize> {
    let round = |_| {
        let in_flight = limit.get();
        let started = *now;
        *now += latency;
        (0..in_flight).for_each(|_| limit.answered(*now, started, in_flight));
        limit.get()
    };
    (0..rounds).map(round).collect()
}

#[test]
fn it_doubles_with_each_answer_time_up_to_the_ceiling() {
    let (mut limit, mut now) = (AdaptiveLimit::new(256), Instant::now());
    assert_eq!(limit.get(), 32);
    assert_eq!(
        answer(&mut limit, &mut now, millis(200), 5),
        [64, 128, 256, 256, 256]
    );
}

#[test]
fn it_does_not_grow_while_something_else_holds_calls_back() {
    let (mut limit, now) = (AdaptiveLimit::new(256), Instant::now());
    for _ in 0..1000 {
        limit.answered(now + millis(200), now, 15);
    }
    assert_eq!(limit.get(), 32);
    limit.answered(now + millis(200), now, 16);
    assert_eq!(limit.get(), 33);
}

#[test]
fn what_was_sent_at_one_limit_lowers_it_once() {
    let (mut limit, mut now) = (AdaptiveLimit::new(256), Instant::now());
    answer(&mut limit, &mut now, millis(200), 3);
    let started = now;
    now += millis(200);
    for _ in 0..100 {
        limit.failed(now, started, 200, LimitMove::Throttled);
    }
    assert_eq!(limit.get(), 160);
    limit.failed(now + millis(1), now, 160, LimitMove::Throttled);
    assert_eq!(limit.get(), 128);
    let expected = [
        ("grown", 224),
        ("throttled", 2),
        ("failed", 0),
        ("timeout", 0),
        ("slow", 0),
    ];
    let moves = LimitMove::ALL.map(|cause| (cause.as_str(), limit.moves()[cause as usize]));
    assert_eq!(moves, expected);
}

#[test]
fn above_the_point_of_the_last_refusal_it_grows_by_two() {
    let (mut limit, mut now) = (AdaptiveLimit::new(256), Instant::now());
    answer(&mut limit, &mut now, millis(200), 2);
    limit.failed(now, now, 100, LimitMove::Throttled);
    assert_eq!(limit.get(), 80);
    now += millis(1);
    let limits = answer(&mut limit, &mut now, millis(200), 4);
    assert!(limits.windows(2).all(|pair| pair[1] - pair[0] <= 2), "{limits:?}");
    assert!((86..=88).contains(&limits[3]), "{limits:?}");
}

#[test]
fn after_an_outage_it_comes_back_fast_to_half_of_what_it_was() {
    let (mut limit, mut now) = (AdaptiveLimit::new(256), Instant::now());
    answer(&mut limit, &mut now, millis(200), 3);
    for in_flight in [200, 100, 50, 1, 1, 1, 1] {
        limit.failed(now, now, in_flight, LimitMove::Failed);
        now += millis(200);
    }
    assert_eq!(limit.get(), 8);
    let limits = answer(&mut limit, &mut now, millis(200), 6);
    assert_eq!(limits[..4], [16, 32, 64, 100]);
    assert!(limits[5] <= 105, "{limits:?}");
}

#[test]
fn answers_that_take_much_longer_lower_it_and_those_of_another_endpoint_become_usual() {
    let (mut limit, mut now) = (AdaptiveLimit::new(256), Instant::now());
    answer(&mut limit, &mut now, millis(200), 4);
    answer(&mut limit, &mut now, millis(380), 3);
    assert_eq!(limit.get(), 256, "within what varies");
    answer(&mut limit, &mut now, millis(600), 1);
    assert_eq!(limit.get(), 204);
    answer(&mut limit, &mut now, millis(600), 1);
    assert!(limit.get() < 204);
    // As slow for minutes: that is how the endpoint is.
    answer(&mut limit, &mut now, millis(600), 1000);
    assert_eq!(limit.get(), 256);
}

#[test]
fn two_that_share_a_quota_come_to_equal_shares() {
    let mut now = Instant::now();
    let mut limits = [AdaptiveLimit::new(256), AdaptiveLimit::new(256)];
    answer(&mut limits[0], &mut now, millis(200), 3);
    // 200 in flight are all that the quota allows.
    let mut shares = [0.0, 0.0];
    for round in 0..2000 {
        let in_flight = limits.each_ref().map(AdaptiveLimit::get);
        let all = in_flight.iter().sum::<usize>();
        let excess = all.saturating_sub(200);
        let started = now;
        now += millis(200);
        for (limit, in_flight) in limits.iter_mut().zip(in_flight) {
            let refused = (excess * in_flight).div_ceil(all);
            (0..refused).for_each(|_| limit.failed(now, started, in_flight, LimitMove::Throttled));
            (refused..in_flight).for_each(|_| limit.answered(now, started, in_flight));
        }
        if round >= 1000 {
            (0..2).for_each(|which| shares[which] += in_flight[which] as f64 / 1000.0);
        }
    }
    assert!((shares[0] - shares[1]).abs() <= 10.0, "{shares:?}");
    assert!(shares[0] + shares[1] >= 170.0, "{shares:?}");
}

proptest! {
    #[test]
    fn it_stays_between_floor_and_ceiling(
        ends in prop::collection::vec((0_usize..5, 1_u64..30_000, 0_usize..400), 1..300),
        ceiling in 1_usize..400,
    ) {
        let (mut limit, mut now) = (AdaptiveLimit::new(ceiling), Instant::now());
        for (how, latency, in_flight) in ends {
            let started = now;
            now += millis(latency);
            match LimitMove::ALL[how] {
                LimitMove::Grown | LimitMove::Slow => limit.answered(now, started, in_flight),
                why => limit.failed(now, started, in_flight, why),
            }
            prop_assert!(limit.get() <= ceiling);
            prop_assert!(limit.get() >= FLOOR.min(ceiling));
        }
        // Whatever has happened, it is found again.
        answer(&mut limit, &mut now, millis(200), 3000);
        prop_assert!(limit.get() + 1 >= ceiling, "{} of {}", limit.get(), ceiling);
    }
}
