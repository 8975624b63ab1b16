//! The Security Token Service over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{
    AUDIENCE, CALLER, CLUSTER, ISSUER, OTHER, POOL, PROVIDER, World, exchange_fields, jwks, now, start,
    start_with, subject_claims,
};
use idtoken_emulator::{Jwk, Options, SigningKey};
use serde_json::{Value, json};

async fn refused(world: &World, token: &str, error: &str, description: &str) {
    let (status, answer) = world.exchange(PROVIDER, token).await;
    assert_eq!(status, 400);
    assert_eq!(
        (&answer["error"], &answer["error_description"]),
        (&error.into(), &description.into())
    );
}

#[tokio::test]
async fn an_exchange_leads_to_an_id_token() {
    let world = start().await;
    let token = world.subject_token(|_| {});
    let (status, answer) = world.exchange(PROVIDER, &token).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(
        answer["issued_token_type"],
        "urn:ietf:params:oauth:token-type:access_token"
    );
    assert!(
        (590..=600).contains(&answer["expires_in"].as_i64().unwrap()),
        "as long as the subject token"
    );
    let federated = answer["access_token"].as_str().unwrap();
    let body = json!({"audience": AUDIENCE});
    assert_eq!(
        world.generate(federated, CALLER, &body).await.0,
        200,
        "by principal://"
    );
    assert_eq!(
        world.generate(federated, OTHER, &body).await.0,
        200,
        "by principalSet://"
    );
    let principal = world.google.calls().pop().unwrap().principal.unwrap();
    assert_eq!(
        principal,
        "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/system:serviceaccount:shop:billing"
    );

    let stranger = world.subject_token(|claims| claims["sub"] = "system:serviceaccount:shop:stranger".into());
    let (_, answer) = world.exchange(PROVIDER, &stranger).await;
    let federated = answer["access_token"].as_str().unwrap();
    assert_eq!(world.generate(federated, CALLER, &body).await.0, 403);

    let long = world.subject_token(|claims| claims["exp"] = (now() + 80_000).into());
    let (_, answer) = world.exchange(PROVIDER, &long).await;
    assert_eq!(answer["expires_in"], 3600, "an hour at most");
}

#[tokio::test]
async fn json_is_taken_too_and_an_authorization_header_is_not() {
    let world = start().await;
    let token = world.subject_token(|claims| claims["aud"] = PROVIDER.into());
    let fields = exchange_fields(PROVIDER, &token);
    let body: Value = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert_eq!(world.post("/v1/token", None, &body).await.0, 200);
    let mut with_options = body.clone();
    with_options["options"] = json!({"userProject": "p"}).to_string().into();
    assert_eq!(world.post("/v1/token", None, &with_options).await.0, 200);
    with_options["options"] = "nonsense".into();
    assert_eq!(world.post("/v1/token", None, &with_options).await.0, 400);
    assert_eq!(world.post("/v1/token", Some("x"), &body).await.0, 400);
    for missing in [
        "grant_type",
        "audience",
        "requested_token_type",
        "subject_token",
        "subject_token_type",
        "scope",
    ] {
        let mut body = body.clone();
        body.as_object_mut().unwrap().remove(missing);
        assert_eq!(world.post("/v1/token", None, &body).await.0, 400, "{missing}");
    }
}

