//! Google's libraries judge the token in the operator's Secret.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use idtoken_emulator::SigningKey;
use serde_json::{Value, json};

use crate::common::{AUDIENCE, CALLER, World};
use crate::referee::{Referee, for_each_referee};

for_each_referee!(the_token_in_the_secret);

async fn the_token_in_the_secret(referee: Referee) -> Result<()> {
    let world = World::new().await?;
    world.granted("shop").await?;
    world.issued("shop", "billing", json!({})).await?;
    let (token, claims) = world.claims("shop", "billing").await?;
    let referee = referee.with_proxy(&world.google)?;
    let certs = format!("{}/oauth2/v3/certs", world.google.url());
    let forgeries = forgeries(&token, claims.clone())?;
    let tokens = std::iter::once(&token).chain(forgeries.iter().map(|(_, token)| token));
    let tokens = tokens.cloned().collect::<Vec<_>>().join("\n");
    // By an address that is given, and by Google's own, which is the library's default.
    for certs in [certs.as_str(), "default"] {
        let answers = judgements(&referee, AUDIENCE, certs, &tokens).await?;
        let judged = &answers[0]["claims"];
        assert_eq!(judged["email"], CALLER, "{:?}", answers[0]);
        assert_eq!(judged["aud"], AUDIENCE);
        assert_eq!(judged["sub"], claims["sub"]);
        assert_eq!(judged["exp"].as_f64(), claims["exp"].as_f64());
        assert_eq!(answers.len(), 1 + forgeries.len());
        for (answer, (what, _)) in answers[1..].iter().zip(&forgeries) {
            assert!(answer["error"].is_string(), "{what} is accepted");
        }

        let answers = judgements(&referee, "https://another.run.app", certs, &token).await?;
        let refused = answers[0]["error"].as_str().unwrap_or_default();
        assert!(refused.to_lowercase().contains("audience"), "{refused}");
    }
    Ok(())
}

async fn judgements(referee: &Referee, audience: &str, certs: &str, tokens: &str) -> Result<Vec<Value>> {
    let answers = referee.run(&["verify", audience, certs], tokens).await?;
    let answers = answers.lines().map(serde_json::from_str);
    Ok(answers.collect::<Result<_, _>>()?)
}

/// Tokens that are not the one given.
fn forgeries(token: &str, mut claims: Value) -> Result<Vec<(&'static str, String)>> {
    let (signed, signature) = token.rsplit_once('.').context("a JWT")?;
    let (header, _) = signed.split_once('.').context("a JWT")?;
    let mut bytes = URL_SAFE_NO_PAD.decode(signature)?;
    bytes[100] ^= 1;
    let broken = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(bytes));
    claims["email"] = json!("admin@p.iam.gserviceaccount.com");
    let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
    let changed = format!("{header}.{payload}.{signature}");
    let unsigned = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "typ": "JWT"}).to_string());
    let foreign = SigningKey::generate()?.sign(&claims)?;
    let foreign_signature = foreign.rsplit_once('.').context("a JWT")?.1;
    Ok(vec![
        ("a broken signature", broken),
        ("another claim", changed),
        ("no signature", format!("{unsigned}.{payload}.")),
        ("a foreign signature", foreign.clone()),
        (
            "a foreign signature under Google's key id",
            format!("{header}.{payload}.{foreign_signature}"),
        ),
    ])
}
