use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap as Headers, HeaderName as Name, StatusCode};
use futures::future::join_all;
use idtoken_emulator::SigningKey as Signer;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::clock::VirtualClock;
use crate::google::vocabulary::{self, CallGate};
use crate::sync::lock;

/// What the endpoint answers, and how often it was asked.
struct Published {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: String,
    calls: u32,
}

struct Endpoint {
    published: Arc<Mutex<Published>>,
    keys: SigningKeys,
    time: VirtualClock,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn jwks<'k>(keys: impl IntoIterator<Item = &'k Signer>) -> String {
    let keys: Vec<_> = keys.into_iter().map(Signer::jwk).collect();
    json!({ "keys": keys }).to_string()
}

impl Endpoint {
    async fn new(body: String) -> Self {
        Self::with(body, GoogleConfig::default()).await
    }

    async fn with(body: String, config: GoogleConfig) -> Self {
        let published = Arc::new(Mutex::new(Published {
            status: 200,
            headers: vec![("cache-control", "public, max-age=3600, must-revalidate")],
            body,
            calls: 0,
        }));
        let shared = Arc::clone(&published);
        let answer = move || {
            let mut published = lock(&shared);
            published.calls += 1;
            let headers: Headers = published
                .headers
                .iter()
                .map(|(name, value)| (Name::from_static(name), value.parse().expect("a value")))
                .collect();
            let status = StatusCode::from_u16(published.status).expect("a status");
            std::future::ready((status, headers, published.body.clone()))
        };
        let router = axum::Router::new().route("/keys", axum::routing::get(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        let time = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let config = GoogleConfig {
            clock: time.clock(),
            keys_url: Some(url.parse().expect("a URL")),
            ..config
        };
        config.validate().expect("loopback needs no TLS");
        let keys = SigningKeys::new(&config, Http::new(&config).expect("a client")).expect("a URL");
        Self {
            published,
            keys,
            time,
            server,
        }
    }

    fn publish(&self, change: impl FnOnce(&mut Published)) {
        change(&mut lock(&self.published));
    }

    fn pass(&self, duration: Duration) {
        self.time.skip(duration);
    }

    fn calls(&self) -> u32 {
        lock(&self.published).calls
    }

    async fn verify(&self, token: &str) -> Result<(), SignatureError> {
        let token = IdToken::parse(token.to_owned()).expect("claims");
        self.keys.verify(&token).await
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://accounts.google.com", "aud": "https://a.run.app", "sub": "1234567890",
        "iat": 1_800_000_000, "exp": 1_800_003_600,
    })
}

fn signer() -> Signer {
    Signer::generate().expect("a key")
}

fn sign(signer: &Signer) -> String {
    signer.sign(&claims()).expect("a token")
}

fn is_invalid(result: Result<(), SignatureError>) -> bool {
    matches!(&result, Err(error @ SignatureError::Invalid(_)) if error.reason() == Reason::TokenSignatureInvalid)
}

#[track_caller]
fn unavailable(result: Result<(), SignatureError>) -> Error {
    match result {
        Err(SignatureError::Unavailable(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn only_a_token_that_google_signed_is_accepted() {
    let (google, other, stranger) = (signer(), signer(), signer());
    let endpoint = Endpoint::new(jwks([&other, &google])).await;
    let token = sign(&google);
    for good in [&token, &sign(&other)] {
        endpoint.verify(good).await.expect("Google signed it");
    }
    let (message, signature) = token.rsplit_once('.').expect("a JWT");
    let (header, payload) = message.split_once('.').expect("a JWT");
    let mut changed = claims();
    changed["aud"] = "https://b.run.app".into();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let forged = sign(&stranger);
    let forged = forged.rsplit_once('.').expect("a JWT").1;
    let flipped = {
        let mut bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        bytes[100] ^= 1;
        URL_SAFE_NO_PAD.encode(bytes)
    };
    for (what, forgery) in [
        ("a key that is not Google's", sign(&stranger)),
        (
            "another signature under Google's key ID",
            format!("{message}.{forged}"),
        ),
        (
            "a signature of the other key",
            format!("{message}.{}", sign(&other).rsplit_once('.').expect("a JWT").1),
        ),
        (
            "another claim",
            format!("{header}.{}.{signature}", part(&changed)),
        ),
        ("one bit of the signature", format!("{message}.{flipped}")),
        ("half a signature", format!("{message}.{}", &signature[..168])),
        (
            "a signature of zeros",
            format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 256])),
        ),
        (
            "no key ID",
            format!("{}.{payload}.{signature}", part(&json!({"alg": "RS256"}))),
        ),
        (
            "a key ID that is no string",
            format!(
                "{}.{payload}.{signature}",
                part(&json!({"alg": "RS256", "kid": [google.kid()]}))
            ),
        ),
    ] {
        assert!(is_invalid(endpoint.verify(&forgery).await), "{what}");
    }
    // Other algorithms are no ID tokens at all.
    for alg in ["none", "HS256", "RS512", "ES256"] {
        let header = part(&json!({"alg": alg, "kid": google.kid()}));
        assert!(
            IdToken::parse(format!("{header}.{payload}.{signature}")).is_err(),
            "{alg}"
        );
    }
    assert_eq!(endpoint.calls(), 1);
}

#[tokio::test]
async fn keys_are_used_as_long_as_the_endpoint_says() {
    let google = signer();
    let (endpoint, token) = (Endpoint::new(jwks([&google])).await, sign(&google));
    let many = join_all((0..50).map(|_| endpoint.verify(&token))).await;
    assert!(many.iter().all(Result::is_ok));
    assert_eq!(endpoint.calls(), 1, "one fetch for all");
    endpoint.pass(Duration::from_secs(2690));
    endpoint.verify(&token).await.expect("valid");
    assert_eq!(endpoint.calls(), 1);
    endpoint.pass(Duration::from_secs(20));
    endpoint.verify(&token).await.expect("valid");
    assert_eq!(endpoint.calls(), 2, "fetched before they expire");
    // An outage that is shorter than the last quarter of their life is not noticed. A longer one is.
    endpoint.publish(|published| published.status = 503);
    endpoint.pass(Duration::from_secs(3500));
    endpoint.verify(&token).await.expect("the keys have not expired");
    assert_eq!(endpoint.calls(), 3);
    endpoint.pass(Duration::from_secs(101));
    unavailable(endpoint.verify(&token).await);
    endpoint.publish(|published| published.status = 200);
    endpoint.pass(Duration::from_secs(61));
    endpoint.verify(&token).await.expect("the endpoint answers again");
}

#[tokio::test]
async fn a_new_key_is_found_and_unknown_ones_cost_a_fetch_a_minute() {
    let (old, new) = (signer(), signer());
    let endpoint = Endpoint::new(jwks([&old])).await;
    endpoint.verify(&sign(&old)).await.expect("valid");
    endpoint.publish(|published| published.body = jwks([&old, &new]));
    for _ in 0..20 {
        assert!(
            is_invalid(endpoint.verify(&sign(&new)).await),
            "the keys are fresh"
        );
    }
    assert_eq!(endpoint.calls(), 1);
    endpoint.pass(REFETCH_INTERVAL);
    let token = sign(&new);
    let many = join_all((0..20).map(|_| endpoint.verify(&token))).await;
    assert!(many.iter().all(Result::is_ok), "{many:?}");
    assert_eq!(endpoint.calls(), 2);
    let stranger = sign(&signer());
    for round in 3..6 {
        endpoint.pass(REFETCH_INTERVAL);
        for _ in 0..10 {
            assert!(is_invalid(endpoint.verify(&stranger).await));
        }
        assert_eq!(endpoint.calls(), round);
    }
    // Without an answer, nobody knows whose key it is. Tokens of known keys are verified all the same.
    endpoint.publish(|published| published.status = 500);
    endpoint.pass(REFETCH_INTERVAL);
    for _ in 0..10 {
        assert_eq!(unavailable(endpoint.verify(&stranger).await).status(), Some(500));
        endpoint.verify(&token).await.expect("its key is known");
    }
    assert_eq!(endpoint.calls(), 6, "failures are spaced");
}

#[tokio::test]
async fn without_keys_the_error_says_what_to_do() {
    let google = signer();
    let (endpoint, token) = (Endpoint::new(jwks([&google])).await, sign(&google));
    let public = json!({"kty": "EC", "kid": google.kid(), "crv": "P-256", "x": "AA", "y": "AA"});
    let mut encrypts = serde_json::to_value(google.jwk()).expect("a JWK");
    encrypts["use"] = "enc".into();
    let mut longer = serde_json::to_value(google.jwk()).expect("a JWK");
    longer["alg"] = "RS512".into();
    let good = jwks([&google]);
    for (status, body) in [
        (503, "no".to_owned()),
        (404, "no".to_owned()),
        (302, good.clone()),
        (200, String::new()),
        (200, "ya29.not-a-key-set".to_owned()),
        (200, json!({"keys": []}).to_string()),
        (
            200,
            json!({"keys": [public, encrypts, longer, 7, null]}).to_string(),
        ),
        (200, format!("{good}{}", " ".repeat(64 * 1024))),
    ] {
        endpoint.publish(|published| (published.status, published.body) = (status, body.clone()));
        endpoint.pass(Duration::from_secs(120));
        let error = unavailable(endpoint.verify(&token).await);
        assert_eq!(error.reason(), Reason::SigningKeysUnavailable);
        assert_eq!(error.status(), Some(status), "{error}");
        let said = error.to_string();
        for part in ["nothing is written", "--google-keys-url", "/keys"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!said.contains("ya29"), "{said}");
    }
    endpoint.publish(|published| {
        (published.status, published.headers) = (429, vec![("retry-after", "30")]);
        published.body = String::new();
    });
    endpoint.pass(Duration::from_secs(120));
    let error = unavailable(endpoint.verify(&token).await);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
    endpoint.publish(|published| (published.status, published.body) = (200, good));
    endpoint.pass(Duration::from_secs(120));
    endpoint.verify(&token).await.expect("the keys are back");
    // Nobody listens there.
    endpoint.server.abort();
    endpoint.pass(Duration::from_secs(24 * 3600));
    let error = unavailable(endpoint.verify(&token).await);
    assert_eq!(
        (error.status(), error.reason()),
        (None, Reason::SigningKeysUnavailable)
    );
}

#[tokio::test]
async fn a_call_that_is_not_made_keeps_its_reason_and_advice() {
    let google = signer();
    let standby = GoogleConfig {
        call_gate: Some(CallGate::new(|| false)),
        ..GoogleConfig::default()
    };
    let endpoint = Endpoint::with(jwks([&google]), standby).await;
    let not_leading = unavailable(endpoint.verify(&sign(&google)).await);
    assert_eq!(endpoint.calls(), 0);
    let wait = "held this call back";
    let limited = Error::new(vocabulary::Endpoint::SigningKeys, Reason::LocallyLimited, wait);
    let limited = endpoint.keys.explained(limited);
    for (error, reason) in [
        (not_leading, Reason::NotLeading),
        (limited, Reason::LocallyLimited),
    ] {
        assert_eq!(error.reason(), reason, "{error}");
        assert!(!error.to_string().contains("--google-keys-url"), "{error}");
    }
}

#[test]
fn the_endpoint_is_googles_and_https() {
    let config = |universe: &str, url: Option<&str>| GoogleConfig {
        universe_domain: universe.to_owned(),
        keys_url: url.map(|url| url.parse().expect("a URL")),
        ..GoogleConfig::default()
    };
    let url = |config: &GoogleConfig| {
        let keys = SigningKeys::new(config, Http::new(config).expect("a client"));
        keys.expect("a URL").url.to_string()
    };
    assert_eq!(
        url(&config("googleapis.com", None)),
        "https://www.googleapis.com/oauth2/v3/certs"
    );
    assert_eq!(
        url(&config("universe.example", None)),
        "https://www.universe.example/oauth2/v3/certs"
    );
    let mirror = "https://keys.internal.example/google/certs.json";
    assert_eq!(url(&config("googleapis.com", Some(mirror))), mirror);
    assert!(matches!(
        config("googleapis.com", Some("http://keys.internal.example/")).validate(),
        Err(ConfigError::NotHttps { .. })
    ));
}

#[test]
fn cache_control_is_obeyed_within_bounds() {
    for (control, age, seconds) in [
        (
            Some("public, max-age=20000, must-revalidate, no-transform"),
            None,
            20000,
        ),
        (Some("public, MAX-AGE=\"20000\""), Some("5000"), 15000),
        (Some("max-age=20000"), Some("soon"), 20000),
        (Some("max-age=20000"), Some("30000"), 300),
        (Some("max-age=0"), None, 300),
        (Some("max-age=-1"), None, 300),
        (Some("max-age=99999999999999999999"), None, 300),
        (Some("max-age=31536000"), None, 86400),
        (Some("max-age=3600, no-store"), None, 300),
        (Some("no-cache, max-age=3600"), None, 300),
        (None, None, 300),
    ] {
        let mut headers = HeaderMap::new();
        control.map(|value| headers.insert(CACHE_CONTROL, value.parse().expect("a value")));
        age.map(|value| headers.insert(AGE, value.parse().expect("a value")));
        assert_eq!(lifetime(&headers).as_secs(), seconds, "{control:?} {age:?}");
    }
}
