//! No token and no credential is found anywhere but in Secrets.

use std::collections::BTreeSet;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use idtoken_emulator::{Endpoint, Fault, FaultKind, WrongToken};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::common::{CALLER, GHOST, LOCKED, Setup, World, has, text};
use crate::federation;

/// What no log may hold whatever the token: how JWTs, Google's access tokens and headers with either begin.
const MARKS: [&str; 4] = ["eyJhbGci", "ya29.", "Bearer ey", "Bearer ya29"];

/// All texts that betray a token: pieces of it and of its base64, at each of base64's three alignments, and of its bytes as numbers.
struct Searcher(BTreeSet<String>);

impl Searcher {
    const PIECE: usize = 24;

    fn new(tokens: &[String]) -> Self {
        let mut needles: BTreeSet<String> = MARKS.iter().map(|mark| (*mark).to_owned()).collect();
        for mark in MARKS {
            needles.extend(encoded(mark));
        }
        for token in tokens {
            for part in token.split('.') {
                for start in (0..part.len()).step_by(Self::PIECE) {
                    // The header of every JWT is the same and starts with a mark.
                    if let Some(piece) = part.get(start..start + Self::PIECE) {
                        needles.insert(piece.to_owned());
                        needles.extend(encoded(piece));
                        let numbers: Vec<String> =
                            piece.bytes().take(8).map(|byte| byte.to_string()).collect();
                        needles.insert(numbers.join(", "));
                    }
                }
            }
        }
        Self(needles)
    }

    /// The lines of `text` with something of a token in them, shortened.
    fn found(&self, text: &str) -> Vec<String> {
        let pieces: BTreeSet<&[u8]> = self.0.iter().map(String::as_bytes).collect();
        let lengths: BTreeSet<usize> = pieces.iter().map(|piece| piece.len()).collect();
        let holds = |line: &str| {
            lengths.iter().any(|length| {
                line.as_bytes()
                    .windows(*length)
                    .any(|window| pieces.contains(window))
            })
        };
        text.lines()
            .filter(|line| holds(line))
            .map(|line| line.chars().take(300).collect())
            .collect()
    }
}

/// What base64 makes of `piece` wherever it stands in a longer text.
fn encoded(piece: &str) -> Vec<String> {
    (0..3)
        .map(|skipped| {
            let whole = &piece[(3 - skipped) % 3..];
            STANDARD_NO_PAD.encode(&whole[..whole.len() / 3 * 3])
        })
        .filter(|code| code.len() >= 8)
        .collect()
}

