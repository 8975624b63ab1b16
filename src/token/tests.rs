use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).expect("in range")
}

fn jwt(header: &serde_json::Value, claims: &serde_json::Value) -> String {
    let part = |v: &serde_json::Value| URL_SAFE_NO_PAD.encode(v.to_string());
    format!(
        "{}.{}.{}",
        part(header),
        part(claims),
        URL_SAFE_NO_PAD.encode([7u8; 256])
    )
}

fn claims() -> serde_json::Value {
    json!({
        "iss": "https://accounts.google.com", "aud": "https://a.run.app", "sub": "1234567890",
        "azp": "1234567890", "email": "caller@p.iam.gserviceaccount.com", "email_verified": true,
        "iat": NOW - 5, "exp": NOW + 3595,
    })
}

fn with(changes: serde_json::Value) -> Result<IdToken, TokenError> {
    let mut claims = claims();
    for (key, value) in changes.as_object().expect("an object") {
        if value.is_null() {
            claims.as_object_mut().expect("an object").remove(key);
        } else {
            claims[key] = value.clone();
        }
    }
    IdToken::parse(jwt(&json!({"alg": "RS256", "kid": "k", "typ": "JWT"}), &claims))
}

fn expected() -> Expected<'static> {
    Expected {
        audience: "https://a.run.app",
        account: Some(Account::Email("caller@p.iam.gserviceaccount.com")),
        include_email: true,
        subject: None,
    }
}

fn reason(changes: serde_json::Value, expected: &Expected<'_>) -> &'static str {
    match with(changes).and_then(|token| token.verify(expected, now())) {
        Ok(()) => "Ok",
        Err(error) => error.reason(),
    }
}

#[test]
fn accepts_the_requested_token() {
    assert_eq!(reason(json!({}), &expected()), "Ok");
    assert_eq!(reason(json!({"iss": "accounts.google.com"}), &expected()), "Ok");
    let by_id = Expected {
        account: Some(Account::UniqueId("1234567890")),
        ..expected()
    };
    assert_eq!(reason(json!({}), &by_id), "Ok");
    let without_email = Expected {
        include_email: false,
        subject: Some("1234567890"),
        ..expected()
    };
    assert_eq!(
        reason(json!({"email": null, "email_verified": null}), &without_email),
        "Ok"
    );
}

#[test]
fn rejects_another_token() {
    let want = expected();
    for (changes, reason_wanted) in [
        (
            json!({"iss": "https://accounts.google.com.evil.example"}),
            "TokenWrongIssuer",
        ),
        (json!({"aud": "https://a.run.app/"}), "TokenWrongAudience"),
        (json!({"aud": ["https://a.run.app"]}), "TokenMalformed"),
        (json!({"exp": NOW}), "TokenExpired"),
        (json!({"iat": NOW + 9000, "exp": NOW + 8000}), "TokenMalformed"),
        (
            json!({"email": "other@p.iam.gserviceaccount.com"}),
            "TokenWrongAccount",
        ),
        (json!({"email": null}), "TokenEmailMissing"),
        (json!({"email_verified": false}), "TokenEmailNotVerified"),
        (json!({"sub": ""}), "TokenMalformed"),
        (json!({"exp": i64::MAX}), "TokenMalformed"),
        (json!({"exp": "soon"}), "TokenMalformed"),
    ] {
        assert_eq!(reason(changes.clone(), &want), reason_wanted, "{changes}");
    }
    let by_id = Expected {
        account: Some(Account::UniqueId("99")),
        ..want
    };
    assert_eq!(reason(json!({}), &by_id), "TokenWrongAccount");
    assert_eq!(
        reason(
            json!({}),
            &Expected {
                subject: Some("99"),
                ..want
            }
        ),
        "TokenSubjectChanged"
    );
}

#[test]
fn rejects_what_is_no_jwt() {
    let good = jwt(&json!({"alg": "RS256"}), &claims());
    for bad in [
        "",
        "..",
        "a.b",
        "a.b.c.d",
        "é.é.é",
        &format!("{good}."),
        &format!("{good}="),
        &format!(" {good}"),
    ] {
        assert_eq!(
            IdToken::parse(bad.to_owned()).map(|_| ()).map_err(|e| e.reason()),
            Err("TokenMalformed"),
            "{bad}"
        );
    }
    let huge = format!("{good}{}", "A".repeat(MAX_TOKEN_BYTES));
    assert_eq!(
        IdToken::parse(huge).map(|_| ()),
        Err(TokenError::Malformed("it is longer than 16 KiB"))
    );
    let unsigned = jwt(&json!({"alg": "none"}), &claims());
    assert_eq!(
        IdToken::parse(unsigned).map(|_| ()),
        Err(TokenError::WrongAlgorithm("none".to_owned()))
    );
}

#[test]
fn debug_and_messages_hold_no_token() {
    let token = with(json!({"aud": "line\nbreak"})).expect("parses");
    let debug = format!("{token:?}");
    for part in token.expose().split('.') {
        assert!(!debug.contains(part));
    }
    let message = token
        .verify(&expected(), now())
        .expect_err("another audience")
        .to_string();
    assert!(
        message.contains(r"line\nbreak") && !message.contains('\n'),
        "{message}"
    );
}

#[test]
fn fingerprint_and_skew() {
    let token = with(json!({})).expect("parses");
    assert_eq!(token.fingerprint().len(), 16);
    assert_eq!(
        token.fingerprint(),
        with(json!({})).expect("parses").fingerprint()
    );
    assert_ne!(
        token.fingerprint(),
        with(json!({"sub": "9"})).expect("parses").fingerprint()
    );
    assert_eq!(token.clock_skew(now()), None);
    let ahead = with(json!({"iat": NOW + 600})).expect("parses");
    assert_eq!(ahead.clock_skew(now()), Some(SignedDuration::from_secs(600)));
}

proptest! {
    #[test]
    fn parse_never_panics(text in any::<String>()) {
        let _ = IdToken::parse(text);
    }

    #[test]
    fn parse_of_any_parts_never_panics(header in any::<Vec<u8>>(), claims in any::<Vec<u8>>()) {
        let token = format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let _ = IdToken::parse(token);
    }

    #[test]
    fn verify_of_any_times_never_panics(iat in any::<i64>(), exp in any::<i64>(), now in -9_999_999_999i64..99_999_999_999) {
        if let Ok(token) = with(json!({"iat": iat, "exp": exp})) {
            let now = Timestamp::from_second(now).expect("in range");
            let _ = token.verify(&expected(), now);
            let _ = token.clock_skew(now);
        }
    }
}
