//! What the operator sends and understands: each of its requests, and each error that it distinguishes, has an assertion.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::http::Response;
use idtoken_conformance::{Assertion, Emulated, Service, all};
use idtoken_operator::google::{
    AttachedIdentity, CallPriority, Error, GoogleConfig, IdentityProvider, Impersonation, Minter,
    SubjectToken, Transport, Workload,
};
use regex::Regex;
use serde_json::{Value, json};
use url::Url;

use crate::source::{all_code, code, found};

const SUBJECT: &str = "system:serviceaccount:shop:billing";
const AUDIENCE: &str = "https://billing.example";

/// Reasons that no error of Google's leads to, and where they come from.
const OWN: [(&str, &str); 9] = [
    ("AccountMismatch", "the operator compares accounts"),
    ("LocallyLimited", "its own limits"),
    ("NotLeading", "another replica calls"),
    ("NotUserCredentials", "the type of its credential file"),
    ("SelfImpersonation", "it compares accounts"),
    ("TokenSignatureInvalid", "it verifies signatures"),
    (
        "UnexpectedResponse",
        "an answer without an error and without a token",
    ),
    ("UpstreamTimeout", "no answer"),
    ("UpstreamUnreachable", "no answer"),
];
/// Words for the same rules that no captured answer of these APIs has.
const WITHOUT_ANSWER: [&str; 4] = ["access boundary", "org policy", "perimeter", "service controls"];
/// Headers of every client.
const USUAL: [&str; 3] = ["accept", "content-type", "user-agent"];

/// A credential file that is deleted with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, content: &Value) -> Self {
        let name = format!("operator-{name}-{}.json", std::process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, content.to_string()).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn config(url: &str, credentials: Option<&File>, transport: Transport) -> GoogleConfig {
    let base = Url::parse(url).unwrap();
    GoogleConfig {
        iam_credentials_url: Some(base.clone()),
        sts_url: Some(base.clone()),
        keys_url: Some(base.join("oauth2/v3/certs").unwrap()),
        metadata_host: Some(url.trim_start_matches("http://").to_owned()),
        credentials_file: credentials.map(|file| file.0.clone()),
        transport,
        ..GoogleConfig::default()
    }
}

fn impersonation<'a>(account: &'a str, delegates: &'a [String]) -> Impersonation<'a> {
    Impersonation {
        service_account: account,
        audience: AUDIENCE,
        include_email: true,
        include_organization_number: true,
        delegates,
        request_reason: "shop/billing",
        priority: CallPriority::OPERATOR,
    }
}

fn attached(account: Option<&str>) -> AttachedIdentity<'_> {
    AttachedIdentity {
        service_account: account,
        audience: AUDIENCE,
        include_email: true,
        licenses: true,
        priority: CallPriority::OPERATOR,
    }
}

fn workload(provider: &IdentityProvider) -> Workload<'_> {
    Workload {
        provider,
        namespace: "shop",
        name: "billing",
        subject: SUBJECT,
        request_reason: "shop/billing",
        priority: CallPriority::OPERATOR,
    }
}

