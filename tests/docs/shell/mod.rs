//! The shell blocks of the pages: each is run, or says why not.
//!
//! Every page is followed twice from top to bottom. First nothing is run at all: so each variable is set before its use, and each long
//! flag is one that its program has. Then all blocks are run, against a real API server where they use one: what is called of the
//! programs in [`STAND_INS`] is only noted. [`EXCEPTIONS`] has the blocks that are not run. A new block on any page is run too.

mod flags;
mod page;
mod readers;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::{Result, ensure};
use futures::StreamExt;
use idtoken_testenv::Progress;
use idtoken_testenv::node::packages;

use crate::texts;
use page::{Block, blocks, unknown_fences};
use readers::{EXCEPTIONS, ON_THE_NODE, Reader, STAND_INS, after, exception, is_on_the_node, named, readers};
use run::{Call, follow, run};

/// What is done with a block.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    Run,
    RunWithStandIns,
    OnTheNode,
    Parsed,
    Excepted,
}

impl Kind {
    const fn text(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::RunWithStandIns => {
                "run, but for calls of clouds, registries, container engines or cargo, which are parsed"
            }
            Self::OnTheNode => "run on the node of the end-to-end tests",
            Self::Parsed => "parsed: they call nothing but clouds, registries, container engines or cargo",
            Self::Excepted => "parsed, as exceptions with a reason",
        }
    }
}

/// What is done with a block of a page that would make these calls.
fn kind(readers: &[Reader], page: &str, block: &Block, calls: &[Call]) -> Result<Kind, String> {
    if block.language == "console" && block.shown.is_empty() {
        return Err(format!("{}: no line begins with a prompt", block.place));
    }
    if exception(page, block).is_some() {
        return Ok(Kind::Excepted);
    }
    if is_on_the_node(page, block) {
        return Ok(Kind::OnTheNode);
    }
    if !readers.iter().any(|reader| reader.runs(page, block)) {
        return Err(format!("{}: no reader runs this block", block.place));
    }
    let of_block = calls.iter().filter(|call| call.block == block.place);
    let (others, own): (Vec<_>, Vec<_>) = of_block.partition(|call| has_stand_in(call));
    Ok(match (others.is_empty(), own.is_empty()) {
        (true, _) => Kind::Run,
        (false, true) => Kind::Parsed,
        (false, false) => Kind::RunWithStandIns,
    })
}

