//! Pure: the answers of the operator's pods to `/readyz?verbose` → which of their own checks fail.

use std::collections::BTreeMap;

use idtoken_operator::text::redacted;

use crate::decisions::checkup::{Check, Seen, some};

const AREA: &str = "health";

/// Most lines of an answer that are read, and most checks that are shown as failing.
const MAX_LINES: usize = 200;
const MAX_FAILING: usize = 10;

/// Longest name of a check and longest text of a known one, in characters.
const MAX_NAME: usize = 40;
const MAX_TEXT: usize = 300;

/// One check of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthLine {
    name: String,
    passes: bool,
    text: String,
}

/// The checks in an answer, `[+]NAME TEXT` or `[-]NAME TEXT`. Other lines are left out.
pub(crate) fn parse(answer: &str) -> Vec<HealthLine> {
    answer.lines().filter_map(line).take(MAX_LINES).collect()
}

fn line(line: &str) -> Option<HealthLine> {
    let (passes, rest) = match line.strip_prefix("[+]") {
        Some(rest) => (true, rest),
        None => (false, line.strip_prefix("[-]")?),
    };
    let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let is_name = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    is_name.then(|| HealthLine {
        name: name.to_owned(),
        passes,
        text: text.to_owned(),
    })
}

/// Whether a pod has answered with checks.
pub(crate) fn is_seen(health: &[(String, Seen<Vec<HealthLine>>)]) -> bool {
    let answers = health.iter().filter_map(|(_, lines)| lines.as_ref().ok());
    answers.into_iter().any(|lines| !lines.is_empty())
}

/// The checks of the pods in `namespace`. What several pods say is shown once.
pub(crate) fn checks(namespace: &str, health: &[(String, Seen<Vec<HealthLine>>)]) -> Vec<Check> {
    let mut failing = BTreeMap::<(&str, &str), (&HealthLine, Vec<&str>)>::new();
    let (mut passing, mut answered, mut unseen) = (0, 0, Vec::new());
    for (pod, lines) in health {
        match lines {
            Ok(lines) if lines.is_empty() => unseen.push(format!("{pod} answers without checks")),
            Ok(lines) => {
                answered += 1;
                passing += lines.iter().filter(|line| line.passes).count();
                for line in lines.iter().filter(|line| !line.passes) {
                    // Each pod has seen it at a time of its own.
                    let what = line.text.split(" since ").next().unwrap_or_default();
                    let (_, pods) = failing.entry((&line.name, what)).or_insert((line, Vec::new()));
                    pods.push(pod);
                }
            }
            Err(why) => unseen.push(format!("{pod}: {why}")),
        }
    }
    let more = failing.len().saturating_sub(MAX_FAILING);
    let mut checks: Vec<Check> = failing
        .into_values()
        .take(MAX_FAILING)
        .map(|(line, pods)| failure(namespace, line, &pods))
        .collect();
    if more > 0 {
        checks.push(Check::failure(
            AREA,
            format!("{more} more checks of the operator's own fail"),
            "The operator's /readyz?verbose has all of them",
        ));
    }
    if checks.is_empty() && answered > 0 {
        let message = format!("all {passing} checks pass in the {answered} pods that answered /readyz");
        checks.push(Check::ok(AREA, message));
    }
    if !unseen.is_empty() {
        checks.push(Check::unseen(AREA, some(&unseen)));
    }
    checks
}

