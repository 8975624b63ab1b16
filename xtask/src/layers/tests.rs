use idtoken_testenv::RunDir;

use super::*;

const TEST_ROOTS: [Root; 2] = [
    Root {
        file: "src/lib.rs",
        name: Some("operator"),
    },
    Root {
        file: "src/main.rs",
        name: None,
    },
];

const TOP: &str = "pub mod high;\npub mod low;\npub use low::Low;\n";
const HIGH: &str = "pub struct High;\npub fn call() {}\npub mod inner { pub struct Deep; }\n";

/// A workspace of two layers, `high` above `low`, with these files in addition or instead.
fn planted(files: &[(&str, &str)]) -> RunDir {
    let dir = RunDir::create("layers").unwrap();
    let usual = [
        (ORDER, "src/main.rs src/lib.rs\nsrc/high # above\nsrc/low\n"),
        (BASELINE, ""),
        ("src/main.rs", "fn main() { operator::high::call(); }\n"),
        ("src/lib.rs", TOP),
        ("src/high/mod.rs", HIGH),
        ("src/low/mod.rs", "pub struct Low;\n"),
    ];
    for (path, text) in usual.iter().chain(files) {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn read(dir: &RunDir) -> Source {
    Source::read(dir.path(), &TEST_ROOTS).unwrap()
}

/// What the check says of `files`.
fn faults(files: &[(&str, &str)]) -> Vec<String> {
    let dir = planted(files);
    read(&dir).faults(&baseline(dir.path()).unwrap())
}

#[test]
fn imports_go_down() {
    assert_eq!(faults(&[]), Vec::<String>::new());
    let down = "pub struct High;\npub fn call() -> crate::low::Low { super::Low }\n";
    assert_eq!(faults(&[("src/high/mod.rs", down)]), Vec::<String>::new());
}

#[test]
fn refuses_an_upward_import_wherever_it_stands() {
    for (line, text, written) in [
        (1, "use crate::high::High;", "crate::high::High"),
        (1, "use super::high::{call as it};", "super::high::call"),
        (1, "use crate::high::*;", "crate::high"),
        (2, "\npub use crate::high;", "crate::high"),
        (
            1,
            "fn f(_: self::super::high::High) {}",
            "self::super::high::High",
        ),
        (1, "fn f() { crate::high::call() }", "crate::high::call"),
        (
            2,
            "fn f() {\nlet x: Option<crate::high::High> = None; }",
            "crate::high::High",
        ),
        (
            1,
            "type T = Vec<crate::high::inner::Deep>;",
            "crate::high::inner::Deep",
        ),
        (
            1,
            "fn f() { if let crate::high::High = g() {} }",
            "crate::high::High",
        ),
        (
            1,
            "fn f() { println!(\"{}\", crate::high::call()) }",
            "crate::high::call",
        ),
        (
            1,
            "#[serde(with = \"crate::high::inner\")] struct S;",
            "crate::high::inner",
        ),
        (1, "impl crate::high::High {}", "crate::high::High"),
    ] {
        let text = format!("{text}\npub struct Low;\n");
        let found = faults(&[("src/low/mod.rs", &text)]);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        let place = format!("src/low/mod.rs:{line}: {written}");
        for part in [
            "src/low/mod.rs imports src/high/mod.rs:",
            &place,
            "src/high (layer 2) stands above src/low (layer 3): by xtask/layers.txt imports go down",
        ] {
            assert!(found[0].contains(part), "{text}: {}", found[0]);
        }
    }
}

#[test]
fn follows_a_re_export_to_the_file_that_defines() {
    let middle = "pub use super::High as Other;\n";
    let files = [
        (
            "src/lib.rs",
            "pub mod high;\npub mod low;\nmod middle;\npub use high::High;\npub use low::Low;\n",
        ),
        ("src/middle.rs", middle),
        ("src/low/mod.rs", "pub struct Low;\nuse crate::middle::Other;\n"),
        (
            ORDER,
            "src/main.rs src/lib.rs\nsrc/high\nsrc/low\nsrc/middle.rs\n",
        ),
    ];
    let found = faults(&files);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with(
        "src/low/mod.rs imports src/high/mod.rs:\n    src/low/mod.rs:2: crate::middle::Other\n"
    ));
    assert!(
        found[1].starts_with("src/middle.rs imports src/high/mod.rs:\n    src/middle.rs:1: super::High\n")
    );
}

#[test]
fn leaves_out_tests_and_other_crates() {
    let low = "use high::High;\nuse ::high::Other;\npub struct Low;\n\
        #[cfg(test)] mod tests { use crate::high::High; }\n#[cfg(test)] mod fixtures;\n\
        #[cfg(all(test, unix))] use crate::high::call;\n#[cfg(test)] fn f() { crate::high::call() }\n\
        impl Low { #[cfg(test)] fn g() { crate::high::call() } }\n";
    assert_eq!(faults(&[("src/low/mod.rs", low)]), Vec::<String>::new());
}

#[test]
fn a_kind_is_where_its_spec_is() {
    let high = "#[derive(CustomResource)]\n#[kube(group = \"g\", kind = \"Thing\", scale(path = \".a\"))]\npub struct ThingSpec;\npub fn call() {}\n";
    let low = "pub struct Low;\nuse crate::Thing;\n";
    let top = "pub mod high;\npub mod low;\npub use high::*;\n";
    let found = faults(&[
        ("src/lib.rs", top),
        ("src/high/mod.rs", high),
        ("src/low/mod.rs", low),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("src/low/mod.rs:2: crate::Thing"), "{found:?}");
}

#[test]
fn finds_a_circle() {
    let files = [
        (
            "src/high/mod.rs",
            "mod a;\nmod b;\nmod c;\npub struct High;\npub fn call() {}\n",
        ),
        ("src/high/a.rs", "use super::b::B;\npub struct A;\n"),
        ("src/high/b.rs", "pub struct B;\n\npub fn f() -> super::c::C {}\n"),
        ("src/high/c.rs", "pub struct C(super::a::A);\n"),
    ];
    let found = faults(&files);
    let circle = "files import one another in a circle:\n    \
        src/high/a.rs:1: super::b::B (src/high/b.rs)\n    \
        src/high/b.rs:3: super::c::C (src/high/c.rs)\n    \
        src/high/c.rs:1: super::a::A (src/high/a.rs)";
    assert_eq!(found, [circle]);

    let known = (BASELINE, "circle src/high/a.rs src/high/b.rs src/high/c.rs\n");
    let with = |more: &[(&'static str, &'static str)]| faults(&[&files[..], more].concat());
    assert_eq!(with(&[known]), Vec::<String>::new());
    let smaller = (BASELINE, "circle src/high/b.rs src/high/c.rs\n");
    let found = with(&[smaller]);
    assert!(found[0].starts_with("files import one another"), "{found:?}");
    assert!(
        found[1].ends_with("\n    circle src/high/b.rs src/high/c.rs"),
        "{found:?}"
    );
    let opened = ("src/high/c.rs", "pub struct C;\n");
    let found = with(&[known, opened]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("no longer true"), "{found:?}");
}

#[test]
fn refuses_a_stale_baseline() {
    for line in [
        "upward src/low/mod.rs -> src/high/mod.rs",
        "circle src/high/mod.rs src/low/mod.rs",
        "long src/low/mod.rs 500",
    ] {
        let found = faults(&[(BASELINE, line)]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("no longer true"), "{found:?}");
        assert!(found[0].ends_with(&format!("\n    {line}")), "{found:?}");
    }
    assert!(Findings::parse("upward src/low/mod.rs\n").is_err());
}

#[test]
fn the_baseline_only_shrinks() {
    let up = "use crate::high::High;\npub struct Low;\n";
    let known = "upward src/low/mod.rs -> src/high/mod.rs\n";
    let dir = planted(&[("src/low/mod.rs", up)]);
    let error = write_in(dir.path(), &TEST_ROOTS).unwrap_err().to_string();
    assert!(error.contains("src/low/mod.rs:1: crate::high::High"), "{error}");
    assert!(error.ends_with(known.trim_end()), "{error}");

    let dir = planted(&[("src/low/mod.rs", up), (BASELINE, known)]);
    write_in(dir.path(), &TEST_ROOTS).unwrap();
    let written = std::fs::read_to_string(dir.path().join(BASELINE)).unwrap();
    assert_eq!(written, format!("{HEADER}\n{known}"));
    assert_eq!(
        read(&dir).faults(&baseline(dir.path()).unwrap()),
        Vec::<String>::new()
    );

    let dir = planted(&[(BASELINE, known)]);
    write_in(dir.path(), &TEST_ROOTS).unwrap();
    assert_eq!(baseline(dir.path()).unwrap(), Findings::default());
}

#[test]
fn every_file_has_a_layer_and_every_layer_a_file() {
    let order = "src/main.rs src/lib.rs\nsrc/low? src/gone\nsrc/later?\n";
    let found = faults(&[(ORDER, order)]);
    assert_eq!(
        found,
        [
            "xtask/layers.txt: src/high/mod.rs is in no layer",
            "xtask/layers.txt: src/low is there now: remove its `?`",
            "xtask/layers.txt: src/gone is an entry that holds no file: remove it",
        ]
    );
    assert!(Order::parse("a b\na").is_err());
    // The longest entry holds a file.
    let order = Order::parse("src/low/own.rs\nsrc\nsrc/low").unwrap();
    let layer = |file| order.place(file).map(|(layer, _)| layer);
    assert_eq!(layer("src/low/own.rs"), Some(0));
    assert_eq!(layer("src/lower.rs"), Some(1));
    assert_eq!(layer("src/low/mod.rs"), Some(2));
    assert_eq!(layer("ctl/src/main.rs"), None);
}

#[test]
fn refuses_a_long_file() {
    let line = "// A line.\n";
    let of = |lines: usize| line.repeat(lines);
    let tests = |lines| format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", of(MAX - 1), of(lines));
    const MAX: usize = 400;
    for (text, path, is_long) in [
        (of(MAX), "bench/src/a.rs", false),
        (of(MAX + 1), "bench/src/a.rs", true),
        (tests(500), "bench/src/a.rs", false),
        (of(MAX + 1), "bench/src/a_tests.rs", false),
        (of(MAX + 1), "tests/a/main.rs", false),
        (of(MAX + 1), "target/a.rs", false),
    ] {
        let found = faults(&[(path, &text)]);
        assert_eq!(!found.is_empty(), is_long, "{path}: {found:?}");
    }
    let found = faults(&[
        ("bench/src/a.rs", &of(MAX + 2)),
        (BASELINE, "long bench/src/a.rs 401"),
    ]);
    assert_eq!(
        found,
        ["bench/src/a.rs has 402 lines (it had 401): at most 400, tests aside"]
    );
    let found = faults(&[
        ("bench/src/a.rs", &of(MAX + 1)),
        (BASELINE, "long bench/src/a.rs 450"),
    ]);
    assert_eq!(found, Vec::<String>::new());
}
