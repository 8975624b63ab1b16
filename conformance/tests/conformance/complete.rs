//! Whatever the emulator does is an assertion or a behaviour, and so has a row in docs/emulator.md.

use std::collections::BTreeSet;
use std::path::Path;

use idtoken_conformance::{Assertion, Emulated, all, behaviours};
use serde_json::Value;

use crate::source::{all_code, code, found, variants};

/// Headers of every HTTP server.
const USUAL: [&str; 1] = ["content-type"];
/// What is no part of Google's endpoints: services behind front ends have docs/targets.md.
const OTHER_FILES: [&str; 3] = ["front_end.rs", "target.rs", "admin.rs"];

/// All that the emulator's code names: endpoints, faults, headers and paths.
fn named() -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let mut add = |kind: &str, names: Vec<String>| {
        assert!(!names.is_empty(), "the code has no {kind}");
        named.extend(names.into_iter().map(|name| format!("{kind} {name}")));
    };
    let faults = code("emulator/src/faults.rs");
    add(
        "endpoint",
        variants(&code("emulator/src/call_log.rs"), "Endpoint"),
    );
    add("fault", variants(&faults, "FaultKind"));
    add("token", variants(&faults, "WrongToken"));
    add("denied", variants(&faults, "DeniedBy"));
    add("quota", variants(&code("emulator/src/quota.rs"), "Enforcement"));
    for (path, code) in all_code("emulator/src") {
        if OTHER_FILES.iter().any(|other| path.ends_with(other)) {
            continue;
        }
        let request = found(r#"\.header\(\s*"([a-z0-9-]+)"\s*\)"#, &code);
        let response = found(r"header::([A-Z_]+)", &code);
        let response = response
            .iter()
            .map(|name| name.to_ascii_lowercase().replace('_', "-"));
        let inserted = found(r#"headers\.insert\("([A-Za-z-]+)""#, &code);
        let inserted = inserted.iter().map(|name| name.to_ascii_lowercase());
        let headers = request.into_iter().chain(response).chain(inserted);
        named.extend(
            headers
                .filter(|name| !USUAL.contains(&name.as_str()))
                .map(|name| format!("header {name}")),
        );
    }
    // Paths, and what follows the name of an account.
    for file in ["routing.rs", "metadata.rs", "aws.rs"] {
        let code = code(&format!("emulator/src/{file}"));
        for pattern in [
            r#""(/[A-Za-z0-9/_.-]*)""#,
            r#"\(account, "([A-Za-z]+)"\)"#,
            r#"(?m)^        "([a-z]+)"(?: if [a-z]+)? =>"#,
            r#"path == "([a-z/-]+)""#,
            r#"strip_prefix\("([a-z]+/[a-z/-]+)"\)"#,
        ] {
            named.extend(
                found(pattern, &code)
                    .into_iter()
                    .map(|path| format!("path {path}")),
            );
        }
    }
    named
}

/// What an assertion shows of it, but for endpoints.
fn shown(assertion: &Assertion) -> BTreeSet<String> {
    let mut shown = BTreeSet::new();
    let asked = &assertion.request;
    let headers = asked.headers.keys().chain(assertion.answer.headers.keys());
    shown.extend(headers.map(|name| format!("header {name}")));
    if asked.bearer.is_some() {
        shown.insert("header authorization".to_owned());
    }
    let fault = serde_json::to_value(&assertion.fault).unwrap();
    for (kind, field) in [("fault", "type"), ("denied", "by"), ("token", "wrong")] {
        if let Value::String(name) = &fault["kind"][field] {
            shown.insert(format!("{kind} {name}"));
        }
    }
    shown
}

#[tokio::test]
async fn each_thing_that_the_emulator_does_has_a_row() {
    let assertions = all().unwrap();
    let emulated = Emulated::start().await.unwrap();
    let mut covered: BTreeSet<String> = BTreeSet::new();
    for assertion in &assertions {
        assert_eq!(
            emulated.check(assertion).await.unwrap().failures,
            [""; 0],
            "{}",
            assertion.name
        );
        covered.extend(shown(assertion));
    }
    covered.extend(emulated.endpoints().iter().map(|name| format!("endpoint {name}")));
    // Some go through the proxy, and say nothing of it.
    covered.remove("endpoint proxy");
    covered.extend(
        behaviours()
            .unwrap()
            .into_iter()
            .flat_map(|behaviour| behaviour.covers),
    );
    let named = named();
    let paths: Vec<_> = assertions.iter().map(|one| one.call().1).collect();
    let is_covered = |name: &String| match name.strip_prefix("path ") {
        Some(path) => paths.iter().any(|asked| asked.contains(path)),
        None => covered.contains(name),
    };
    let missing: Vec<_> = named.iter().filter(|name| !is_covered(name)).collect();
    assert!(
        missing.is_empty(),
        "nothing says how these are known: {missing:#?}"
    );
    // What is not in the code any more.
    let gone: Vec<_> = covered
        .iter()
        .filter(|name| !name.starts_with("header ") && !named.contains(*name))
        .collect();
    assert!(gone.is_empty(), "the emulator has no {gone:#?}");
    for name in [
        "fault hang",
        "header x-goog-user-project",
        "header retry-after",
        "path /latest/",
        "path aliases",
    ] {
        assert!(named.contains(name), "{name} is not found in the code");
    }
}

#[test]
fn each_row_and_each_control_is_on_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/emulator.md")).unwrap();
    let rows = all().unwrap().into_iter().map(|one| (one.says, one.source));
    let others = behaviours()
        .unwrap()
        .into_iter()
        .map(|one| (one.says, one.source));
    for (says, source) in rows.chain(others) {
        let row = format!("| {says} | {} |", source.link());
        assert!(page.contains(&row), "docs/emulator.md lacks {row}");
    }
    let controls = found(r#"Method::[A-Z]+, "([a-z-]+)"\)"#, &code("emulator/src/admin.rs"));
    assert!(controls.len() > 10, "{controls:?}");
    for control in controls {
        assert!(
            page.contains(&format!("/_emulator/{control}` |")),
            "docs/emulator.md lacks {control}"
        );
    }
    let faults = variants(&code("emulator/src/faults.rs"), "FaultKind");
    for fault in faults {
        assert!(
            page.contains(&format!("`{fault}`")),
            "docs/emulator.md lacks {fault}"
        );
    }
}
