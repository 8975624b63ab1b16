use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

const IAT: i64 = 1_800_000_000;

fn raw() -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({
        "iss": "https://accounts.google.com", "aud": "https://a", "sub": "1234", "iat": IAT, "exp": IAT + 3600,
        "google": {"organization_number": 42}, "odd": "\u{1b}[31mred",
    });
    format!("{}.{}.c2lnbmF0dXJl", part(json!({"alg": "RS256"})), part(claims))
}

fn explanation(token_state: TokenState, seconds: i64) -> Explanation {
    let object = json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {"name": "billing", "namespace": "shop", "uid": "u-1"},
        "spec": {"audience": "https://a", "serviceAccount": "1234", "includeEmail": false},
        "status": {"conditions": [{
            "type": "Ready", "status": "False", "reason": "PermissionDenied", "message": "no\u{1b}[2J",
            "lastTransitionTime": "2027-01-15T08:00:00Z",
        }]},
    });
    Explanation {
        grant_origin: Default::default(),
        object: serde_json::from_value(object).unwrap(),
        secret: "billing".to_owned(),
        token_state,
        differences: Vec::new(),
        steps: Vec::new(),
        now: Timestamp::from_second(IAT + seconds).unwrap(),
    }
}

fn token() -> TokenState {
    TokenState::Token(Box::new(IdToken::parse(raw()).unwrap()))
}

#[test]
fn shows_the_remaining_lifetime() {
    assert!(
        explanation(token(), 1080)
            .text()
            .unwrap()
            .contains("  valid for another 42m\n")
    );
    assert!(
        explanation(token(), 3900)
            .text()
            .unwrap()
            .contains("  expired 5m ago\n")
    );
    let json = explanation(token(), 3900).json().unwrap();
    assert_eq!(
        (&json["token"]["expired"], &json["token"]["secondsLeft"]),
        (&true.into(), &0.into())
    );
    let json = explanation(token(), 3540).json().unwrap();
    assert_eq!(
        (&json["token"]["expired"], &json["token"]["secondsLeft"]),
        (&false.into(), &60.into())
    );
}

#[test]
fn shows_all_claims_and_never_the_token() {
    let explanation = explanation(token(), 0);
    let text = explanation.text().unwrap();
    for line in [
        "aud:     https://a",
        "google:  {\"organization_number\":42}",
        "exp:     2027-01-15T09:00:00Z (in 1h)",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    assert!(
        text.contains("Ready       False    PermissionDenied   0s      no\\u{1b}[2J"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
    let json = explanation.json().unwrap().to_string();
    for part in raw().split('.') {
        assert!(!text.contains(part) && !json.contains(part), "{part}");
    }
}

#[test]
fn texts_of_others_are_escaped_in_json_too() {
    let hostile = "no\u{1b}[2J\u{9b}0m\u{202e}\u{2066}\nReady  True";
    let long = "x".repeat(20_000);
    let is_unsafe = |c: char| c.is_control() || "\u{202e}\u{2066}".contains(c);
    for message in [hostile, &long] {
        let mut explanation = explanation(TokenState::Unreadable(message.to_owned()), 0);
        let conditions = explanation
            .object
            .status
            .as_mut()
            .map(|status| &mut status.conditions);
        conditions.unwrap()[0].message = message.to_owned();
        let [field, expected, found] = [message; 3].map(str::to_owned);
        explanation.differences = vec![Difference {
            field,
            expected,
            found,
        }];
        explanation.steps = vec![message.to_owned()];
        let json = explanation.json().unwrap();
        for text in [
            &json["status"]["conditions"][0]["message"],
            &json["token"]["problem"]["message"],
            &json["differences"][0]["field"],
            &json["differences"][0]["expected"],
            &json["differences"][0]["found"],
            &json["next"][0],
        ] {
            let text = text.as_str().unwrap();
            assert!(text.len() < 5000 && !text.contains(is_unsafe), "{text}");
            assert!(
                text.starts_with("no\\u{1b}[2J") || text.starts_with("xxx"),
                "{text}"
            );
        }
    }
}

#[test]
fn says_why_there_is_no_token() {
    let said = |token_state| explanation(token_state, 0).text().unwrap();
    assert!(said(TokenState::NoSecret).contains("none: there is no Secret billing"));
    assert!(said(TokenState::NoKey).contains("none: Secret billing has no key token"));
    let unreadable = said(TokenState::Unreadable("forbidden".to_owned()));
    assert!(unreadable.contains("not shown: you may not read Secret billing: forbidden"));
    assert!(!unreadable.contains("Differences"), "differences are unknown");
}