/// Credential files of the types that call Google.
async fn file(emulated: &Emulated, kind: &str) -> Value {
    let url = emulated.url();
    let key = emulated.key_file().unwrap();
    let user = json!({
        "type": "authorized_user",
        "account": "developer@example.com",
        "client_id": emulated.resolve("${client}").await.unwrap(),
        "client_secret": emulated.resolve("${clientSecret}").await.unwrap(),
        "refresh_token": emulated.resolve("${refreshToken}").await.unwrap(),
        "token_uri": format!("{url}/token"),
        "quota_project_id": emulated.resolve("${project}").await.unwrap(),
    });
    let account = emulated.resolve("${delegate}").await.unwrap();
    match kind {
        "service account" => key,
        "user" => user,
        "user of a workforce pool" => json!({
            "type": "external_account_authorized_user",
            "audience": "//iam.googleapis.com/locations/global/workforcePools/staff/providers/corp",
            "client_id": user["client_id"],
            "client_secret": user["client_secret"],
            "refresh_token": emulated.resolve("${workforceRefreshToken}").await.unwrap(),
            "token_url": format!("{url}/v1/oauthtoken"),
        }),
        "impersonated" => json!({
            "type": "impersonated_service_account",
            "service_account_impersonation_url":
                format!("{url}/v1/projects/-/serviceAccounts/{account}:generateAccessToken"),
            "delegates": [account],
            "source_credentials": user,
        }),
        "aws" => json!({
            "type": "external_account",
            "audience": emulated.resolve("${awsProvider}").await.unwrap(),
            "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
            "token_url": format!("{url}/v1/token"),
            "workforce_pool_user_project": "p",
            "credential_source": {
                "environment_id": "aws1",
                "region_url": format!("{url}/latest/meta-data/placement/availability-zone"),
                "url": format!("{url}/latest/meta-data/iam/security-credentials"),
                "regional_cred_verification_url":
                    "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
                "imdsv2_session_token_url": format!("{url}/latest/api/token"),
            },
        }),
        other => panic!("{other}"),
    }
}

/// What the operator makes of an assertion's answer; none if it does not ask for that.
async fn understood(emulated: &Emulated, assertion: &Assertion) -> Option<Error> {
    let (_, path) = assertion.call();
    let path = path.split('?').next().unwrap_or_default();
    let form = assertion.request.form.as_ref();
    let grant = form
        .and_then(|form| form.get("grant_type")?.as_str())
        .unwrap_or_default();
    let kind = match (assertion.service(), path) {
        (Service::Iamcredentials, path) if path.ends_with(":generateIdToken") => "service account",
        (Service::Iamcredentials, path) if path.ends_with(":generateAccessToken") => "impersonated",
        (Service::Oauth2, "/token") if grant == "refresh_token" => "user",
        (Service::Sts, "/v1/token") | (Service::Www, "/oauth2/v3/certs") => "service account",
        (Service::Metadata, path) if path.ends_with("/identity") => "service account",
        _ => return None,
    };
    let text = match &assertion.answer.body {
        Value::String(text) => text.clone(),
        body => body.to_string(),
    };
    let text = emulated.resolve(&text).await.unwrap();
    let (status, headers) = (assertion.answer.status, assertion.answer.headers.clone());
    let suffix = path.rsplit(['/', ':']).next().unwrap().to_owned();
    // All else is answered by the emulator.
    let transport = Transport::new(move |request| {
        let is_asked = request
            .try_clone()
            .and_then(|request| request.build().ok())
            .is_some_and(|request| request.url().path().ends_with(&suffix));
        if !is_asked {
            return Box::pin(request.send());
        }
        let mut answer = Response::builder()
            .status(status)
            .header("metadata-flavor", "Google");
        for (name, value) in &headers {
            answer = answer.header(name, value);
        }
        let answer = answer.body(text.clone()).unwrap();
        Box::pin(async move { Ok(answer.into()) })
    });
    let credentials = File::new(&assertion.name, &file(emulated, kind).await);
    let minter = Minter::new(config(emulated.url(), Some(&credentials), transport)).unwrap();
    let account = emulated.resolve("${target}").await.unwrap();
    let result = match assertion.service() {
        Service::Sts => {
            let provider = emulated.resolve("${provider}").await.unwrap();
            let provider = provider.parse().unwrap();
            let token = subject_token(emulated).await;
            return minter.exchange(&workload(&provider), &token).await.err();
        }
        Service::Metadata | Service::Www => minter.attached_identity(&attached(None)).await,
        _ => minter.impersonate(&impersonation(&account, &[])).await,
    };
    result.err()
}

async fn subject_token(emulated: &Emulated) -> SubjectToken {
    SubjectToken {
        token: emulated.resolve("${subject}").await.unwrap().into(),
        issuer: emulated.resolve("${issuer}").await.unwrap(),
        audience: format!("https:{}", emulated.resolve("${provider}").await.unwrap()),
    }
}

fn errors() -> Vec<Assertion> {
    let mut all = all().unwrap();
    all.retain(|one| one.answer.status >= 400);
    all
}

