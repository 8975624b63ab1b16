//! The goals of a cold start and of recoveries, and whether they are reached: for both ways in which Google may enforce its quota, alone
//! and beside others who take a third of it.

use anyhow::Result;

use crate::Arguments;
use crate::scenarios::{in_parallel, print_table, thousands};
use crate::simulation::{InitialState, Settings, Simulation};
use crate::statistics::{Statistics, peak};
use crate::time::{HOUR, MINUTE, SECOND, START, Time};
use crate::upstream::{Outage, Quota, Upstream};

/// When an outage starts: late enough for the operator to know how many calls are usual.
const INCIDENT: Time = HOUR;
/// The greatest share of calls that Google may refuse with 429.
const MAX_REFUSED: f64 = 0.02;
/// How long a cold start or a recovery may take, as a multiple of what the quota needs for it.
const SLACK: f64 = 1.25;

/// What happens, and what must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// All requests are new at once: within 1.25 of what the quota needs, all have a token.
    Cold { requests: u32 },
    /// An hour without Google: the same for tokens that expired; then the peaks of the next two hours, whose renewals are still together.
    LongOutage,
    /// Half an hour without Google: no token expires, and the next hour has no peak.
    ShortOutage,
    /// Calls hang for ten minutes: no token expires.
    Hang,
}

/// A goal, and how the quota is enforced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) goal: Goal,
    pub(crate) quota: Quota,
    /// Whether others take a third of the quota.
    pub(crate) others: bool,
}

/// What a run showed.
pub(crate) struct Figures {
    /// Each figure, and the most that it may be.
    pub(crate) figures: Vec<(&'static str, f64, f64)>,
    others_refused: f64,
}

impl Figures {
    /// Whether no figure is above its goal.
    pub(crate) fn are_reached(&self) -> bool {
        self.figures.iter().all(|(_, figure, most)| figure <= most)
    }
}

const QUOTAS: [Quota; 2] = [
    Quota::Bucket { per_second: 1000 },
    Quota::Window { per_minute: 60_000 },
];

/// All cases, with `requests` requests in the larger ones.
pub(crate) fn cases(requests: u32) -> Vec<Case> {
    let goals = [
        Goal::Cold {
            requests: requests / 10,
        },
        Goal::Cold { requests },
        Goal::LongOutage,
        Goal::ShortOutage,
        Goal::Hang,
    ];
    let of_goal = |goal| {
        QUOTAS
            .into_iter()
            .flat_map(move |quota| [false, true].map(|others| Case { goal, quota, others }))
    };
    goals.into_iter().flat_map(of_goal).collect()
}

impl Case {
    /// How long the outage is, and how calls fail in it.
    fn outage(self) -> Option<(Time, Outage)> {
        match self.goal {
            Goal::Cold { .. } => None,
            Goal::LongOutage => Some((60 * MINUTE, Outage::Unavailable)),
            Goal::ShortOutage => Some((30 * MINUTE, Outage::Unavailable)),
            Goal::Hang => Some((10 * MINUTE, Outage::Timeout)),
        }
    }

    /// Simulates the case, with `settings` but for the number of requests of a cold start.
    pub(crate) fn run(self, settings: &Settings) -> Result<Figures> {
        let mut settings = settings.clone();
        let (initial, length) = match self.goal {
            Goal::Cold { requests } => {
                settings.requests = requests;
                (InitialState::New, HOUR)
            }
            Goal::LongOutage => (InitialState::Settled, INCIDENT + 4 * HOUR),
            Goal::ShortOutage => (InitialState::Settled, INCIDENT + 3 * HOUR),
            Goal::Hang => (InitialState::Settled, INCIDENT + HOUR),
        };
        let from = START + INCIDENT;
        let outage = self.outage().map(|(outage, how)| (from, from + outage, how));
        let upstream = Upstream {
            outages: outage.into_iter().collect(),
            quota: Some(self.quota),
            others: self.others,
            latency: 200,
            ..Upstream::default()
        };
        let requests = settings.requests;
        let mut simulation = Simulation::new(settings, upstream, initial, length)?;
        simulation.run(length)?;
        let refused = simulation.statistics.over_quota as f64 / simulation.calls().max(1) as f64;
        let mut figures = self.figures(requests, &simulation.statistics);
        figures.push(("429, of all calls", refused, MAX_REFUSED));
        Ok(Figures {
            figures,
            others_refused: simulation.others_refused(),
        })
    }

