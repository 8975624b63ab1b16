//! Runs every parser of outside data on mutations of its usual input: no parser panics, and the properties of its results hold.
//!
//! Each test runs for `IDTOKEN_FUZZ_SECONDS`, 6 by default; `IDTOKEN_FUZZ_SECONDS=600 cargo test --lib fuzz_tests` is a long run.

use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

use crate::api::v1alpha1::GrantTo;
use crate::google::{MAX_RETRY_AFTER, parse_retry_after};
use crate::grants::policy::allows;
use crate::request;
use crate::request::syntax::is_service_account;
use crate::request::template::{MAX_TOTAL, Template, Values};
use crate::text;
use crate::token::{Expected, IdToken};

/// One change of a text.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Insert(Index, u8),
    Remove(Index, Index),
    Repeat(Index, Index, u8),
    /// Inserts a part of another sample.
    Splice(Index, Index, Index, Index),
    /// Inserts one of the [`WORDS`].
    Word(Index, Index),
}

/// Words that parsers often handle wrongly.
const WORDS: [&str; 24] = [
    "\0",
    "\r\n",
    "\u{feff}",
    "\u{202e}",
    "%00",
    "%2f",
    "\\",
    "@",
    "*",
    "$(",
    ")",
    "$$(",
    "{",
    "}",
    "[",
    "\"",
    "-1",
    "1e999",
    "99999999999999999999",
    "null",
    "..",
    "://",
    "é",
    "eyJ",
];

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<Index>;
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, byte)| Mutation::Flip(at, byte)),
        (index(), any::<u8>()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        (index(), index()).prop_map(|(from, to)| Mutation::Remove(from, to)),
        (index(), index(), 1_u8..8).prop_map(|(from, to, times)| Mutation::Repeat(from, to, times)),
        (index(), index(), index(), index())
            .prop_map(|(at, other, from, to)| Mutation::Splice(at, other, from, to)),
        (index(), index()).prop_map(|(at, word)| Mutation::Word(at, word)),
    ]
}

fn range(from: &Index, to: &Index, length: usize) -> std::ops::Range<usize> {
    let (from, to) = (from.index(length + 1), to.index(length + 1));
    from.min(to)..from.max(to)
}

fn mutated(samples: &[Vec<u8>], sample: &Index, mutations: &[Mutation]) -> Vec<u8> {
    let mut bytes = sample.get(samples).clone();
    for mutation in mutations {
        let length = bytes.len();
        match mutation {
            Mutation::Flip(at, mask) if length > 0 => bytes[at.index(length)] ^= mask,
            Mutation::Flip(..) => {}
            Mutation::Insert(at, byte) => bytes.insert(at.index(length + 1), *byte),
            Mutation::Remove(from, to) => drop(bytes.drain(range(from, to, length))),
            Mutation::Repeat(from, to, times) => {
                let range = range(from, to, length);
                let piece = bytes[range.clone()].repeat(usize::from(*times));
                bytes.splice(range, piece);
            }
            Mutation::Splice(at, other, from, to) => {
                let other = other.get(samples);
                let piece = other[range(from, to, other.len())].to_vec();
                let at = at.index(length + 1);
                bytes.splice(at..at, piece);
            }
            Mutation::Word(at, word) => {
                let at = at.index(length + 1);
                bytes.splice(at..at, word.get(&WORDS).bytes());
            }
        }
        // Long enough for every limit below, short enough to be fast.
        bytes.truncate(64 * 1024);
    }
    bytes
}