#[test]
fn the_search_finds_what_is_planted() {
    let header = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ";
    let token = format!(
        "{header}.{}.{}",
        "cGF5bG9hZA0123456789".repeat(8),
        "U2lnbmF0dXJl_-9876543210".repeat(8)
    );
    let access = format!("ya29.c.b0{}", "Zm9vYmFy01-_".repeat(6));
    let searcher = Searcher::new(&[token.clone(), access.clone()]);
    let hits = |text: &str| searcher.found(&format!("before\n{text}\nafter")).len();
    for (what, planted) in [
        ("plain", format!("DEBUG hyper: body={token}")),
        ("an end of it", token[token.len() - 60..].to_owned()),
        ("a middle of it", token[60..130].to_owned()),
        ("access token", format!("Authorization: {access}")),
        ("an end of it", access[20..].to_owned()),
        ("base64", STANDARD.encode(&token)),
        ("base64 behind one byte", STANDARD.encode(format!("x{token}"))),
        (
            "base64 behind a header",
            STANDARD.encode(format!("Authorization: Bearer {token}")),
        ),
        (
            "base64 of an access token",
            STANDARD.encode(format!("xy{access}")),
        ),
        ("numbers", format!("{:?}", token.as_bytes())),
        ("another token", "x eyJhbGciOiJub25lIn0.e30.".to_owned()),
        ("another access token", "ya29.a0".to_owned()),
    ] {
        assert!(hits(&planted) >= 1, "{what} is not found");
    }
    assert_eq!(
        hits("bearer of good news; the token-hash is 1a2b3c; Authorization: Sensitive"),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_nowhere_but_in_secrets() -> Result<()> {
    let world = World::with(Setup {
        recorded: true,
        flags: vec!["--google-timeout=2".into()],
        ..Setup::default()
    })
    .await?;
    world.granted("shop").await?;
    let template = json!({"target": {"template": {"data": {"header": "Authorization: Bearer $(token)"}}}});
    world.issued("shop", "billing", template).await?;
    world
        .request("shop", "locked", json!({"serviceAccount": LOCKED}))
        .await?;
    world
        .request("shop", "ghost", json!({"serviceAccount": GHOST}))
        .await?;
    for name in ["locked", "ghost"] {
        world
            .until("shop", name, "it is refused", |object| {
                has(object, "Ready", "False", "") && has(object, "Reconciling", "True", "")
            })
            .await?;
    }

    // A careless server repeats what it was sent: the operator's credentials, or a token that it made.
    let token = crate::common::token(&world.secret("shop", "billing").await?);
    let body = |text: &str| {
        json!({"error": {"code": 403, "message": text, "status": "PERMISSION_DENIED"}}).to_string()
    };
    let access = world.relay.as_ref().expect("recorded").tokens();
    let access = access
        .iter()
        .find(|token| token.starts_with("ya29."))
        .expect("an access token")
        .clone();
    let mut faults = vec![
        FaultKind::Hang,
        FaultKind::Reset,
        FaultKind::ApiDisabled,
        FaultKind::Status {
            code: 403,
            body: Some(body(&format!("no rights for Bearer {access}"))),
            retry_after: None,
        },
        FaultKind::Status {
            code: 400,
            body: Some(body(&format!("already issued: {token}"))),
            retry_after: None,
        },
        FaultKind::Status {
            code: 500,
            body: Some(token.clone()),
            retry_after: None,
        },
    ];
    faults.extend([400, 401, 404, 429, 500, 503].map(|code| FaultKind::Status {
        code,
        body: None,
        retry_after: None,
    }));
    for wrong in [
        WrongToken::Audience,
        WrongToken::AudienceList,
        WrongToken::Account,
        WrongToken::Expired,
        WrongToken::NoExpiry,
        WrongToken::Issuer,
        WrongToken::Garbage,
        WrongToken::Truncated,
    ] {
        faults.push(FaultKind::Token { wrong });
    }
    for (n, kind) in faults.into_iter().enumerate() {
        world.google.fault(
            Fault::new(kind.clone())
                .on(Endpoint::GenerateIdToken)
                .for_account(CALLER),
        )?;
        world.renew("shop", "billing", &format!("fault {n}")).await?;
        let what = format!("{kind:?} is reported");
        world
            .until("shop", "billing", &what, |object| {
                has(object, "RenewalFailing", "True", "")
            })
            .await?;
        world.google.clear_faults();
        world
            .renew("shop", "billing", &format!("after fault {n}"))
            .await?;
        world
            .until("shop", "billing", "it has recovered", |object| {
                has(object, "RenewalFailing", "False", "")
            })
            .await?;
    }

    // Repairs: by a mint, and from the token that is still there.
    world
        .meddle(
            "shop",
            "billing",
            json!({"data": {"token": "nonsense", "header": "nonsense"}}),
        )
        .await?;
    world
        .wait("the token is repaired", async || {
            Ok(world.claims("shop", "billing").await.is_ok())
        })
        .await?;
    world
        .meddle("shop", "billing", json!({"data": {"header": "nonsense"}}))
        .await?;
    world
        .wait("the header is repaired", async || {
            let secret = world.secret("shop", "billing").await?;
            Ok(text(&secret, "header") == format!("Authorization: Bearer {}", crate::common::token(&secret)))
        })
        .await?;
    let metrics = world.scrape().await?;
    world.stop_operator(false).await?;

    let mut tokens = world.relay.as_ref().expect("recorded").tokens();
    let secret = world.secret("shop", "billing").await?;
    assert!(
        tokens.contains(&crate::common::token(&secret)),
        "the record lacks the token of the Secret"
    );
    let good = tokens.iter().filter(|token| token.starts_with("eyJ")).count();
    assert!(
        good >= 10 && tokens.iter().any(|token| token.starts_with("ya29.")),
        "{good} recorded"
    );
    tokens.push(token);
    nothing_is_found(&world, &tokens, &metrics).await
}

/// A tenant's Kubernetes token is a credential as well, and so is what it is exchanged for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn federated_tokens_are_nowhere_but_in_secrets() -> Result<()> {
    let world = World::with(Setup {
        recorded: true,
        flags: vec![
            "--google-timeout=2".into(),
            format!("--federation-provider={}", federation::PROVIDER),
        ],
        rbac: "rbac-federation.yaml",
        ..Setup::default()
    })
    .await?;
    federation::prepare(&world).await?;
    world
        .issued("shop", "billing", federation::federated("billing"))
        .await?;
    let mut foreign = federation::federated("billing");
    foreign["serviceAccount"] = json!(LOCKED);
    world.request("shop", "foreign", foreign).await?;
    world
        .until("shop", "foreign", "it is refused", |object| {
            has(object, "Ready", "False", "PermissionDenied")
        })
        .await?;

    // Careless servers repeat what they were sent.
    let relay = world.relay.as_ref().expect("recorded");
    let id_token = crate::common::token(&world.secret("shop", "billing").await?);
    let tokens = relay.tokens();
    let subject = tokens
        .iter()
        .find(|token| token.starts_with("eyJ") && **token != id_token)
        .expect("a Kubernetes token")
        .clone();
    let access = tokens
        .iter()
        .find(|token| token.starts_with("ya29."))
        .expect("an access token")
        .clone();
    let oauth = |error: &str, words: &str| json!({"error": error, "error_description": words}).to_string();
    let google = |words: &str| json!({"error": {"code": 403, "message": words, "status": "X"}}).to_string();
    let faults = [
        (
            Endpoint::SecurityToken,
            Fault::status_body(400, oauth("invalid_grant", &subject)),
        ),
        (
            Endpoint::SecurityToken,
            Fault::status_body(400, oauth(&subject, "")),
        ),
        (
            Endpoint::SecurityToken,
            Fault::status_body(400, oauth("invalid_target", &format!("Bearer {access}"))),
        ),
        (Endpoint::SecurityToken, Fault::status_body(500, subject.clone())),
        (Endpoint::SecurityToken, Fault::hang()),
        (
            Endpoint::GenerateIdToken,
            Fault::status_body(403, google(&format!("no rights for {access}"))),
        ),
        (
            Endpoint::GenerateIdToken,
            Fault::status_body(400, google(&subject)),
        ),
        (Endpoint::GenerateIdToken, Fault::status_body(502, access.clone())),
        (Endpoint::GenerateIdToken, Fault::status(401)),
    ];
    for (n, (endpoint, fault)) in faults.into_iter().enumerate() {
        federation::recreate(&world, "shop", "billing").await?;
        world.google.fault(fault.clone().on(endpoint))?;
        world.renew("shop", "billing", &format!("fault {n}")).await?;
        let what = format!("{fault:?} is reported");
        world
            .until("shop", "billing", &what, |object| {
                has(object, "RenewalFailing", "True", "")
            })
            .await?;
        world.google.clear_faults();
        world
            .renew("shop", "billing", &format!("after fault {n}"))
            .await?;
        world
            .until("shop", "billing", "it has recovered", |object| {
                has(object, "RenewalFailing", "False", "")
            })
            .await?;
    }
    let metrics = world.scrape().await?;
    world.stop_operator(false).await?;
    let tokens = relay.tokens();
    let federated = tokens.iter().filter(|token| token.starts_with("ya29.")).count();
    assert!(federated >= 5, "{federated} access tokens are recorded");
    nothing_is_found(&world, &tokens, &metrics).await
}

/// Looks for `tokens` wherever the operator writes, and where they are.
async fn nothing_is_found(world: &World, tokens: &[String], metrics: &str) -> Result<()> {
    let searcher = Searcher::new(tokens);

    let events: Api<Event> = Api::all(world.client.clone());
    let events = serde_json::to_string_pretty(&events.list(&ListParams::default()).await?.items)?;
    assert!(events.contains("PermissionDenied"), "{events}");
    let requests = world.requests("shop").list(&ListParams::default()).await?;
    let requests = serde_json::to_string_pretty(&requests.items)?;
    let audit = std::fs::read_to_string(world.cluster.dir().join("audit.jsonl"))?;
    let log = world.operator_log();
    // So that an empty text is not taken for a clean one: at trace, the libraries below speak too.
    for written in ["TRACE", "hyper", "a token was issued"] {
        assert!(log.contains(written), "the log holds no {written}");
    }
    assert!(metrics.contains("idtoken_mint_total") && audit.contains("/secrets"));
    for (place, text) in [
        ("the log", log.as_str()),
        ("the events", events.as_str()),
        ("the requests", &requests),
        ("the metrics", metrics),
        ("the audit log", &audit),
    ] {
        let found = searcher.found(text);
        assert!(
            found.is_empty(),
            "{} lines of {place} hold tokens, such as\n{}",
            found.len(),
            found[0]
        );
    }
    // The same search, where the tokens are.
    let secrets =
        serde_json::to_string_pretty(&world.secrets("shop").list(&ListParams::default()).await?.items)?;
    assert!(
        !searcher.found(&secrets).is_empty(),
        "the search does not find the tokens in the Secrets"
    );
    Ok(())
}

/// The kernel writes a core file where the limit allows one; at zero it writes none, and pipes none to a collector that is given the
/// limit (core(5)).
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_leaves_no_memory_behind() -> Result<()> {
    let world = World::new().await?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", world.operator_pid()?))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let values: Vec<&str> = core
        .expect("a limit of core files")
        .split_whitespace()
        .skip(4)
        .collect();
    assert_eq!(values, ["0", "0", "bytes"]);
    Ok(())
}
