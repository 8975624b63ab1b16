//! The shell blocks of the pages: each is run, or at least followed by a shell that notes what it would call.
//!
//! Every page is followed from top to bottom with nothing run at all: so each variable is set before its use, and each long flag is one
//! that its program has. Beyond that, the pages of [`RUNS`] are run against a real API server, and the tutorial on the node of the
//! end-to-end tests.

mod flags;
mod page;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use idtoken_testenv::Progress;
use idtoken_testenv::node::packages;

use crate::{root, texts};
use page::{Block, blocks};
use run::{Call, follow, run};

/// The page whose blocks `tests/e2e/src/tutorial.rs` runs.
const ON_THE_NODE: &str = "docs/tutorial.md";

/// Programs of clouds, registries and container engines, of which a stand-in is run, and the project's tasks, which CI runs by themselves.
const STAND_INS: [&str; 10] = [
    "aws", "az", "cargo", "cosign", "crane", "docker", "gcloud", "gh", "kind", "vault",
];

/// Blocks of pages that are run which cannot be run themselves: how they begin, and why.
const ONLY_FOLLOWED: [(&str, &str, &str); 4] = [
    (
        "docs/installation.md",
        "kubectl idtoken explain NAME",
        "the words in capitals stand for names",
    ),
    (
        "docs/upgrade-policy.md",
        "helm upgrade idtoken-operator OLDER-CHART",
        "there is no older chart",
    ),
    ("docs/images.md", "", "cargo and docker alone"),
    ("docs/releasing.md", "", "there is no release"),
];

/// A page that is run, with what its reader has before it.
struct Run {
    page: &'static str,
    /// Only the blocks under these headings; empty for all.
    only: &'static [&'static str],
    /// All but the blocks under these headings.
    without: &'static [&'static str],
    before: &'static str,
}

const fn whole(page: &'static str, before: &'static str) -> Run {
    Run {
        page,
        only: &[],
        without: &[],
        before,
    }
}

/// A cluster with the operator in it and the request of the examples served.
const SERVED: &str = "command kubectl apply --server-side -f config/install.yaml
command kubectl create namespace shop
command kubectl apply -f examples/grant.yaml -f examples/idtokenrequest.yaml
command kubectl wait idtr/billing -n shop --for=condition=Ready --timeout=2m";
/// A release, and the values that it was installed with.
const RELEASED: &str = "echo 'image: {repository: registry.example.com/idtoken-operator}' >values.yaml
command helm install idtoken-operator charts/idtoken-operator -n idtoken-system --create-namespace --values values.yaml";

const RUNS: [Run; 14] = [
    whole("README.md", ""),
    whole("charts/idtoken-operator/README.md", "echo 'image: {repository: registry.example.com/a}' >values.yaml"),
    whole(
        "deploy/argocd/README.md",
        "command kubectl create namespace argocd; command kubectl create configmap argocd-cm -n argocd; cd deploy/argocd",
    ),
    whole("docs/emulator.md", ""),
    Run {
        without: &["Without Helm"],
        ..whole("docs/installation.md", "")
    },
    Run {
        only: &["Installation", "Without Helm"],
        ..whole("docs/installation.md", "echo 'replicaCount: 2' >values.yaml")
    },
    whole(
        "docs/migrating.md",
        "command kubectl apply --server-side -f config/install.yaml
command kubectl create namespace shop
command kubectl apply -f examples/grant.yaml
sed -e '/^spec:/a\\  target: {name: billing-idtoken}' examples/idtokenrequest.yaml | command kubectl apply -f -
command kubectl wait idtr/billing -n shop --for=condition=Ready --timeout=2m
command kubectl get secret billing-idtoken -n shop -o json |
  jq '{apiVersion, kind, metadata: {name: \"billing-token\", namespace: \"shop\"}, data: {token: .data.token}}' | command kubectl apply -f -",
    ),
    Run {
        only: &["explain", "renew", "audit"],
        ..whole("docs/kubectl-idtoken.md", SERVED)
    },
    whole("docs/operations.md", RELEASED),
    whole("docs/ready-but-401.md", SERVED),
    whole("docs/sources/federation.md", ""),
    whole("docs/upgrade-policy.md", RELEASED),
    whole("emulator/README.md", ""),
    whole(
        "examples/README.md",
        "command kubectl apply --server-side -f crds/; command kubectl create namespace shop
command kubectl wait --for=condition=Established crd/idtokenrequests.idtoken.dev crd/idtokengrants.idtoken.dev",
    ),
];