fn failure(namespace: &str, line: &HealthLine, pods: &[&str]) -> Check {
    let pod = pods.first().copied().unwrap_or_default();
    let others = match pods.len() {
        0 | 1 => String::new(),
        several => format!(" and {} more", several - 1),
    };
    let logs = format!("kubectl logs -n {namespace} {pod}");
    let told = |message: &str| format!("{}: {message} ({pod}{others})", line.name);
    let text = redacted(&line.text, MAX_TEXT);
    match line.name.as_str() {
        "caches" => Check::failure(
            AREA,
            told(&text),
            format!("docs/metrics.md#idtokenoperatornotready; {logs} names the list or watch that fails"),
        ),
        "grants-file" => Check::failure(
            AREA,
            told(&text),
            format!("docs/metrics.md#idtokengrantsfileinvalid; {logs} names the error"),
        ),
        "namespace" => Check::failure(
            AREA,
            told(&text),
            "Run helm upgrade again, which creates the operator's Roles there, or take it out of watchNamespaces",
        ),
        "scope" => Check::warning(
            AREA,
            told(&text),
            "Give the releases namespaces (watchNamespaces) or selectors that do not overlap: docs/operations.md#releases-that-overlap",
        ),
        // A text that this version does not know may be anyone's.
        _ => Check::failure(AREA, told("it fails"), logs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decisions::checkup::Level;

    fn pod(name: &str, answer: &str) -> (String, Seen<Vec<HealthLine>>) {
        (name.to_owned(), Ok(parse(answer)))
    }

    #[test]
    fn each_check_that_fails_is_named_with_a_fix() {
        for (line, level, says, fix) in [
            (
                "[-]caches the caches are not synced yet",
                Level::Failure,
                "caches: the caches are not synced yet (operator-a)",
                "kubectl logs -n ops operator-a",
            ),
            (
                "[-]grants-file is no valid list of grants since 1970-01-01T00:00:00Z, so its last good content is in force",
                Level::Failure,
                "grants-file: is no valid list",
                "docs/metrics.md#idtokengrantsfileinvalid",
            ),
            (
                "[-]namespace shop cannot be listed or watched since 1970-01-01T00:00:00Z: forbidden",
                Level::Failure,
                "namespace: shop cannot be listed",
                "watchNamespaces",
            ),
            (
                "[-]scope overlaps with that of the release of Lease b in namespace ops since 1970-01-01T00:00:00Z: both",
                Level::Warning,
                "scope: overlaps with that of the release of Lease b",
                "selectors that do not overlap",
            ),
            (
                "[-]new-check <html>a body",
                Level::Failure,
                "new-check: it fails (operator-a)",
                "kubectl logs",
            ),
        ] {
            let checks = checks("ops", &[pod("operator-a", &format!("[+]other ok\n{line}\n"))]);
            assert_eq!(checks.len(), 1, "{checks:?}");
            let check = &checks[0];
            assert_eq!(check.level, level, "{check:?}");
            assert!(check.message.starts_with(says), "no {says:?} in {check:?}");
            assert!(check.fix.contains(fix), "no {fix:?} in {check:?}");
            assert!(!check.message.contains("<html>"), "{check:?}");
        }
    }

    #[test]
    fn what_a_real_operator_answers_is_read() {
        // As a real operator answered: tests/telemetry/recorded.rs holds it up to date.
        let answer = include_str!("../../tests/recorded/readyz.txt");
        let found = checks("ops", &[pod("operator-a", answer)]);
        assert_eq!(parse(answer).len(), answer.lines().count());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0]
                .message
                .starts_with("grants-file: is no valid list of grants since "),
            "{found:?}"
        );
    }

    #[test]
    fn what_several_pods_say_is_shown_once_and_what_is_not_seen_is_told() {
        let text = |time: &str| format!("[+]caches ok\n[-]grants-file cannot be read since {time}, so\n");
        let two = [
            pod("a", &text("1970-01-01T00:00:00Z")),
            pod("b", &text("1970-01-01T00:00:09Z")),
        ];
        let found = checks("ops", &two);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.ends_with("(a and 1 more)"), "{found:?}");
        let well = "[+]caches ok\n[+]grants-file ok\n";
        let found = checks(
            "ops",
            &[pod("a", well), ("b".to_owned(), Err("you may not".to_owned()))],
        );
        assert_eq!(
            found.iter().map(|check| check.level).collect::<Vec<_>>(),
            [Level::Ok, Level::Unseen]
        );
        assert!(found[0].message.starts_with("all 2 checks pass"), "{found:?}");
        let found = checks("ops", &[pod("a", "<html>\n[-]UPPER x\n[-] x\n")]);
        assert_eq!(found[0].level, Level::Unseen, "{found:?}");
        assert!(!is_seen(&[pod("a", "")]) && is_seen(&two));
        assert_eq!(checks("ops", &[]), []);
    }

    #[test]
    fn an_answer_is_bounded_and_escaped() {
        let many: String = (0..1000).map(|at| format!("[-]namespace n{at} x\n")).collect();
        assert_eq!(parse(&many).len(), MAX_LINES);
        let found = checks("ops", &[pod("a", &many)]);
        assert_eq!(found.len(), MAX_FAILING + 1);
        let hostile = format!("[-]namespace \u{1b}[2J{}\n", "x".repeat(5000));
        let found = checks("ops", &[pod("a", &hostile)]);
        assert!(
            found[0].message.len() < 400 && !found[0].message.contains('\u{1b}'),
            "{found:?}"
        );
    }
}
