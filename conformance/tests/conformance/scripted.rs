//! A small Google: the IAM API by a script, and everything else by an emulator with the accounts and providers that were created.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use idtoken_conformance::google::{Credential, Outside};
use idtoken_emulator::{
    EmulatorHandle, IssuerKeys, OauthClient, Options, Policy, RefreshToken, Secret, ServiceAccount,
    SigningKey, WorkloadIdentityProvider,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::discovery::{Asked, Discovery};
use crate::front::{forward, http};

pub(crate) const PROJECT: &str = "my-project";
const NUMBER: u64 = 424_242;
const USER: &str = "developer@example.com";
/// What others have in the project.
pub(crate) const OTHERS: [&str; 4] = [
    "attached@my-project.iam.gserviceaccount.com",
    "idtoken-conf-emulated-caller@my-project.iam.gserviceaccount.com",
    "idtoken-conf-mine@my-project.iam.gserviceaccount.com",
    "idtoken-conf-pool",
];

/// The script. Dropping it stops it.
pub(crate) struct Google {
    shared: Arc<Shared>,
    url: String,
    server: tokio::task::JoinHandle<()>,
    interrupts: watch::Receiver<u32>,
    said: Arc<Mutex<Vec<String>>>,
}

/// What it does, and what was done.
#[derive(Default)]
pub(crate) struct Script {
    /// Accounts by e-mail.
    accounts: BTreeMap<String, ServiceAccount>,
    /// The providers of pools, by the pool's id.
    pools: BTreeMap<String, BTreeMap<String, Value>>,
    /// The calls before the first deletion.
    pub(crate) calls: Vec<String>,
    /// The names of what was created, and of what was to be deleted.
    pub(crate) created: Vec<String>,
    pub(crate) deleted: Vec<String>,
    /// The call, by its place, that is refused from then on.
    pub(crate) refuse: Option<usize>,
    refused: Option<String>,
    /// The calls at which somebody interrupts.
    pub(crate) interrupt: BTreeSet<usize>,
    /// Deletions of names that contain this are refused.
    pub(crate) keep: Option<&'static str>,
    /// Somebody interrupts at each deletion.
    pub(crate) hurry: bool,
    /// The process that gets real signals, and which.
    pub(crate) process: Option<u32>,
    pub(crate) signals: Signals,
    /// How many signals it got.
    pub(crate) sent: usize,
    /// So many calls for tokens are answered as if no binding were known.
    pub(crate) early: usize,
    /// Details of denials are left out, and answers have more headers.
    pub(crate) brief: bool,
    pub(crate) methods: BTreeSet<String>,
    pub(crate) wrong: Vec<String>,
}

/// The signals to a process; the first is for the calls in `interrupt`.
#[derive(Clone, Copy, Default)]
pub(crate) enum Signals {
    #[default]
    None,
    One(&'static str),
    /// And one at the first deletion, which is not answered before the process says that it goes on.
    OneMore(&'static str),
    /// And one at the second deletion, which is never answered.
    Hang(&'static str),
}

/// What a call must wait for before it is answered.
enum Hold {
    Nothing,
    /// The process has shown a line with this.
    Line(&'static str),
    Forever,
}

struct Shared {
    script: Mutex<Script>,
    emulator: Option<EmulatorHandle>,
    discovery: Option<Discovery>,
    http: reqwest::Client,
    runner: String,
    interrupt: watch::Sender<u32>,
    /// What the process has shown.
    shown: watch::Sender<String>,
    keys: Mutex<BTreeMap<String, Arc<SigningKey>>>,
}

impl Google {
    /// Only what creates and deletes.
    pub(crate) async fn without_tokens() -> Self {
        Self::serve(None, None, format!("ya29.{}", "runner".repeat(8))).await
    }

    /// All of it. Calls are checked by the discovery documents.
    pub(crate) async fn start() -> Self {
        let emulator = EmulatorHandle::start(policy(&initial()), Options::default())
            .await
            .unwrap();
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", "c"),
            ("client_secret", "s"),
            ("refresh_token", "1//runner"),
        ];
        let request = http().post(format!("{}/token", emulator.url())).form(&form);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        let runner = answer["access_token"].as_str().unwrap().to_owned();
        let discovery = tokio::task::spawn_blocking(Discovery::load).await.unwrap();
        Self::serve(Some(emulator), Some(discovery), runner).await
    }

    async fn serve(emulator: Option<EmulatorHandle>, discovery: Option<Discovery>, runner: String) -> Self {
        let (interrupt, interrupts) = watch::channel(0);
        let shared = Arc::new(Shared {
            script: Mutex::new(initial()),
            emulator,
            discovery,
            http: http(),
            runner,
            interrupt,
            shown: watch::Sender::default(),
            keys: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(handle).with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            shared,
            url,
            server,
            interrupts,
            said: Arc::default(),
        }
    }

    /// This Google, with a metadata server if there is an emulator. It waits for nothing.
    pub(crate) fn outside(&self) -> Outside {
        let mut outside = Outside::new(self.interrupts.clone());
        let metadata = self.shared.emulator.as_ref().map(EmulatorHandle::url);
        outside.go_to(&self.base(), metadata);
        outside.credential = Credential::Program(vec!["echo".to_owned(), self.shared.runner.clone()]);
        let said = self.said.clone();
        outside.say = Box::new(move |line| said.lock().unwrap().push(line.to_owned()));
        outside.pause = Box::new(|_| Box::pin(std::future::ready(())));
        outside
    }

    /// The URL of each service.
    pub(crate) fn base(&self) -> String {
        format!("{}/{{service}}", self.url)
    }

    /// The process has shown a line.
    pub(crate) fn shown(&self, line: &str) {
        self.shared.shown.send_modify(|shown| {
            if !shown.is_empty() {
                shown.push('\n');
            }
            shown.push_str(line);
        });
    }

    pub(crate) fn all_shown(&self) -> String {
        self.shared.shown.borrow().clone()
    }

    pub(crate) fn forget_shown(&self) {
        self.shared.shown.send_replace(String::new());
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.shared.script.lock().unwrap()
    }

    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    pub(crate) fn runner(&self) -> &str {
        &self.shared.runner
    }
}

impl Drop for Google {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Script {
    /// The names of what is there.
    pub(crate) fn names(&self) -> Vec<String> {
        self.accounts.keys().chain(self.pools.keys()).cloned().collect()
    }

    /// The call that was refused.
    pub(crate) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// The answer of the IAM API.
    fn iam(
        &mut self,
        method: &str,
        path: &str,
        query: &BTreeMap<String, String>,
        body: &Value,
    ) -> (u16, Value) {
        let rest = path.strip_prefix("/v1/projects/").unwrap_or_default();
        let (project, rest) = rest.split_once('/').unwrap_or_default();
        if rest.contains("/operations/") {
            return (200, json!({"name": &path["/v1/".len()..], "done": true}));
        }
        assert_eq!(project, PROJECT, "{path}");
        let names: Vec<_> = rest.split(['/', ':']).collect();
        let operation = |of: &str, done| {
            let name = pool(of)["name"].as_str().unwrap().to_owned() + "/operations/o";
            (200, json!({"name": name, "done": done}))
        };
        match (method, &names[..]) {
            ("POST", ["serviceAccounts"]) => {
                let id = body["accountId"].as_str().unwrap();
                let email = format!("{id}@{PROJECT}.iam.gserviceaccount.com");
                self.accounts
                    .insert(email.clone(), ServiceAccount::new(email.clone()));
                self.created.push(email.clone());
                self.account(&email)
            }
            // One on each page.
            ("GET", ["serviceAccounts"]) => {
                let place: usize = query.get("pageToken").map_or(0, |token| token.parse().unwrap());
                let email = self.accounts.keys().nth(place).unwrap().clone();
                let mut page = json!({"accounts": [self.account(&email).1]});
                if place + 1 < self.accounts.len() {
                    page["nextPageToken"] = json!((place + 1).to_string());
                }
                (200, page)
            }
            ("GET", ["serviceAccounts", email]) => self.account(email),
            ("DELETE", ["serviceAccounts", email]) => match self.accounts.remove(*email) {
                Some(_) => (200, json!({})),
                None => (404, Value::Null),
            },
            ("POST", ["serviceAccounts", email, "disable"]) => {
                self.accounts.get_mut(*email).unwrap().disabled = true;
                (200, json!({}))
            }
            ("POST", ["serviceAccounts", email, "setIamPolicy"]) => {
                let account = self.accounts.get_mut(*email).unwrap();
                account.bindings = serde_json::from_value(body["policy"]["bindings"].clone()).unwrap();
                (200, body["policy"].clone())
            }
            ("POST", ["locations", "global", "workloadIdentityPools"]) => {
                let id = query["workloadIdentityPoolId"].clone();
                self.pools.insert(id.clone(), BTreeMap::new());
                self.created.push(id.clone());
                operation(&id, false)
            }
            ("GET", ["locations", "global", "workloadIdentityPools"]) => {
                let pools: Vec<_> = self.pools.keys().map(|id| pool(id)).collect();
                (200, json!({"workloadIdentityPools": pools}))
            }
            ("GET", ["locations", "global", "workloadIdentityPools", id]) => (200, pool(id)),
            ("DELETE", ["locations", "global", "workloadIdentityPools", id]) => {
                match self.pools.remove(*id) {
                    Some(_) => operation(id, false),
                    None => (404, Value::Null),
                }
            }
            ("POST", ["locations", "global", "workloadIdentityPools", id, "providers"]) => {
                let provider = query["workloadIdentityPoolProviderId"].clone();
                self.pools
                    .get_mut(*id)
                    .unwrap()
                    .insert(provider.clone(), body.clone());
                operation(&format!("{id}/providers/{provider}"), true)
            }
            _ => panic!("{method} {path}"),
        }
    }

    fn account(&self, email: &str) -> (u16, Value) {
        let account = &self.accounts[email];
        let name = format!("projects/{PROJECT}/serviceAccounts/{email}");
        (
            200,
            json!({"name": name, "email": email, "uniqueId": account.unique_id()}),
        )
    }

    /// Sends the signal that this call is for, if any.
    fn signal(&mut self, is_deletion: bool) -> Hold {
        let place = match is_deletion {
            true => self.deleted.len(),
            false if self.interrupt.contains(&self.calls.len()) && self.deleted.is_empty() => 0,
            false => return Hold::Nothing,
        };
        let (signal, hold) = match (self.signals, place) {
            (Signals::One(signal) | Signals::OneMore(signal) | Signals::Hang(signal), 0) => {
                (signal, Hold::Nothing)
            }
            (Signals::OneMore(signal) | Signals::Hang(signal), 1) => {
                (signal, Hold::Line("interrupted; the deletion goes on"))
            }
            (Signals::Hang(signal), 2) => (signal, Hold::Forever),
            _ => return Hold::Nothing,
        };
        let process = self.process.unwrap().to_string();
        let killed = std::process::Command::new("kill")
            .args(["-s", signal, &process])
            .status();
        assert!(killed.unwrap().success());
        self.sent += 1;
        hold
    }

    /// The status that the script has for a call, if it is not the usual one.
    fn other(&mut self, key: &str, is_deletion: bool, interrupt: &watch::Sender<u32>) -> Option<u16> {
        if is_deletion {
            self.deleted.push(key.rsplit('/').next().unwrap().to_owned());
            if self.hurry {
                interrupt.send_modify(|count| *count += 1);
            }
            let keep = self.keep.is_some_and(|keep| key.contains(keep));
            return keep.then_some(403);
        }
        if self.deleted.is_empty() {
            self.calls.push(key.to_owned());
            let place = self.calls.len();
            if self.interrupt.contains(&place) {
                interrupt.send_modify(|count| *count += 1);
            }
            if self.refuse == Some(place) {
                self.refused = Some(key.to_owned());
            }
        }
        (self.refused.as_deref() == Some(key)).then_some(403)
    }
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let (service, path) = parts.uri.path()[1..].split_once('/').unwrap();
    let (service, path) = (service.to_owned(), format!("/{path}"));
    let is_script = service == "iam" || path.ends_with(":signJwt") || path == "/oauth2/v2/userinfo";
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let key = format!("{} {path}", parts.method);
    let is_deletion = parts.method == "DELETE";
    let (other, hold) = {
        let mut script = shared.script.lock().unwrap();
        let other = script.other(&key, is_deletion, &shared.interrupt);
        (other, script.signal(is_deletion))
    };
    match hold {
        Hold::Nothing => {}
        Hold::Line(line) => {
            let mut shown = shared.shown.subscribe();
            drop(shown.wait_for(|shown| shown.contains(line)).await.unwrap());
        }
        Hold::Forever => std::future::pending().await,
    }
    let bearer = parts.headers.get(header::AUTHORIZATION);
    let bearer = bearer
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    if let Some(status) = other {
        return refused(status, &bearer);
    }
    if is_script {
        assert_eq!(bearer, format!("Bearer {}", shared.runner));
        return shared.scripted(&service, parts.method.as_str(), &path, &query, &body);
    }
    if service == "iamcredentials" {
        let mut script = shared.script.lock().unwrap();
        if script.early > 0 {
            script.early -= 1;
            return refused(403, &bearer);
        }
    }
    // Without an emulator, nobody gets that far.
    let Some(upstream) = shared.emulator.as_ref().map(EmulatorHandle::url) else {
        return refused(503, &bearer);
    };
    let (status, mut headers, answer) = forward(&shared.http, upstream, parts, &path, &query, body).await;
    if shared.script.lock().unwrap().brief {
        for (name, value) in [("x-frame-options", "SAMEORIGIN"), ("alt-svc", "h3=\":443\"")] {
            headers.insert(name, value.parse().unwrap());
        }
    }
    (status, headers, answer).into_response()
}

impl Shared {
    fn scripted(&self, service: &str, method: &str, path: &str, query: &str, body: &Bytes) -> Response {
        let query: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let body: Option<Value> = (!body.is_empty()).then(|| serde_json::from_slice(body).unwrap());
        let mut script = self.script.lock().unwrap();
        let (status, answer) = match service {
            "iam" => {
                let query = query.iter().cloned().collect();
                script.iam(method, path, &query, body.as_ref().unwrap_or(&Value::Null))
            }
            "iamcredentials" => (200, self.sign_jwt(path, body.as_ref().unwrap())),
            _ => (200, json!({"email": USER, "verified_email": true})),
        };
        if let Some(discovery) = &self.discovery {
            let asked = Asked {
                service: if service == "www" { "userinfo" } else { service },
                method,
                path,
                query,
                body,
            };
            let (known, mut wrong) = discovery.check_request(&asked);
            if let Some(known) = known.filter(|_| status == 200) {
                wrong.extend(discovery.check_answer(&known, status, &answer));
                script.methods.insert(known.id().to_owned());
            }
            script
                .wrong
                .extend(wrong.into_iter().map(|line| format!("{method} {path}: {line}")));
        }
        if let Some(emulator) = &self.emulator {
            emulator.set_policy(policy(&script)).unwrap();
        }
        let answer = Body::from(answer.to_string());
        (StatusCode::from_u16(status).unwrap(), answer).into_response()
    }

    fn sign_jwt(&self, path: &str, body: &Value) -> Value {
        let name = path.rsplit('/').next().unwrap();
        let email = name.strip_suffix(":signJwt").unwrap();
        let mut keys = self.keys.lock().unwrap();
        let key = keys.entry(email.to_owned()).or_insert_with(|| {
            let file = self
                .emulator
                .as_ref()
                .unwrap()
                .service_account_key(email)
                .unwrap();
            Arc::new(SigningKey::from_pem(file["private_key"].as_str().unwrap()).unwrap())
        });
        let claims = serde_json::from_str(body["payload"].as_str().unwrap()).unwrap();
        json!({"keyId": key.kid(), "signedJwt": key.sign(&claims).unwrap()})
    }
}

/// As unkind as it can be: with the credentials of the call.
fn refused(status: u16, bearer: &str) -> Response {
    let message = format!("denied to {bearer}");
    let answer = json!({"error": {"code": status, "message": message, "status": "PERMISSION_DENIED"}});
    (StatusCode::from_u16(status).unwrap(), answer.to_string()).into_response()
}

fn pool(id: &str) -> Value {
    let name = format!("projects/{NUMBER}/locations/global/workloadIdentityPools/{id}");
    json!({"name": name, "state": "ACTIVE"})
}

fn initial() -> Script {
    let accounts = OTHERS.iter().filter(|name| name.contains('@'));
    Script {
        accounts: accounts
            .map(|email| ((*email).to_owned(), ServiceAccount::new(*email)))
            .collect(),
        pools: BTreeMap::from([("idtoken-conf-pool".to_owned(), BTreeMap::new())]),
        ..Script::default()
    }
}

fn policy(script: &Script) -> Policy {
    let mut policy = Policy {
        service_accounts: script.accounts.values().cloned().collect(),
        error_details: !script.brief,
        // Nobody has a role on the project.
        user_projects: Some(Vec::new()),
        oauth_clients: vec![OauthClient {
            client_id: "c".to_owned(),
            client_secret: Secret("s".to_owned()),
            refresh_tokens: vec![RefreshToken {
                token: Secret("1//runner".to_owned()),
                user: USER.to_owned(),
                revoked: false,
            }],
        }],
        ..Policy::default()
    };
    policy.project.id = PROJECT.to_owned();
    policy.project.number = NUMBER;
    policy.metadata_server.service_account = Some(OTHERS[0].to_owned());
    for (pool_id, providers) in &script.pools {
        for (id, body) in providers {
            let pool = pool(pool_id);
            let name = format!(
                "//iam.googleapis.com/{}/providers/{id}",
                pool["name"].as_str().unwrap()
            );
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let jwks = text(&body["oidc"]["jwksJson"]);
            let mut provider =
                WorkloadIdentityProvider::new(name, text(&body["oidc"]["issuerUri"]), jwks.clone());
            if jwks.is_empty() {
                provider.keys = IssuerKeys {
                    jwks_url: Some("http://127.0.0.1:1/".to_owned()),
                    ..IssuerKeys::default()
                };
            }
            provider.attribute_condition = Some(text(&body["attributeCondition"]));
            provider.attribute_mapping = serde_json::from_value(body["attributeMapping"].clone()).unwrap();
            policy.workload_identity_providers.push(provider);
        }
    }
    policy
}