#[tokio::test]
async fn refusals_read_as_googles() {
    let world = start().await;
    let token = world.subject_token(|_| {});
    let (status, answer) = world.exchange("nonsense", &token).await;
    assert_eq!((status, &answer["error"]), (400, &"invalid_request".into()));
    assert!(answer["error_description"].as_str().unwrap().starts_with(
        "Invalid value for \"audience\". This value should be the full resource name of the Identity Provider."
    ));
    let (status, answer) = world.exchange(&format!("{PROVIDER}x"), &token).await;
    assert_eq!((status, &answer["error"]), (400, &"invalid_target".into()));
    assert_eq!(
        answer["error_description"],
        "The target service indicated by the \"audience\" parameters is invalid. This might either be because the \
         pool or provider is disabled or deleted or because it doesn't exist."
    );

    let token = world.subject_token(|claims| claims["aud"] = json!(["x"]));
    let text = "The audience in ID Token [x] does not match the expected audience.";
    refused(&world, &token, "invalid_grant", text).await;

    let token = world.subject_token(|claims| claims["iss"] = "https://x".into());
    let text =
        format!("The issuer in ID Token https://x does not match the expected one in config: {ISSUER}");
    refused(&world, &token, "invalid_grant", &text).await;

    for (issued, expires) in [(now() - 600, now() - 1), (now() - 90_000, now() + 600)] {
        let token = world.subject_token(|claims| {
            claims["iat"] = issued.into();
            claims["exp"] = expires.into();
        });
        let text = format!("ID Token issued at {issued} is stale to sign-in.");
        refused(&world, &token, "invalid_grant", &text).await;
    }

    let forged = SigningKey::generate().unwrap().sign(&subject_claims()).unwrap();
    refused(
        &world,
        &forged,
        "invalid_grant",
        "Unable to verify the ID Token signature.",
    )
    .await;
    let token = world.subject_token(|_| {});
    let (head, rest) = token.split_once('.').unwrap();
    let unsigned = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(br#"{"alg":"none"}"#));
    assert_ne!(head, "");
    refused(
        &world,
        &unsigned,
        "invalid_grant",
        "Unable to verify the ID Token signature.",
    )
    .await;

    let long = format!("system:serviceaccount:{}:{}", "n".repeat(63), "m".repeat(63));
    let token = world.subject_token(|claims| claims["sub"] = long.as_str().into());
    let text = "The size of mapped attribute google.subject exceeds the 127 bytes limit. Either modify your attribute \
                mapping or the incoming assertion to produce a mapped attribute that is less than 127 bytes.";
    refused(&world, &token, "invalid_grant", text).await;
}

#[tokio::test]
async fn a_provider_is_configured() {
    let world = start_with(Options::default(), |policy| {
        let provider = &mut policy.workload_identity_providers[0];
        provider.allowed_audiences = vec!["sts".into()];
        provider.attribute_condition = Some("assertion.sub.startsWith('system:serviceaccount:shop:')".into());
    })
    .await;
    let own = format!("The audience in ID Token [https:{PROVIDER}] does not match the expected audience.");
    refused(&world, &world.subject_token(|_| {}), "invalid_grant", &own).await;
    let token = world.subject_token(|claims| claims["aud"] = "sts".into());
    assert_eq!(world.exchange(PROVIDER, &token).await.0, 200);
    let token = world.subject_token(|claims| {
        claims["aud"] = "sts".into();
        claims["sub"] = "system:serviceaccount:bank:vault".into();
    });
    let text = "The given credential is rejected by the attribute condition.";
    refused(&world, &token, "unauthorized_client", text).await;

    let mut policy = world.google.policy();
    policy.workload_identity_providers[0].disabled = true;
    world.google.set_policy(policy).unwrap();
    assert_eq!(
        world.exchange(PROVIDER, &token).await.1["error"],
        "invalid_target"
    );
}

#[tokio::test]
async fn es256_is_verified() {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref()).unwrap();
    let point = pair.public_key().as_ref();
    let jwk = Jwk {
        kty: "EC".into(),
        crv: Some("P-256".into()),
        x: Some(URL_SAFE_NO_PAD.encode(&point[1..33])),
        y: Some(URL_SAFE_NO_PAD.encode(&point[33..])),
        ..Jwk::default()
    };
    let world = start_with(Options::default(), |policy| {
        policy.workload_identity_providers[0].keys.jwks_json = Some(jwks(vec![jwk]));
    })
    .await;
    let input = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(br#"{"alg":"ES256"}"#),
        URL_SAFE_NO_PAD.encode(subject_claims().to_string())
    );
    let signature = pair.sign(&random, input.as_bytes()).unwrap();
    let token = format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
    let (status, answer) = world.exchange(PROVIDER, &token).await;
    assert_eq!(status, 200, "{answer}");
    let text = "Unable to verify the ID Token signature.";
    refused(&world, &world.subject_token(|_| {}), "invalid_grant", text).await;
}

#[tokio::test]
async fn keys_are_found_by_url_and_by_discovery() {
    // A second emulator plays the issuer: what it publishes is a JWKS as any other.
    let issuer = start().await;
    let policy = |url: Option<String>, issuer: String| {
        move |policy: &mut idtoken_emulator::Policy| {
            let provider = &mut policy.workload_identity_providers[0];
            provider.issuer = issuer;
            provider.keys.jwks_json = None;
            provider.keys.jwks_url = url;
        }
    };
    let issuer_url = "https://accounts.google.com".to_owned();
    let world = start_with(
        Options::default(),
        policy(Some(issuer.url("/oauth2/v3/certs")), issuer_url),
    )
    .await;
    let bearer = issuer.operator_bearer().await;
    let body = json!({"audience": PROVIDER});
    let (_, answer) = issuer.generate(&bearer, CALLER, &body).await;
    let token = answer["token"].as_str().unwrap();
    assert_eq!(world.exchange(PROVIDER, token).await.0, 200);
    issuer.google.fault(idtoken_emulator::Fault::status(503)).unwrap();
    assert_eq!(world.exchange(PROVIDER, token).await.0, 200, "keys are cached");
    world.google.clear_caches();
    refused(
        &world,
        token,
        "invalid_grant",
        "Error connecting to the given credential's issuer.",
    )
    .await;

    // Discovery at an issuer with another key, over raw HTTP.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let key = SigningKey::generate().unwrap();
    let documents = [
        (
            "/.well-known/openid-configuration",
            json!({"issuer": url, "jwks_uri": format!("{url}/keys")}).to_string(),
        ),
        ("/keys", jwks(vec![key.jwk()])),
    ];
    let mut router = axum::Router::new();
    for (path, document) in documents {
        router = router.route(path, axum::routing::get(async || document));
    }
    let served = tokio::spawn(async move { axum::serve(listener, router).await });
    let world = start_with(Options::default(), policy(None, url.clone())).await;
    let mut claims = subject_claims();
    claims["iss"] = url.into();
    let (status, answer) = world.exchange(PROVIDER, &key.sign(&claims).unwrap()).await;
    assert_eq!(status, 200, "{answer}");
    served.abort();
}

