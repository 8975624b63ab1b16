//! Whole runs on a scripted Google: what they find, and that they leave nothing, whatever fails and whenever somebody interrupts.

use std::path::Path;

use idtoken_conformance::google::{Credential, Report, clean_up, run, write_pages};
use idtoken_conformance::{Assertion, NOT_RUN, all};

use crate::scripted::{Google, OTHERS, PROJECT};

/// A run, and everything that it showed.
async fn run_on(google: &Google, assertions: &[Assertion]) -> (anyhow::Result<Report>, String) {
    let result = run(&google.outside(), PROJECT, None, assertions).await;
    let shown = match &result {
        Ok(report) => report.markdown("version 0"),
        Err(error) => format!("{error:#}"),
    };
    let shown = format!("{}\n{shown}", google.said());
    let is_secret = ["ya29.", "eyJ", "PRIVATE KEY", google.runner()]
        .iter()
        .any(|secret| shown.contains(secret));
    assert!(!is_secret, "a token is shown: {shown}");
    (result, shown)
}

fn assert_nothing_left(google: &Google, context: &str) {
    let script = google.script();
    let mut others = OTHERS.map(str::to_owned);
    let mut names = script.names();
    others.sort();
    names.sort();
    assert_eq!(names, others, "{context}");
    let reversed: Vec<_> = script.created.iter().rev().cloned().collect();
    assert_eq!(script.deleted, reversed, "{context}");
}

#[tokio::test]
async fn a_whole_run_asks_all_finds_no_difference_and_leaves_nothing() {
    let google = Google::start().await;
    google.script().early = 3;
    let assertions = all().unwrap();
    let (result, shown) = run_on(&google, &assertions).await;
    let report = result.unwrap();
    let different: Vec<_> = report
        .rows
        .iter()
        .filter(|row| !row.holds || !row.fields.is_empty())
        .collect();
    assert!(different.is_empty(), "{different:#?}");
    let on_google = assertions.iter().filter(|one| one.why_only_emulated().is_none());
    assert_eq!(report.rows.len(), on_google.count());
    assert!(report.is_good() && shown.contains("No field differs"), "{shown}");
    assert!(
        shown.contains("Google does not know all bindings yet (id-token:"),
        "{shown}"
    );
    assert_nothing_left(&google, "a whole run");
    clean_up(&google.outside(), PROJECT).await.unwrap();
    let script = google.script();
    assert_eq!(script.wrong, [""; 0]);
    let methods: Vec<_> = script.methods.iter().map(String::as_str).collect();
    let expected = [
        "iam.projects.locations.workloadIdentityPools.create",
        "iam.projects.locations.workloadIdentityPools.delete",
        "iam.projects.locations.workloadIdentityPools.get",
        "iam.projects.locations.workloadIdentityPools.list",
        "iam.projects.locations.workloadIdentityPools.operations.get",
        "iam.projects.locations.workloadIdentityPools.providers.create",
        "iam.projects.serviceAccounts.create",
        "iam.projects.serviceAccounts.delete",
        "iam.projects.serviceAccounts.disable",
        "iam.projects.serviceAccounts.get",
        "iam.projects.serviceAccounts.list",
        "iam.projects.serviceAccounts.setIamPolicy",
        "iamcredentials.projects.serviceAccounts.signJwt",
        "oauth2.userinfo.get",
    ];
    assert_eq!(methods, expected);
}

#[tokio::test]
async fn a_difference_is_in_the_table_and_in_the_pages() {
    let google = Google::start().await;
    google.script().brief = true;
    let mut assertions = all().unwrap();
    assertions.retain(|one| ["id-token", "id-token-denied", "keys"].contains(&one.name.as_str()));
    let (result, shown) = run_on(&google, &assertions).await;
    let report = result.unwrap();
    let row = "| `id-token-denied` | no | `.body.error.details` |";
    assert!(!report.is_good() && shown.contains(row), "{shown}");
    assert!(shown.contains("3 assertions were asked, and 2 hold."), "{shown}");
    // A header that no assertion names, in all answers, and one that is of a front end.
    let header = "`.headers.x-frame-options` | `absent` | `\"SAMEORIGIN\"` |";
    for names in ["| `id-token` and 1 more | yes | ", "| `id-token-denied` | no | "] {
        assert!(shown.contains(&format!("{names}{header}")), "{names}: {shown}");
    }
    assert!(!shown.contains("alt-svc"), "{shown}");

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    std::fs::create_dir_all(copy.join("docs")).unwrap();
    let pages = ["README.md", "docs/conformance.md", "docs/emulator.md"];
    for name in pages {
        std::fs::copy(root.join(name), copy.join(name)).unwrap();
    }
    // The second run replaces what the first has written.
    let later = Report {
        date: "2999-12-31".to_owned(),
        ..report.clone()
    };
    for report in [report, later] {
        write_pages(&copy, &report, "version 0").unwrap();
        for name in pages {
            let page = std::fs::read_to_string(copy.join(name)).unwrap();
            let said = format!("The conformance suite ran on Google itself on {}.", report.date);
            let count = page.matches("The conformance suite ran on").count();
            assert!(
                page.contains(&said) && count == 1 && !page.contains(NOT_RUN),
                "{name}"
            );
            assert_eq!(
                page.matches(row).count(),
                usize::from(name == "docs/conformance.md")
            );
        }
    }
}