#[tokio::test]
async fn each_reason_of_the_operator_has_an_answer_that_leads_to_it() {
    let emulated = Emulated::start().await.unwrap();
    let mut reached: BTreeMap<&str, String> = BTreeMap::new();
    for assertion in errors() {
        if let Some(error) = understood(&emulated, &assertion).await {
            reached.insert(error.reason().as_str(), assertion.name);
        }
    }
    let reasons = found(
        r#"Self::[A-Za-z]+ => "([A-Za-z]+)""#,
        &code("src/google/vocabulary/reason.rs"),
    );
    assert!(reasons.len() > 25, "{reasons:?}");
    let own: BTreeSet<&str> = OWN.iter().map(|(reason, _)| *reason).collect();
    let missing: Vec<_> = reasons
        .iter()
        .filter(|reason| !reached.contains_key(reason.as_str()) && !own.contains(reason.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "no assertion's answer leads to {missing:?}: {reached:#?}"
    );
    let wrong: Vec<_> = own
        .iter()
        .filter(|reason| reached.contains_key(**reason) || !reasons.iter().any(|known| known == **reason))
        .collect();
    assert!(
        wrong.is_empty(),
        "not the operator's own: {wrong:?}: {reached:#?}"
    );
}

#[tokio::test]
async fn each_denial_has_the_advice_that_fits() {
    let emulated = Emulated::start().await.unwrap();
    let errors = errors();
    for (name, expected) in [
        ("id-token-denied", Some("add-iam-policy-binding")),
        ("id-token-denied-without-details", Some("add-iam-policy-binding")),
        ("id-token-denied-without-cause", Some("which is a guess: ")),
        (
            "id-token-for-denied-quota-project",
            Some("--role=roles/serviceusage.serviceUsageConsumer"),
        ),
        (
            "access-token-for-denied-quota-project",
            Some("set-quota-project PROJECT_ID"),
        ),
        (
            "id-token-while-api-is-disabled",
            Some("gcloud services enable iamcredentials.googleapis.com"),
        ),
        ("id-token-for-other-scope", Some("lacks the scope")),
        ("exchange-denied", Some("which is a guess: ")),
        ("identity-denied", Some("which is a guess: ")),
        // No binding helps.
        ("id-token-denied-by-perimeter", None),
        ("id-token-denied-by-constraint", None),
        ("id-token-denied-for-billing", None),
        ("exchange-denied-by-perimeter", None),
        ("identity-denied-by-perimeter", None),
    ] {
        let assertion = errors.iter().find(|one| one.name == name).expect(name);
        let error = understood(&emulated, assertion).await.expect(name);
        let advice = error.remediation();
        let fits = match expected {
            Some(expected) => advice.is_some_and(|advice| advice.contains(expected)),
            None => advice.is_none(),
        };
        assert!(fits, "{name}: {advice:?}");
    }
}

/// By the words that the code looks for, whatever it makes of them.
#[test]
fn each_word_that_the_operator_looks_for_is_in_an_answer() {
    let patterns = [
        r#"says\("([^"]+)"\)"#,
        r#"(?:message|body|text|description|to_string\(\))\.contains\("([^"]+)"\)"#,
        r#"(?:reason|permission)\s*(?:==|\.starts_with\()\s*"([^"]+)""#,
        r#"Some\("([A-Z][A-Z_]+)"\)"#,
        r#"is_type\([a-z]+, "([^"]+)"\)"#,
        r#""([a-z]+_[a-z]+)" (?:if [^=]+)?=> Reason"#,
    ];
    let mut words = BTreeSet::new();
    for (_, code) in all_code("src/google") {
        for pattern in patterns {
            words.extend(found(pattern, &code));
        }
        if let Some((_, rest)) = code.split_once("const WORDS: [") {
            let (list, _) = rest.split_once("];").unwrap();
            words.extend(found(r#""([^"]+)""#, list));
        }
    }
    for known in [
        "USER_PROJECT_DENIED",
        "google.rpc.PreconditionFailure",
        "billing",
        "invalid_target",
    ] {
        assert!(
            words.contains(known),
            "{known} is not found in the code: {words:?}"
        );
    }
    let text = |value: &Value| match value {
        Value::String(text) => text.to_lowercase(),
        value => value.to_string().to_lowercase(),
    };
    let answers: Vec<_> = errors().iter().map(|one| text(&one.answer.body)).collect();
    let missing: Vec<_> = words
        .iter()
        .filter(|word| !answers.iter().any(|answer| answer.contains(&word.to_lowercase())))
        .collect();
    assert_eq!(missing, WITHOUT_ANSWER, "no assertion's answer has these words");
}

/// Whom a request is for, and each header, parameter and field that it has.
fn parts(method: &str, url: &str, headers: &[String], fields: &[String]) -> BTreeSet<(String, String)> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let names = Regex::new("(/serviceAccounts|/security-credentials)/[^/:]+").unwrap();
    let route = format!("{method} {}", names.replace(path, "$1/*"));
    let query = url::form_urlencoded::parse(query.as_bytes()).map(|(name, _)| format!("parameter {name}"));
    let headers = headers
        .iter()
        .filter(|name| !USUAL.contains(&name.as_str()))
        .map(|name| format!("header {name}"));
    let fields = fields.iter().map(|name| format!("field {name}"));
    std::iter::once("itself".to_owned())
        .chain(query)
        .chain(headers)
        .chain(fields)
        .map(|part| (route.clone(), part))
        .collect()
}

fn asked_by(assertion: &Assertion) -> BTreeSet<(String, String)> {
    let asked = &assertion.request;
    let (method, url) = assertion.call();
    let mut headers: Vec<_> = asked.headers.keys().cloned().collect();
    headers.extend(asked.bearer.iter().map(|_| "authorization".to_owned()));
    let json = asked.json.as_ref().and_then(Value::as_object);
    let json = json.into_iter().flat_map(|fields| fields.keys());
    let form = asked.form.iter().flat_map(|fields| fields.keys());
    parts(
        method,
        url,
        &headers,
        &json.chain(form).cloned().collect::<Vec<_>>(),
    )
}

fn asked_for(request: &reqwest::Request) -> BTreeSet<(String, String)> {
    let headers: Vec<_> = request
        .headers()
        .keys()
        .map(|name| name.as_str().to_owned())
        .collect();
    let body = request
        .body()
        .and_then(reqwest::Body::as_bytes)
        .unwrap_or_default();
    let fields = match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(fields)) => fields.keys().cloned().collect(),
        _ => url::form_urlencoded::parse(body)
            .map(|(name, _)| name.into_owned())
            .collect::<Vec<_>>(),
    };
    let url = request.url();
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    parts(
        request.method().as_str(),
        &format!("{}{query}", url.path()),
        &headers,
        &fields,
    )
}