impl Run {
    fn has(&self, block: &Block) -> bool {
        let under = |heading: &&str| block.heading == *heading;
        (self.only.is_empty() || self.only.iter().any(under))
            && !self.without.iter().any(under)
            && only_followed(self.page, block).is_none()
    }
}

fn only_followed(page: &str, block: &Block) -> Option<&'static str> {
    let mut all = ONLY_FOLLOWED.iter();
    let (_, _, why) = all.find(|(of, start, _)| *of == page && block.text.starts_with(start))?;
    Some(why)
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
fn every_block_sets_its_variables_and_uses_flags_that_exist() -> Result<()> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (page, text) in texts() {
        let (faults, calls) = faults(&page, &text)?;
        wrong.extend(faults);
        for block in blocks(&page, &text) {
            let calls_others = calls
                .iter()
                .any(|call| call.block == block.place && STAND_INS.contains(&call.words[0].as_str()));
            let is_run = RUNS.iter().any(|run| run.page == page && run.has(&block));
            let kind = match is_run {
                _ if block.is_shown => "parsed: they are shown with their output, or need what no test has",
                _ if page == ON_THE_NODE => "run on the node of the end-to-end tests",
                true if calls_others => "run, but for calls of clouds, registries or cargo, which are parsed",
                true => "run, against an API server where they use one",
                false if calls_others => "parsed: they call clouds, registries or cargo",
                false => "parsed: they only set variables, have names in capitals, or check a release",
            };
            *counts.entry(kind).or_default() += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let total: usize = counts.values().sum();
    let counts: Vec<_> = counts
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
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
fn every_page_that_is_to_be_run_has_blocks() {
    let texts: BTreeMap<_, _> = texts().into_iter().collect();
    for of_run in &RUNS {
        let blocks = blocks(of_run.page, &texts[of_run.page]);
        assert!(blocks.iter().any(|block| of_run.has(block)), "{}", of_run.page);
        let headings: BTreeSet<_> = blocks.iter().map(|block| block.heading.as_str()).collect();
        for heading in of_run.only.iter().chain(of_run.without) {
            assert!(headings.contains(heading), "{}: {heading}", of_run.page);
        }
    }
    for (page, start, _) in ONLY_FOLLOWED {
        assert!(
            blocks(page, &texts[page])
                .iter()
                .any(|block| block.text.starts_with(start)),
            "{page}: {start}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_can_be_followed_from_top_to_bottom() -> Result<()> {
    // An error means that another test was faster, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    for program in ["curl", "jq"] {
        let found =
            tokio::task::spawn_blocking(move || packages::find_or_skip((program, program), Progress::Stderr));
        if found.await??.is_none() {
            return Ok(());
        }
    }
    let runs = RUNS.iter().map(|of_run| async move {
        let text = std::fs::read_to_string(root().join(of_run.page)).context(of_run.page)?;
        let mut blocks = blocks(of_run.page, &text);
        blocks.retain(|block| !block.is_shown && of_run.has(block));
        run(of_run.before, &blocks).await
    });
    // An API server each.
    let done: Vec<_> = futures::stream::iter(runs).buffer_unordered(3).collect().await;
    let wrong: Vec<_> = done
        .into_iter()
        .filter_map(|done| Some(format!("{:#}", done.err()?)))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
    Ok(())
}