/// Whether a stand-in is called.
fn has_stand_in(call: &Call) -> bool {
    let called = call.words.join(" ");
    let is = |program: &str| {
        let rest = called.strip_prefix(program);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    STAND_INS.iter().any(|(program, _)| is(program))
}

/// What is wrong with the blocks of a page, followed from top to bottom; and the calls that they would make.
fn faults(page: &str, text: &str) -> Result<(Vec<String>, Vec<Call>)> {
    let blocks = blocks(page, text);
    match follow(&blocks)? {
        Err(said) => Ok((vec![said], Vec::new())),
        Ok(calls) => {
            let unknown = calls.iter().filter_map(|call| flags::unknown(call).transpose());
            Ok((unknown.collect::<Result<_>>()?, calls))
        }
    }
}

#[test]
fn every_block_is_run_or_says_why_not() -> Result<()> {
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (page, text) in texts() {
        let (faults, calls) = faults(&page, &text)?;
        wrong.extend(faults);
        wrong.extend(unknown_fences(&page, &text));
        for block in blocks(&page, &text) {
            match kind(readers(&page), &page, &block, &calls) {
                Ok(kind) => *counts.entry(kind).or_default() += 1,
                Err(why) => wrong.push(why),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let total: usize = counts.values().sum();
    let counts: Vec<_> = counts
        .iter()
        .map(|(kind, count)| format!("{count} {}", kind.text()))
        .collect();
    // Not by println: that is kept from whoever reads the log of tests that pass.
    writeln!(
        std::io::stderr(),
        "\ncounted: {total} shell blocks: {}",
        counts.join("; ")
    )?;
    ensure!(total > 70, "only {total} blocks were found");
    Ok(())
}

#[test]
fn what_is_done_with_a_block_is_told_apart() -> Result<()> {
    let text = "# A\n```sh\nkubectl get pods\n```\n```bash\ngcloud projects describe p | jq .\n```\n```sh\ngcloud projects describe p\n\
                kind create cluster\n```\n```sh\nA=1\n```\n```console\n$ kubectl logs a\nb\n```\n";
    let kinds = |page: &str| -> Result<Vec<_>> {
        let (faults, calls) = faults(page, text)?;
        ensure!(faults.is_empty(), "{faults:?}");
        let blocks = blocks(page, text);
        Ok(blocks
            .iter()
            .map(|block| kind(readers(page), page, block, &calls))
            .collect())
    };
    let expected = [
        Kind::Run,
        Kind::RunWithStandIns,
        Kind::Parsed,
        Kind::Run,
        Kind::Parsed,
    ];
    assert_eq!(kinds("docs/x.md")?, expected.map(Ok));
    let node = Kind::OnTheNode;
    let expected = [node, Kind::RunWithStandIns, node, node, Kind::Parsed];
    assert_eq!(kinds(ON_THE_NODE)?, expected.map(Ok));
    let page = "docs/installation.md";
    let blocks = blocks(
        page,
        "# A\n```sh\nA=1\n```\n```sh\nkubectl idtoken explain NAME\n```\n```console\nno prompt\n```\n",
    );
    assert_eq!(kind(readers(page), page, &blocks[0], &[]), Ok(Kind::Run));
    assert_eq!(kind(readers(page), page, &blocks[1], &[]), Ok(Kind::Excepted));
    assert!(kind(readers(page), page, &blocks[2], &[]).is_err());
    let of_another = Reader {
        only: &["B"],
        ..after(&[])
    };
    assert!(kind(&[of_another], page, &blocks[0], &[]).is_err());
    Ok(())
}

#[test]
fn faults_of_blocks_are_found() -> Result<()> {
    let page = |text: &str| faults("docs/x.md", text).map(|(faults, _)| faults);
    let good = "# A\n```sh\nP=1   # a project\n```\ntext $Q\n```sh\ngcloud projects describe \"$P\" --format='value(n)' | jq .a >f\n```\n\
        ```console\n$ kubectl get pods\nNAME $NOT\n```\n";
    assert_eq!(page(good)?, [""; 0]);
    for (bad, said) in [
        (
            "```sh\ngcloud projects describe \"$P\"\n```\n```sh\nP=1\n```\n",
            "P: unbound variable",
        ),
        (
            "```sh\ngcloud projects describe p --formt=json\n```\n",
            "docs/x.md:2: gcloud projects describe has no flag --formt",
        ),
        (
            "```sh\nX=$(gcloud iam service-accounts create a --mail b)\n```\n",
            "gcloud iam service-accounts create has no flag --mail",
        ),
        (
            "```sh\ngcloud projects tell p\n```\n",
            "gcloud projects tell: no such command is known",
        ),
        (
            "```sh\naz aks update --name a | xargs frobnicate\n```\n```sh\nfrobnicate --hard\n```\n",
            "frobnicate --hard: no such command is known",
        ),
        ("```sh\nif true; then\n```\n", "syntax error"),
        (
            "```console\n$ kind create cluster --nam a\n```\n",
            "kind create cluster has no flag --nam",
        ),
    ] {
        let found = page(bad)?;
        assert!(found.len() == 1 && found[0].contains(said), "{bad}: {found:?}");
    }
    Ok(())
}

/// The flags of programs that are here, from what they say of themselves.
#[test]
fn flags_of_the_plugin_and_of_helm_are_theirs() -> Result<()> {
    let page = |text: &str| faults("docs/x.md", text).map(|(faults, _)| faults);
    let good = "```sh\nkubectl idtoken explain NAME --as=USER --proxy-url=URL\nhelm upgrade a b --set c=d --values e\nkubectl get x --raw /y\n```\n";
    assert_eq!(page(good)?, [""; 0]);
    for bad in [
        "kubectl idtoken explain NAME --as-usr=USER",
        "helm upgrade a b --sett c=d",
        "kubectl apply --server-sid -f x",
    ] {
        let found = page(&format!("```sh\n{bad}\n```\n"))?;
        assert!(
            found.len() == 1 && found[0].contains("has no flag"),
            "{bad}: {found:?}"
        );
    }
    Ok(())
}

#[test]
fn each_reader_and_each_exception_has_blocks() {
    let texts: BTreeMap<_, _> = texts().into_iter().collect();
    for page in named() {
        let blocks = blocks(page, &texts[page]);
        let headings: BTreeSet<_> = blocks.iter().map(|block| block.heading.as_str()).collect();
        for reader in readers(page) {
            assert!(blocks.iter().any(|block| reader.runs(page, block)), "{page}");
            for heading in reader.only.iter().chain(reader.without) {
                assert!(headings.contains(heading), "{page}: {heading}");
            }
        }
    }
    for (page, start, _) in EXCEPTIONS {
        let blocks = blocks(page, &texts[page]);
        assert!(
            blocks.iter().any(|block| block.text.starts_with(start)),
            "{page}: {start}"
        );
    }
}

/// A page whose blocks do not do what the page says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_fails_is_found() -> Result<()> {
    let follow = async |text: &str| run("", &blocks("docs/x.md", text)).await;
    follow("```sh\nA=1\n```\n```bash\n[ $A = 1 ]\n```\n```console\n$ echo b $A\nb 2\n$ ls /nonexistent\n…\n```\n").await?;
    for (bad, said) in [
        ("```bash\nfalse\n```\n", "this block failed: docs/x.md:2"),
        ("```sh\nfrobnicate\n```\n", "frobnicate: command not found"),
        (
            "```sh\ngrep a /dev/null | cat\n```\n",
            "this block failed: docs/x.md:2",
        ),
        (
            "```console\n$ echo b\nc\n```\n",
            "docs/x.md:2: echo b\nprints\nb\n",
        ),
        (
            "```console\n$ frobnicate\nc\n```\n",
            "frobnicate: command not found",
        ),
    ] {
        let error = follow(bad).await.map_err(|error| error.to_string());
        assert!(
            error.as_ref().is_err_and(|error| error.contains(said)),
            "{bad}: {error:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_can_be_followed_from_top_to_bottom() -> Result<()> {
    // An error means that another test was faster, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    for package in [("curl", "curl"), ("jq", "jq"), ("ssh-keygen", "openssh-client")] {
        let found = tokio::task::spawn_blocking(move || packages::find_or_skip(package, Progress::Stderr));
        if found.await??.is_none() {
            return Ok(());
        }
    }
    let mut runs = Vec::new();
    for (page, text) in texts() {
        for reader in readers(&page) {
            let mut blocks = blocks(&page, &text);
            blocks.retain(|block| reader.runs(&page, block));
            if !blocks.is_empty() {
                runs.push(async move { run(&reader.commands_before(), &blocks).await });
            }
        }
    }
    // An API server each.
    let done: Vec<_> = futures::stream::iter(runs).buffer_unordered(3).collect().await;
    let wrong: Vec<_> = done
        .into_iter()
        .filter_map(|done| Some(format!("{:#}", done.err()?)))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
    Ok(())
}
