//! What the pages name exists: tests, flags, environment variables, values of the chart.

use std::collections::BTreeSet;

use clap::CommandFactory;
use idtoken_operator::cli::Cli;
use regex::Regex;
use serde_json::Value;

use crate::{blocks, pages, root, spans, texts};

/// Flags of other programs that stand in code of their own.
const FLAGS_OF_OTHERS: [(&str, &[&str]); 12] = [
    (
        "gcloud",
        &[
            "allowed-audiences",
            "attribute-mapping",
            "http-oidc-service-account-email-override",
            "http-oidc-token-audience-override",
            "include-email",
            "include-license",
            "issuer-uri",
            "jwk-json-path",
            "oidc-service-account-email",
            "oidc-token-audience",
            "push-auth-service-account",
            "push-auth-token-audience",
            "push-endpoint",
            "service-account",
            "uri",
            "url",
        ],
    ),
    (
        "cargo xtask conformance",
        &["cleanup", "google", "member", "metadata-server"],
    ),
    (
        "cargo xtask release",
        &["arch", "cosign-key", "registry", "sign-key", "snapshot"],
    ),
    ("cargo xtask site", &["shots"]),
    ("curl", &["header"]),
    ("docker build", &["build-arg"]),
    (
        "kubectl idtoken",
        &[
            "any-host",
            "authorization-header",
            "claims",
            "from-pod",
            "method",
            "operator-namespace",
            "request-timeout",
            "timeout",
            "wait",
        ],
    ),
    ("kube-state-metrics", &["custom-resource-state-config-file"]),
    ("idtoken-emulator", &["lifetime", "proxy"]),
    ("every program", &["help"]),
    ("Flux", &["default-service-account"]),
    ("Reloader", &["auto-reload-all"]),
];

#[test]
fn every_test_that_a_page_names_exists() {
    let reference = Regex::new("`([a-z0-9_/]+\\.rs)(?:::([a-z0-9_]+))?`").unwrap();
    let mut missing = Vec::new();
    let mut named = 0;
    for page in pages(root()) {
        let text = std::fs::read_to_string(&page).unwrap();
        for found in reference.captures_iter(&text) {
            // A bare file name is an example of one, not a reference.
            if !found[1].contains('/') {
                continue;
            }
            named += 1;
            let source = std::fs::read_to_string(root().join(&found[1])).unwrap_or_default();
            let exists = match found.get(2) {
                None => !source.is_empty(),
                Some(name) => source.split("#[").any(|item| {
                    let is_test = item.starts_with("test]") || item.starts_with("tokio::test");
                    is_test && item.contains(&format!("fn {}(", name.as_str()))
                }),
            };
            if !exists {
                missing.push(format!("{}: {}", page.display(), &found[0]));
            }
        }
    }
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
    assert!(named > 30, "only {named} references were found");
}

/// Claims that look like values of the chart.
const CLAIMS: [&str; 2] = ["google.subject", "google.organization_number"];

/// The flags of `idtoken-operator run`, and their variables.
fn operator() -> (BTreeSet<String>, BTreeSet<String>) {
    let command = Cli::command();
    let run = command.find_subcommand("run").unwrap();
    let flags = run.get_arguments().filter_map(|arg| arg.get_long());
    let variables = run.get_arguments().filter_map(|arg| arg.get_env());
    (
        flags.map(str::to_owned).collect(),
        variables
            .map(|name| name.to_string_lossy().into_owned())
            .collect(),
    )
}