/// Where the operator builds requests, and how many there. The one of `external_account.rs` goes to the provider of a subject token.
const REQUESTS: [(&str, usize); 8] = [
    ("src/google/credentials/aws.rs", 2),
    ("src/google/credentials/external_account.rs", 1),
    ("src/google/credentials/fetch.rs", 2),
    ("src/google/endpoints/iam_credentials.rs", 1),
    ("src/google/endpoints/metadata_server.rs", 1),
    ("src/google/endpoints/oauth2.rs", 1),
    ("src/google/endpoints/sts.rs", 1),
    ("src/google/signing_keys.rs", 1),
];

/// A request that is built in another place must be driven below.
#[test]
fn the_operator_builds_requests_where_they_are_known() {
    let pattern =
        r"(?:http(?:_for|_as)?(?:\([^()]*\))?|direct\(\))\s*\.(get|post|put|patch|delete|head|request)\(";
    let built: Vec<_> = all_code("src/google")
        .into_iter()
        .map(|(path, code)| (path, found(pattern, &code).len()))
        .filter(|(_, count)| *count > 0)
        .collect();
    let built: Vec<_> = built
        .iter()
        .map(|(path, count)| (path.as_str(), *count))
        .collect();
    assert_eq!(built, REQUESTS);
}

#[tokio::test]
async fn each_request_of_the_operator_has_an_assertion() {
    // Without the credentials of whoever runs the tests.
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["AWS_", "GOOGLE_", "CLOUDSDK_", "GCE_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            child.env_remove(name);
        }
    }
    let output = child
        .args(["--exact", "operator::child", "--ignored", "--nocapture"])
        .env("HOME", env!("CARGO_TARGET_TMPDIR"))
        .kill_on_drop(true)
        .output();
    let output = output.await.unwrap();
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}");
}