    fn figures(self, requests: u32, statistics: &Statistics) -> Vec<(&'static str, f64, f64)> {
        let seconds = |time: Time| time as f64 / SECOND as f64;
        let left = match self.others {
            true => 1000.0 * 2.0 / 3.0,
            false => 1000.0,
        };
        let most = (SLACK * f64::from(requests) / left).ceil();
        let before = (INCIDENT / MINUTE) as usize;
        let mean = || {
            let half = &statistics.minted[before / 2..before];
            half.iter().map(|count| f64::from(*count)).sum::<f64>() / half.len() as f64
        };
        let peak_of = |from: usize| peak(&statistics.minted[from..from + 60]) / mean();
        let back = before + (self.outage().unwrap_or((0, Outage::Timeout)).0 / MINUTE) as usize;
        match self.goal {
            Goal::Cold { .. } => vec![("all ready after, s", seconds(statistics.ready), most)],
            Goal::LongOutage => {
                let longest = statistics.longest_after_outage;
                // The peak of the recovery itself is wanted.
                let next = back + longest.div_ceil(MINUTE) as usize;
                let next = next.min(statistics.minted.len() - 120);
                vec![
                    ("longest expired after it, s", seconds(longest), most),
                    ("peak minute of the first hour / mean", peak_of(next), 5.0),
                    ("peak minute of the second hour / mean", peak_of(next + 60), 2.0),
                ]
            }
            Goal::ShortOutage => vec![
                ("expired", statistics.expired as f64, 0.0),
                ("peak minute of the next hour / mean", peak_of(back), 1.5),
            ],
            Goal::Hang => vec![("expired", statistics.expired as f64, 0.0)],
        }
    }

    fn name(self, requests: u32) -> String {
        match self.goal {
            Goal::Cold { requests } => format!("{} new at once", thousands(requests.into())),
            Goal::LongOutage => format!("{}, 60 min without Google", thousands(requests.into())),
            Goal::ShortOutage => format!("{}, 30 min without Google", thousands(requests.into())),
            Goal::Hang => format!("{}, calls hang for 10 min", thousands(requests.into())),
        }
    }
}

/// Runs all cases on all processors, and prints the figures beside the goals.
pub(crate) fn run_all(arguments: &Arguments) -> Result<()> {
    let requests = arguments.goal_requests;
    let settings = Settings {
        requests,
        shards: 1,
        namespaces: arguments.namespaces,
        rate: Some(arguments.google_rate),
        in_flight: arguments.google_max_in_flight.into(),
        concurrency: arguments.concurrency.into(),
        writes: arguments.writes,
    };
    let rows = in_parallel(&cases(requests), |case| {
        let figures = case.run(&settings)?;
        let of_all = |part: usize| {
            let texts = figures
                .figures
                .iter()
                .map(|(name, figure, most)| match (*name, part) {
                    (name, 0) => name.to_owned(),
                    ("429, of all calls", 1) => format!("{:.2} %", figure * 100.0),
                    ("429, of all calls", _) => format!("{:.0} %", most * 100.0),
                    (_, 1) => format!("{figure:.1}"),
                    _ => format!("{most}"),
                });
            texts.collect::<Vec<_>>().join("; ")
        };
        Ok(vec![
            case.name(requests),
            match case.quota {
                Quota::Bucket { per_second } => format!("{per_second} a second"),
                Quota::Window { per_minute } => format!("{} a minute", thousands(per_minute)),
            },
            if case.others { "a third" } else { "nothing" }.to_owned(),
            of_all(0),
            of_all(1),
            of_all(2),
            if figures.are_reached() { "yes" } else { "NO" }.to_owned(),
            format!("{:.1} %", figures.others_refused * 100.0),
        ])
    });
    let head = [
        "What",
        "Quota",
        "Others take",
        "Figures",
        "Measured",
        "Goals",
        "Reached",
        "429 of others",
    ];
    print_table(&head, rows)
}