/// An issuer over https: its URL, its key, and the certificate of the CA that vouches for it.
async fn https_issuer() -> (String, SigningKey, String) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &ca).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let key = SigningKey::generate().unwrap();
    let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/keys")}).to_string();
    let documents = [discovery, jwks(vec![key.jwk()])];
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, documents) = (acceptor.clone(), documents.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await?;
                let service = hyper::service::service_fn(move |request| answer(request, documents.clone()));
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await?;
                anyhow::Ok(())
            });
        }
    });
    (url, key, ca.pem())
}

async fn answer(
    request: axum::http::Request<hyper::body::Incoming>,
    [discovery, keys]: [String; 2],
) -> Result<axum::http::Response<String>, std::convert::Infallible> {
    let document = match request.uri().path() {
        "/.well-known/openid-configuration" => discovery,
        "/keys" => keys,
        _ => String::new(),
    };
    Ok(axum::http::Response::new(document))
}

#[tokio::test]
async fn keys_are_fetched_over_https_by_the_providers_own_certificates() {
    let (issuer, key, ca) = https_issuer().await;
    let mut claims = subject_claims();
    claims["iss"] = issuer.clone().into();
    let token = key.sign(&claims).unwrap();
    let trusting = async |ca: Option<String>, by_discovery: bool| {
        let issuer = issuer.clone();
        let change = move |policy: &mut idtoken_emulator::Policy| {
            let provider = &mut policy.workload_identity_providers[0];
            provider.keys = idtoken_emulator::IssuerKeys {
                jwks_json: None,
                jwks_url: (!by_discovery).then(|| format!("{issuer}/keys")),
                ca_certificates: ca,
            };
            provider.issuer = issuer;
        };
        start_with(Options::default(), change).await
    };
    let (_, _, another) = https_issuer().await;
    for by_discovery in [true, false] {
        let world = trusting(Some(ca.clone()), by_discovery).await;
        let (status, answer) = world.exchange(PROVIDER, &token).await;
        assert_eq!(status, 200, "{answer}");
        let bundle = format!("{another}{ca}");
        assert_eq!(
            trusting(Some(bundle), by_discovery)
                .await
                .exchange(PROVIDER, &token)
                .await
                .0,
            200
        );
        for untrusted in [None, Some(another.clone())] {
            let world = trusting(untrusted, by_discovery).await;
            let text = "Error connecting to the given credential's issuer.";
            refused(&world, &token, "invalid_grant", text).await;
        }
    }
}

#[tokio::test]
async fn gke_has_its_own_pool() {
    let world = start().await;
    let audience = format!("identitynamespace:{POOL}:{CLUSTER}");
    let token = world.subject_token(|claims| {
        claims["iss"] = CLUSTER.into();
        claims["aud"] = json!([POOL]);
    });
    let body = json!({
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "subject_token": token,
        "audience": audience,
        "scope": "https://www.googleapis.com/auth/cloud-platform",
    });
    for path in ["/v1/identitybindingtoken", "/v1/token"] {
        let (status, answer) = world.post(path, None, &body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        let bearer = answer["access_token"].as_str().unwrap();
        assert_eq!(
            world
                .generate(bearer, CALLER, &json!({"audience": AUDIENCE}))
                .await
                .0,
            200
        );
    }
    let mut foreign = body.clone();
    foreign["audience"] = PROVIDER.into();
    assert_eq!(
        world.post("/v1/identitybindingtoken", None, &foreign).await.0,
        400
    );
    let own = world.subject_token(|claims| claims["iss"] = CLUSTER.into());
    assert_eq!(
        world.exchange(&audience, &own).await.1["error"],
        "invalid_grant",
        "the audience is the pool"
    );
    assert_eq!(
        world.exchange(&format!("{audience}x"), &token).await.1["error"],
        "invalid_target"
    );
}