#[tokio::test]
#[ignore = "run by each_request_of_the_operator_has_an_assertion"]
async fn child() {
    let emulated = Emulated::start().await.unwrap();
    let seen: Arc<Mutex<BTreeSet<(String, String)>>> = Arc::default();
    let recorder = || {
        let seen = seen.clone();
        Transport::new(move |request| {
            let built = request.try_clone().unwrap().build().unwrap();
            seen.lock().unwrap().extend(asked_for(&built));
            Box::pin(request.send())
        })
    };
    let minter =
        |credentials: Option<&File>| Minter::new(config(emulated.url(), credentials, recorder())).unwrap();
    let account = emulated.resolve("${target}").await.unwrap();
    let delegates = [emulated.resolve("${far}").await.unwrap()];
    for kind in [
        "service account",
        "user",
        "user of a workforce pool",
        "impersonated",
        "aws",
    ] {
        let credentials = File::new(&kind.replace(' ', "-"), &file(&emulated, kind).await);
        let minter = minter(Some(&credentials));
        // Whoever it is need not have the role: the request is what counts.
        let _ = minter.impersonate(&impersonation(&account, &delegates)).await;
        if kind == "user" {
            minter.user_id_token(CallPriority::OPERATOR).await.unwrap();
        }
    }
    let minter = minter(None);
    let attached_account = emulated.resolve("${attached}").await.unwrap();
    minter
        .attached_identity(&attached(Some(&attached_account)))
        .await
        .unwrap();
    let _ = minter.impersonate(&impersonation(&account, &[])).await;
    let provider = emulated.resolve("${provider}").await.unwrap().parse().unwrap();
    let workload = workload(&provider);
    let bearer = minter
        .exchange(&workload, &subject_token(&emulated).await)
        .await
        .unwrap();
    minter
        .federate(&workload, &bearer, &impersonation(&account, &[]))
        .await
        .unwrap();

    let seen = seen.lock().unwrap().clone();
    let routes: BTreeSet<_> = seen.iter().map(|(route, _)| route.as_str()).collect();
    let expected = [
        "GET /computeMetadata/v1/instance/service-accounts/default/email",
        "GET /computeMetadata/v1/instance/service-accounts/default/identity",
        "GET /computeMetadata/v1/instance/service-accounts/default/token",
        "GET /computeMetadata/v1/universe/universe-domain",
        "GET /latest/meta-data/iam/security-credentials",
        "GET /latest/meta-data/iam/security-credentials/*",
        "GET /latest/meta-data/placement/availability-zone",
        "GET /oauth2/v3/certs",
        "POST /token",
        "POST /v1/oauthtoken",
        "POST /v1/projects/-/serviceAccounts/*:generateAccessToken",
        "POST /v1/projects/-/serviceAccounts/*:generateIdToken",
        "POST /v1/token",
        "PUT /latest/api/token",
    ];
    assert!(routes.iter().eq(expected.iter()), "{routes:#?}");
    let asserted: BTreeSet<_> = all().unwrap().iter().flat_map(asked_by).collect();
    let missing: Vec<_> = seen.difference(&asserted).collect();
    assert!(missing.is_empty(), "no assertion asks so: {missing:#?}");
    for part in [
        "header x-goog-user-project",
        "header x-goog-request-reason",
        "field delegates",
        "field options",
    ] {
        assert!(seen.iter().any(|(_, known)| known == part), "{part} is not sent");
    }
}