/// Runs `check` on mutations of `samples` until the time is over. A failure is shrunk and printed.
fn fuzz<S: AsRef<[u8]>>(samples: &[S], check: impl Fn(&[u8]) -> TestCaseResult) {
    let seconds = std::env::var("IDTOKEN_FUZZ_SECONDS").map_or(6, |text| text.parse().expect("seconds"));
    let end = Instant::now() + Duration::from_secs(seconds);
    let samples: Vec<Vec<u8>> = samples.iter().map(|sample| sample.as_ref().to_vec()).collect();
    for sample in &samples {
        check(sample).expect("a sample");
    }
    let inputs = (any::<Index>(), prop::collection::vec(mutation(), 0..6))
        .prop_map(|(sample, mutations)| mutated(&samples, &sample, &mutations));
    let config = Config {
        cases: 512,
        failure_persistence: None,
        ..Config::default()
    };
    let mut rounds = 0_u64;
    while Instant::now() < end {
        // A runner counts the cases of all its runs, so each round has its own.
        let mut runner = TestRunner::new(config.clone());
        runner.run(&inputs, |bytes| check(&bytes)).expect("holds");
        rounds += 1;
    }
    println!("{} inputs", rounds * 512);
}

fn jwt(header: &str, claims: &str) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!(
        "{}.{}.{}",
        encode(header),
        encode(claims),
        encode("signature of it")
    )
}

const CLAIMS: &str = r#"{"iss":"https://accounts.google.com","aud":"https://a.io","sub":"12","email":"a@b.c","email_verified":true,"iat":1700000000,"exp":1700003600}"#;