#[test]
fn every_flag_that_a_page_names_exists() {
    let (flags, _) = operator();
    let flag = Regex::new("(?:^|[ \\[])--([a-z][a-z0-9-]+)").unwrap();
    let mut named = 0;
    let mut wrong = Vec::new();
    for (page, text) in texts() {
        let alone = spans(&text).into_iter().filter(|span| span.starts_with("--"));
        let lines = blocks(&text).into_iter().flat_map(|(_, block)| {
            block
                .replace("\\\n", " ")
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
        let commands = lines
            .chain(spans(&text))
            .filter_map(|line| Some(line.split_once("idtoken-operator run ")?.1.to_owned()));
        for code in alone.chain(commands) {
            for found in flag.captures_iter(&code) {
                named += 1;
                let is_others = FLAGS_OF_OTHERS
                    .iter()
                    .any(|(_, flags)| flags.contains(&&found[1]));
                if !flags.contains(&found[1]) && !is_others {
                    wrong.push(format!("{page}: --{}", &found[1]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "no such flags:\n{}", wrong.join("\n"));
    assert!(named > 60, "only {named} flags were found");
}

#[test]
fn every_variable_that_a_page_names_exists() {
    let (_, variables) = operator();
    let variable = Regex::new("IDTOKEN_[A-Z_]+").unwrap();
    let mut sources = String::new();
    for dir in [
        "src",
        "ctl/src",
        "emulator/src",
        "testenv/src",
        "xtask/src",
        "tests",
    ] {
        sources.push_str(&rust(&root().join(dir)));
    }
    for (page, text) in texts() {
        for found in variable.find_iter(&text) {
            let name = found.as_str();
            let known = variables.contains(name) || sources.contains(&format!("\"{name}\""));
            assert!(known, "{page}: nothing reads {name}");
        }
    }
}

#[test]
fn every_metric_that_a_page_names_is_in_the_page_of_metrics() {
    let all = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let metric = Regex::new(r"\bidtoken_[a-z_]*[a-z]\b").unwrap();
    for (page, text) in texts() {
        for found in metric.find_iter(&text) {
            // The crate, as log filters have it.
            let known = found.as_str() == "idtoken_operator" || all.contains(found.as_str());
            assert!(known, "{page}: there is no metric {}", found.as_str());
        }
    }
}

#[test]
fn every_reason_in_a_table_of_errors_is_documented() {
    let all = std::fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    let code = Regex::new("`([^`]+)`").unwrap();
    let mut named = 0;
    for (page, text) in texts() {
        let rows = text
            .split("\n| Reason |")
            .skip(1)
            .flat_map(|table| table.lines().skip(2).take_while(|line| line.starts_with('|')));
        for cell in rows.filter_map(|row| row.split('|').nth(1)) {
            for reason in code.captures_iter(cell) {
                assert!(
                    all.contains(&format!("| `{}` |", &reason[1])),
                    "{page}: there is no reason {}",
                    &reason[1]
                );
                named += 1;
            }
        }
    }
    assert!(named > 80, "only {named} reasons were found");
}

#[test]
fn each_reason_says_when_it_becomes_stalled() {
    let text = std::fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    let code = Regex::new("`([A-Za-z]+)`").unwrap();
    let (_, faults) = text.split_once("\n## The request or its grant").unwrap();
    let tables = faults.split("\n| Reason |").skip(1);
    let rows = tables.flat_map(|table| table.lines().skip(2).take_while(|line| line.starts_with('|')));
    let reasons: Vec<&str> = rows
        .filter_map(|row| Some(code.captures(row.split('|').nth(1)?)?.get(1)?.as_str()))
        .collect();
    let (_, table) = text.split_once("\n| Stalled | Reasons |\n|---|---|\n").unwrap();
    let table: String = table.lines().take_while(|line| line.starts_with('|')).collect();
    assert!(reasons.len() > 50, "only {} reasons were found", reasons.len());
    for reason in &reasons {
        let named = table.matches(&format!("`{reason}`")).count();
        // A client's changes and a webhook's differ.
        let expected = if *reason == "Contested" { 2 } else { 1 };
        assert_eq!(named, expected, "{reason}");
    }
    for named in code.captures_iter(&table) {
        assert!(
            reasons.contains(&named.get(1).unwrap().as_str()),
            "there is no reason {}",
            &named[1]
        );
    }
}

/// All Rust sources below a folder.
fn rust(dir: &std::path::Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&rust(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
    text
}

/// Whether the chart has a value there. What is empty by default may hold anything.
fn has_value(values: &Value, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return true;
    };
    match values {
        Value::Object(fields) if !fields.is_empty() => {
            fields.get(*first).is_some_and(|inner| has_value(inner, rest))
        }
        Value::Object(_) | Value::Array(_) | Value::Null => true,
        _ => false,
    }
}

/// The paths to everything that is set.
fn set_values(values: &Value, path: &[&str], found: &mut Vec<Vec<String>>) {
    match values {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, inner) in fields {
                set_values(inner, &[path, &[name.as_str()]].concat(), found);
            }
        }
        _ => found.push(path.iter().map(|&part| part.to_owned()).collect()),
    }
}

#[test]
fn every_value_of_the_chart_that_a_page_names_exists() {
    let file = root().join("charts/idtoken-operator/values.yaml");
    let values: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let set = Regex::new(r"--set(?:-string|-json|-file)?[ =]'?([A-Za-z][A-Za-z0-9_.]*)[=\[]").unwrap();
    let dotted = Regex::new(r"^([a-z][A-Za-z]*(?:\.[A-Za-z]+)+)(?::.*)?$").unwrap();
    let mut named = Vec::new();
    for (page, text) in texts() {
        let mut of_page: Vec<Vec<String>> = Vec::new();
        let split = |path: &str| path.split('.').map(str::to_owned).collect::<Vec<_>>();
        of_page.extend(set.captures_iter(&text).map(|found| split(&found[1])));
        for span in spans(&text) {
            let path = dotted
                .captures(&span)
                .filter(|found| !CLAIMS.contains(&&found[1]) && !found[1].ends_with(".rs"));
            let path = path.map(|found| split(&found[1]));
            of_page.extend(path.filter(|path| values.get(&path[0]).is_some_and(Value::is_object)));
        }
        for (_, block) in blocks(&text) {
            if block.starts_with("# values.yaml\n") {
                let block: Value = serde_saphyr::from_str(&block).unwrap();
                set_values(&block, &[], &mut of_page);
            }
        }
        named.extend(of_page.into_iter().map(|path| (page.clone(), path)));
    }
    let wrong: Vec<_> = named
        .iter()
        .filter(|(_, path)| !has_value(&values, &path.iter().map(String::as_str).collect::<Vec<_>>()))
        .map(|(page, path)| format!("{page}: {}", path.join(".")))
        .collect();
    assert!(
        wrong.is_empty(),
        "the chart has no such values:\n{}",
        wrong.join("\n")
    );
    assert!(named.len() > 40, "only {} values were found", named.len());
}

#[test]
fn values_are_looked_up_to_their_end() {
    let values = serde_json::json!({"a": {"b": 1, "free": {}}, "list": ["x"]});
    for good in [&["a"][..], &["a", "b"], &["a", "free", "x", "y"], &["list", "0"]] {
        assert!(has_value(&values, good), "{good:?}");
    }
    for bad in [&["b"][..], &["a", "c"], &["a", "b", "c"]] {
        assert!(!has_value(&values, bad), "{bad:?}");
    }
}