#[tokio::test]
async fn each_call_that_is_refused_names_its_role_and_leaves_nothing() {
    let mut places = 0;
    for place in 1.. {
        let google = Google::without_tokens().await;
        google.script().refuse = Some(place);
        let (result, shown) = run_on(&google, &all().unwrap()).await;
        let error = format!("{:#}", result.unwrap_err());
        let Some(refused) = google.script().refused().map(str::to_owned) else {
            break;
        };
        places = place;
        assert_nothing_left(&google, &refused);
        let advice = match &refused {
            path if path.contains("workloadIdentityPools") => {
                "It needs roles/iam.workloadIdentityPoolAdmin on the project my-project"
            }
            path if path.contains("serviceAccounts") => {
                "It needs roles/iam.serviceAccountAdmin on the project my-project"
            }
            path if path.contains("userinfo") => "name it by --member",
            _ => "403",
        };
        assert!(error.contains(advice), "{refused}: {error}");
        assert!(
            shown.contains("deleting what was created") || places == 1,
            "{shown}"
        );
    }
    // Who it is, six accounts, a pool with its operation and name, two providers, five policies, one is disabled, and the keys.
    assert_eq!(places, 1 + 6 + 3 + 2 + 5 + 1 + 1);
}

#[tokio::test]
async fn an_interrupt_at_any_call_of_the_set_up_leaves_nothing() {
    for place in 2..=18 {
        let google = Google::without_tokens().await;
        google.script().interrupt.insert(place);
        let (result, _) = run_on(&google, &all().unwrap()).await;
        let error = format!("{:#}", result.unwrap_err());
        assert_eq!(error, "interrupted", "at {place}");
        assert_nothing_left(&google, &format!("interrupted at {place}"));
        let script = google.script();
        assert_eq!(script.calls.len(), place, "{:?}", script.calls.last());
    }
}

#[tokio::test]
async fn an_interrupt_while_it_waits_or_asks_leaves_nothing() {
    // The first call for a token, and one in the middle of the assertions.
    for place in [20, 60] {
        let google = Google::start().await;
        google.script().interrupt.insert(place);
        let (result, _) = run_on(&google, &all().unwrap()).await;
        assert_eq!(result.unwrap_err().to_string(), "interrupted");
        assert_nothing_left(&google, &format!("interrupted at {place}"));
    }
}

#[tokio::test]
async fn what_cannot_be_deleted_is_named_and_deleted_by_the_next_cleanup() {
    let google = Google::without_tokens().await;
    google.script().keep = Some("-target@");
    let (result, _) = run_on(&google, &all().unwrap()).await;
    let error = format!("{:#}", result.unwrap_err());
    let lines: Vec<_> = error
        .lines()
        .filter(|line| line.starts_with("idtoken-conf-"))
        .collect();
    assert!(
        lines.len() == 1 && lines[0].contains("-target@my-project"),
        "{error}"
    );
    assert!(
        error.contains("It needs roles/iam.serviceAccountAdmin"),
        "{error}"
    );
    assert!(
        error.contains("`cargo xtask conformance --cleanup my-project`"),
        "{error}"
    );
    assert_eq!(google.script().names().len(), OTHERS.len() + 1);

    let error = clean_up(&google.outside(), PROJECT).await.unwrap_err();
    assert!(error.to_string().contains("-target@my-project"), "{error:#}");
    google.script().keep = None;
    clean_up(&google.outside(), PROJECT).await.unwrap();
    assert_eq!(google.script().names().len(), OTHERS.len());
}

#[tokio::test]
async fn a_second_interrupt_of_the_deletion_ends_it_and_cleanup_goes_on() {
    let google = Google::without_tokens().await;
    google.script().hurry = true;
    let (result, _) = run_on(&google, &all().unwrap()).await;
    let error = format!("{:#}", result.unwrap_err());
    let left = error
        .lines()
        .filter(|line| line.ends_with(": interrupted"))
        .count();
    // The second was on its way, so that it may be there.
    assert_eq!((left, google.script().deleted.len()), (6, 2), "{error}");
    let said = google.said();
    assert!(
        said.contains("the deletion goes on") && said.contains("--cleanup my-project"),
        "{said}"
    );
    google.script().hurry = false;
    clean_up(&google.outside(), PROJECT).await.unwrap();
    assert_eq!(google.script().names().len(), OTHERS.len());
}

#[tokio::test]
async fn a_program_that_fails_shows_no_token() {
    let google = Google::without_tokens().await;
    let mut outside = google.outside();
    let program = ["sh", "-c", "echo ya29.secret-of-somebody >&2; exit 1"];
    outside.credential = Credential::Program(program.map(str::to_owned).to_vec());
    let error = run(&outside, PROJECT, None, &[]).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("log in with gcloud, or set GOOGLE_OAUTH_ACCESS_TOKEN"),
        "{error}"
    );
    assert!(
        !error.trim_start_matches(&program.join(" ")).contains("ya29."),
        "{error}"
    );
    assert!(google.script().calls.is_empty());
}