#[test]
fn tokens() {
    let now = Timestamp::from_second(1_700_000_000).expect("a time");
    let samples = [
        jwt(r#"{"alg":"RS256","kid":"1"}"#, CLAIMS),
        jwt(r#"{"alg":"none"}"#, CLAIMS),
        jwt(
            r#"{"alg":"RS256"}"#,
            r#"{"aud":["a"],"exp":-9223372036854775808}"#,
        ),
    ];
    fuzz(&samples, |bytes| {
        let Ok(raw) = std::str::from_utf8(bytes) else {
            return Ok(());
        };
        let expected = Expected {
            audience: "https://a.io",
            account: None,
            include_email: true,
            subject: Some("12"),
        };
        match IdToken::parse(raw.to_owned()) {
            Ok(token) => {
                prop_assert_eq!(token.expose(), raw);
                let debug = format!("{token:?}");
                prop_assert!(!debug.contains(raw));
                // An HTTP header can carry every accepted token.
                prop_assert!(raw.bytes().all(|byte| byte.is_ascii_graphic()));
                let _ = token.clock_skew(now);
                if token.verify(&expected, now).is_ok() {
                    prop_assert_eq!(&token.claims().aud, expected.audience);
                    prop_assert!(token.claims().exp > now);
                }
            }
            Err(error) => {
                let shown = format!("{error} {error:?}");
                prop_assert!(!shown.contains(char::is_control));
                if let Some(signature) = raw.split('.').nth(2).filter(|part| part.len() > 12) {
                    prop_assert!(!shown.contains(signature));
                }
            }
        }
        Ok(())
    });
}

#[test]
fn claims() {
    let samples = [
        CLAIMS,
        r#"{"iss":1,"aud":{"a":[]},"sub":"","iat":1e300,"exp":99999999999999}"#,
    ];
    let now = Timestamp::from_second(1_700_000_000).expect("a time");
    fuzz(&samples, |bytes| {
        let claims = String::from_utf8_lossy(bytes);
        if let Ok(token) = IdToken::parse(jwt(r#"{"alg":"RS256"}"#, &claims)) {
            let _ = token.clock_skew(now);
            let renewal = crate::schedule::renewal::renewal(
                token.claims().iat,
                token.claims().exp,
                None,
                "7f3a5b1e-0000-4000-8000-000000000001",
            );
            prop_assert!(renewal.at <= token.claims().exp.max(token.claims().iat));
        }
        Ok(())
    });
}

#[test]
fn error_bodies() {
    let samples = [
        r#"{"error":{"code":403,"message":"Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist).","status":"PERMISSION_DENIED","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"IAM_PERMISSION_DENIED","metadata":{"permission":"iam.serviceAccounts.getOpenIdToken"}},{"@type":"type.googleapis.com/google.rpc.Help","links":[{"url":"https://console.developers.google.com/x"}]}]}}"#.to_owned(),
        r#"{"error":"invalid_grant","error_description":"The audience in ID Token [X] does not match the expected audience."}"#.to_owned(),
        format!(r#"{{"error":{{"message":"got {}"}}}}"#, jwt(r#"{"alg":"RS256"}"#, CLAIMS)),
        "Your Kubernetes service account (ns/name) is not annotated with a target Google service account".to_owned(),
        "<html><body>502</body></html>".to_owned(),
        "[".repeat(4096),
    ];
    fuzz(&samples, |bytes| {
        let shown = crate::google::shown_response(bytes);
        // The messages of three endpoints, of at most 512 characters each, all of which may be escaped.
        prop_assert!(shown.chars().count() < 3 * 1024 * 10);
        prop_assert!(!shown.contains(char::is_control));
        prop_assert_eq!(shown.find(WORDS[3]), None);
        Ok(())
    });
}

#[test]
fn retry_after() {
    let samples = [
        "120",
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "99999999999999999999999",
    ];
    fuzz(&samples, |bytes| {
        let value = String::from_utf8_lossy(bytes);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_700);
        if let Some(after) = parse_retry_after(&value, now) {
            prop_assert!(after <= MAX_RETRY_AFTER);
        }
        Ok(())
    });
}

/// The plain text of the metadata server, and all other outside text in messages.
#[test]
fn plain_texts() {
    let signature = "c2lnbmF0dXJlb2ZpdA0123456789abcdef";
    let token = format!("eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.{signature}");
    let samples = [
        "Your Kubernetes service account (ns/name) is not annotated with a target Google service account"
            .to_owned(),
        "Unable to generate access token; IAM returned 403 Forbidden: Permission 'x' denied".to_owned(),
        "proxy http://user:password@proxy:3128/ refused".to_owned(),
        "Authorization: Bearer ya29.c.b0Aaekm1K2".to_owned(),
    ];
    fuzz(&samples, |bytes| {
        let outside = String::from_utf8_lossy(bytes);
        let shown = text::redacted(&format!("{outside} {token} {outside}"), 1 << 20);
        prop_assert!(!shown.contains(signature), "{}", shown);
        prop_assert!(!shown.contains(char::is_control));
        prop_assert!(text::redacted(&outside, 64).chars().count() <= 64 * 10 + 1);
        Ok(())
    });
}

#[test]
fn templates() {
    let token = IdToken::parse(jwt(r#"{"alg":"RS256"}"#, CLAIMS)).expect("a token");
    let values = Values {
        token: &token,
        audience: "https://a.io",
        email: Some("a@b.c"),
        expiration_time: "2026-01-01T00:00:00Z",
    };
    let samples = [
        "Authorization: Bearer $(token)",
        "$$(token) costs $5 $",
        "{\"aud\":\"$(audience)\",\"email\":\"$(email)\",\"exp\":\"$(expirationTime)\"}",
        "$($(token))$(tokentoken)",
    ];
    fuzz(&samples, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        match Template::parse(&text) {
            Ok(template) => {
                if let Ok(expanded) = template.expand(&values) {
                    prop_assert!(expanded.len() <= MAX_TOTAL);
                    if !text.contains("$(") {
                        prop_assert_eq!(expanded.as_slice(), text.as_bytes());
                    }
                }
            }
            Err(error) => prop_assert!(!error.to_string().contains(token.expose())),
        }
        Ok(())
    });
}

/// A glob allows only audiences with its scheme, host and port, as an independent parser reads URLs.
#[test]
fn grant_globs() {
    let samples = [
        "https://api.example.com/v1",
        "https://api.example.com.evil.io/",
        "https://user@api.example.com:443/",
        "https://api.example.com/*",
        "https://*",
        "*",
    ];
    let account = "caller@p.iam.gserviceaccount.com";
    let check = |pattern: &str, audience: &str| -> TestCaseResult {
        let to = GrantTo {
            service_accounts: vec![account.into()],
            audiences: vec![pattern.into()],
            ..GrantTo::default()
        };
        let Ok(spec) =
            serde_json::from_value(serde_json::json!({"audience": audience, "serviceAccount": account}))
        else {
            return Ok(());
        };
        let Ok(token) = request::token(&spec) else {
            return Ok(());
        };
        if !allows(&to, &token) || pattern == audience {
            return Ok(());
        }
        let (granted, requested) = (url::Url::parse(pattern), url::Url::parse(audience));
        let (Ok(granted), Ok(requested)) = (&granted, &requested) else {
            return Err(TestCaseError::fail(format!(
                "{pattern} allows {audience}, which is not a URL"
            )));
        };
        prop_assert_eq!(granted.scheme(), requested.scheme());
        prop_assert_eq!(granted.host(), requested.host());
        prop_assert_eq!(granted.port_or_known_default(), requested.port_or_known_default());
        prop_assert_eq!(
            (granted.username(), granted.password()),
            (requested.username(), requested.password())
        );
        Ok(())
    };
    fuzz(&samples, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        check("https://api.example.com/*", &text)?;
        check("https://api.example.com/v1*", &text)?;
        check(&text, "https://api.example.com/v1")?;
        check(&text, "https://api.example.com.evil.io/")
    });
}

#[test]
fn accounts() {
    let samples = [
        "caller@p.iam.gserviceaccount.com",
        "123456789012345678901",
        "*@p.iam.gserviceaccount.com",
    ];
    fuzz(&samples, |bytes| {
        let name = String::from_utf8_lossy(bytes);
        if is_service_account(&name) {
            // The name is one segment of a URL's path, unescaped.
            let url = format!("https://h/v1/projects/-/serviceAccounts/{name}:generateIdToken");
            let url = url::Url::parse(&url).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(url.path_segments().map(Iterator::count), Some(5));
            prop_assert!(url.query().is_none() && url.fragment().is_none());
            let last = format!("/{name}:generateIdToken");
            prop_assert!(url.path().ends_with(&last));
        }
        Ok(())
    });
}

#[test]
fn credential_files() {
    let samples = [
        r#"{"type":"service_account","client_email":"a@p.iam.gserviceaccount.com","private_key":"-----BEGIN PRIVATE KEY-----\nc2VjcmV0LWtleS1tYXRlcmlhbA==\n-----END PRIVATE KEY-----\n","token_uri":"https://oauth2.googleapis.com/token","client_id":"1"}"#,
        r#"{"type":"authorized_user","client_id":"c","client_secret":"c2VjcmV0LWtleS1tYXRlcmlhbA==","refresh_token":"1//0c2VjcmV0LWtleS1tYXRlcmlhbA=="}"#,
        r#"{"type":"external_account","audience":"//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q","subject_token_type":"urn:ietf:params:oauth:token-type:jwt","token_url":"https://sts.googleapis.com/v1/token","credential_source":{"file":"/t","format":{"type":"json","subject_token_field_name":"x"}},"service_account_impersonation_url":"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com:generateAccessToken"}"#,
    ];
    fuzz(&samples, |bytes| {
        if let Some(shown) = crate::google::shown_credential_file(bytes) {
            prop_assert!(!shown.contains("c2VjcmV0LWtleS1tYXRlcmlhbA"), "{}", shown);
            prop_assert!(!shown.contains(char::is_control));
        }
        Ok(())
    });
}

#[test]
fn providers() {
    let samples = [
        "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "identitynamespace:p.svc.id.goog:https://container.googleapis.com/v1/projects/p/locations/l/clusters/c",
        "https://kubernetes.default.svc.cluster.local",
    ];
    fuzz(&samples, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(provider) = text.parse::<crate::google::IdentityProvider>() {
            prop_assert_eq!(provider.name(), &*text);
            // No provider's own audience can be the default audience of an API server.
            let audience = provider.token_audience();
            prop_assert!(provider.owns_audience(&audience));
            prop_assert!(
                audience.starts_with("//iam.")
                    || audience.starts_with("https://iam.")
                    || audience.ends_with(".svc.id.goog"),
                "{}",
                audience
            );
            prop_assert!(!provider.owns_audience("https://kubernetes.default.svc.cluster.local"));
        }
        Ok(())
    });
}
