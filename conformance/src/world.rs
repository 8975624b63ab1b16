//! Whom assertions are about: the values of their variables, the keys that sign, and where calls go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use idtoken_emulator::{EmulatorHandle, Jwk, Jwks, SigningKey};
use serde_json::{Value, json};
use url::Url;

use crate::assertion::Service;
use crate::aws::AwsIdentity;
use crate::hosts::{SCOPES, TOKEN_ENDPOINT};
use crate::workload::Workload;

/// The subject of the tokens that the bindings are for.
pub(crate) const SUBJECT: &str = "system:serviceaccount:shop:billing";
/// The subjects that the provider's condition allows begin so.
pub(crate) const ALLOWED_SUBJECTS: &str = "system:serviceaccount:";
/// The issuer of subject tokens. Nobody has this name: the provider has the keys.
pub(crate) const ISSUER: &str = "https://kubernetes.idtoken-conformance.invalid";

/// Where the services are: a base URL in which `{service}` stands for the first label of the host.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    /// The base URL of Google's APIs.
    pub(crate) base: String,
    /// The base URL of the metadata server, if there is one.
    pub(crate) metadata: Option<String>,
}

impl Endpoints {
    /// All at one URL, without a trailing slash.
    pub(crate) fn all_at(url: &str) -> Self {
        Self {
            base: url.to_owned(),
            metadata: Some(url.to_owned()),
        }
    }

    /// The base URL of a service.
    pub(crate) fn of(&self, label: &str) -> String {
        self.base.replace("{service}", label)
    }

    /// The URL of a path with its query; none without a metadata server.
    pub(crate) fn url(&self, service: Service, path: &str) -> Result<Option<Url>> {
        let base = match service {
            Service::Metadata => self.metadata.clone(),
            service => Some(self.of(service.label())),
        };
        let url = base.map(|base| Url::parse(&format!("{base}{path}")));
        url.transpose().context("the URL of a call")
    }
}

/// How a service account's JWTs are signed.
pub(crate) enum Signer {
    /// By keys that the emulator makes.
    Emulator(Arc<EmulatorHandle>, Mutex<BTreeMap<String, Arc<SigningKey>>>),
    /// By Google, with `signJwt`: no key leaves it.
    Google,
}

/// The values and keys of one run.
pub(crate) struct World {
    pub(crate) endpoints: Endpoints,
    pub(crate) http: reqwest::Client,
    pub(crate) signer: Signer,
    /// The access token of whoever runs it, who may take tokens of the account `caller`.
    pub(crate) runner: String,
    /// The key of [`ISSUER`].
    pub(crate) issuer: SigningKey,
    forger: SigningKey,
    /// The keys that Google publishes, or the emulator.
    pub(crate) published: Vec<Jwk>,
    /// Who AWS knows, and a workload that has a certificate with a client that shows it: in the emulator only.
    pub(crate) aws: Option<AwsIdentity>,
    pub(crate) workload: Option<(Workload, reqwest::Client)>,
    names: BTreeMap<String, String>,
    secrets: Mutex<BTreeSet<String>>,
    tokens: Mutex<BTreeMap<String, String>>,
}

impl World {
    /// A world without names.
    pub(crate) async fn new(
        endpoints: Endpoints,
        http: reqwest::Client,
        signer: Signer,
        runner: String,
        issuer: SigningKey,
    ) -> Result<Self> {
        let mut world = Self {
            endpoints,
            http,
            signer,
            issuer,
            forger: SigningKey::generate()?,
            published: Vec::new(),
            aws: None,
            workload: None,
            names: BTreeMap::new(),
            secrets: Mutex::default(),
            tokens: Mutex::default(),
            runner,
        };
        world.hide(&world.runner.clone());
        let keys = world.get(Service::Www, "/oauth2/v3/certs").await?;
        world.published = serde_json::from_str::<Jwks>(&keys)
            .context("the published keys")?
            .keys;
        Ok(world)
    }

    /// Sets the value of a variable, which transcripts show by its name.
    pub(crate) fn name(&mut self, name: &str, value: impl Into<String>) {
        self.names.insert(name.to_owned(), value.into());
    }

    /// Sets the names of an account.
    pub(crate) fn name_account(&mut self, name: &str, email: &str, unique_id: &str) {
        self.name(name, email);
        self.name(&format!("{name}.encoded"), email.replace('@', "%40"));
        self.name(&format!("{name}.id"), unique_id);
    }

    /// Sets the value of a variable that must not be shown.
    pub(crate) fn name_secret(&mut self, name: &str, value: &str) {
        self.hide(value);
        self.name(name, value);
    }

    /// The values and their names, the longest first.
    pub(crate) fn shown(&self) -> Vec<(&str, &str)> {
        let hidden = lock(&self.secrets);
        let mut names: Vec<_> = self
            .names
            .iter()
            .filter(|(name, value)| !name.ends_with(".encoded") && !hidden.contains(*value))
            .map(|(name, value)| (value.as_str(), name.as_str()))
            .collect();
        names.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        names
    }

    /// Asks for new tokens from now on.
    pub(crate) fn forget_tokens(&self) {
        lock(&self.tokens).clear();
    }

    /// Keeps a text out of every transcript.
    pub(crate) fn hide(&self, secret: &str) {
        lock(&self.secrets).insert(secret.to_owned());
    }

    /// What must not be shown.
    pub(crate) fn secrets(&self) -> BTreeSet<String> {
        lock(&self.secrets).clone()
    }

    /// The text with the values of its variables.
    pub(crate) async fn resolve(&self, text: &str) -> Result<String> {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            let (name, after) = after
                .split_once('}')
                .with_context(|| format!("{text} has an open variable"))?;
            out.push_str(before);
            out.push_str(&Box::pin(self.variable(name)).await?);
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// JSON with the values of its variables.
    pub(crate) async fn resolve_json(&self, value: &Value) -> Result<Value> {
        Ok(match value {
            Value::String(text) => Value::String(self.resolve(text).await?),
            Value::Array(items) => {
                let mut resolved = Vec::new();
                for item in items {
                    resolved.push(Box::pin(self.resolve_json(item)).await?);
                }
                Value::Array(resolved)
            }
            Value::Object(fields) => {
                let mut resolved = serde_json::Map::new();
                for (name, value) in fields {
                    resolved.insert(name.clone(), Box::pin(self.resolve_json(value)).await?);
                }
                Value::Object(resolved)
            }
            other => other.clone(),
        })
    }

    /// The value of a field of a form: a text, or a JWT of `{signer, claims}`.
    pub(crate) async fn field(&self, value: &Value) -> Result<String> {
        match value {
            Value::Object(jwt) => {
                let signer = jwt.get("signer").and_then(Value::as_str).unwrap_or_default();
                let claims = self
                    .resolve_json(jwt.get("claims").unwrap_or(&Value::Null))
                    .await?;
                let token = match signer {
                    "aws" => self.aws.as_ref().map(|aws| aws.signed(&claims)),
                    "certificate" => self.workload.as_ref().map(|(workload, _)| workload.list(&claims)),
                    signer => return self.sign(signer, &claims).await,
                };
                let token = token.with_context(|| format!("nobody is {signer}"))?;
                self.hide(&token);
                Ok(token)
            }
            Value::String(text) => self.resolve(text).await,
            _ => bail!("a field of a form is a text or a JWT"),
        }
    }

    async fn variable(&self, name: &str) -> Result<String> {
        if let Some(value) = self.names.get(name) {
            return Ok(value.clone());
        }
        let cached = lock(&self.tokens).get(name).cloned();
        if let Some(token) = cached {
            return Ok(token);
        }
        let parts: Vec<_> = name.split(':').collect();
        let token = match parts[..] {
            ["token", account] => self.access_token(account, "cloud-platform").await?,
            ["token", account, scope] => self.access_token(account, scope).await?,
            ["federated"] => self.federated().await?,
            ["jwt", account] => {
                let email = &self.names[account];
                let claims = json!({"sub": email, "aud": null, "scope": format!("{SCOPES}cloud-platform")});
                self.sign(account, &claims).await?
            }
            ["ec2Session"] => self.ec2_session().await?,
            ["subject"] => self.sign("issuer", &Value::Null).await?,
            ["subject", "gke"] => {
                let claims = json!({"iss": self.names["cluster"], "aud": [self.names["workloadPool"]]});
                self.sign("issuer", &claims).await?
            }
            _ => bail!("there is no variable {name}"),
        };
        self.hide(&token);
        lock(&self.tokens).insert(name.to_owned(), token.clone());
        Ok(token)
    }

    /// A JWT of `signer` with its usual claims, changed by `changes`: null removes a claim, and `now + N` is a time.
    async fn sign(&self, signer: &str, changes: &Value) -> Result<String> {
        let mut claims = match signer {
            "issuer" | "forger" => json!({
                "iss": ISSUER, "aud": [format!("https:{}", self.names["provider"])], "sub": SUBJECT,
                "iat": "now + 0", "nbf": "now + 0", "exp": "now + 600",
            }),
            account => json!({
                "iss": self.names.get(account).with_context(|| format!("nobody is {account}"))?,
                "aud": TOKEN_ENDPOINT, "iat": "now + 0", "exp": "now + 3600",
            }),
        };
        for (name, value) in changes.as_object().into_iter().flatten() {
            match value {
                Value::Null => claims.as_object_mut().and_then(|claims| claims.remove(name)),
                value => claims
                    .as_object_mut()
                    .and_then(|claims| claims.insert(name.clone(), value.clone())),
            };
        }
        let now = jiff::Timestamp::now().as_second();
        for (_, value) in claims.as_object_mut().into_iter().flatten() {
            let seconds = value.as_str().and_then(|text| text.strip_prefix("now "));
            let seconds = seconds.and_then(|text| text.replace(' ', "").parse::<i64>().ok());
            if let Some(seconds) = seconds {
                *value = json!(now + seconds);
            }
        }
        let token = match signer {
            "issuer" => self.issuer.sign(&claims)?,
            "forger" => self.forger.sign(&claims)?,
            account => self.sign_as_account(&self.names[account], &claims).await?,
        };
        self.hide(&token);
        Ok(token)
    }

    async fn sign_as_account(&self, email: &str, claims: &Value) -> Result<String> {
        match &self.signer {
            Signer::Emulator(google, keys) => {
                let known = lock(keys).get(email).cloned();
                let key = match known {
                    Some(key) => key,
                    None => {
                        let file = google.service_account_key(email)?;
                        let pem = file["private_key"].as_str().context("a key file has a key")?;
                        self.hide(pem);
                        let key = Arc::new(SigningKey::from_pem(pem)?);
                        lock(keys).insert(email.to_owned(), key.clone());
                        key
                    }
                };
                key.sign(claims)
            }
            Signer::Google => {
                let body = json!({"payload": claims.to_string()});
                self.mint(email, "signJwt", &body, "signedJwt").await
            }
        }
    }

    /// An access token of an account, with one scope.
    async fn access_token(&self, account: &str, scope: &str) -> Result<String> {
        let email = self
            .names
            .get(account)
            .with_context(|| format!("nobody is {account}"))?;
        let body = json!({"scope": [format!("{SCOPES}{scope}")]});
        self.mint(email, "generateAccessToken", &body, "accessToken")
            .await
    }

    /// What whoever runs it gets of an account by a method of the IAM Service Account Credentials API.
    async fn mint(&self, email: &str, method: &str, body: &Value, field: &str) -> Result<String> {
        let path = format!("/v1/projects/-/serviceAccounts/{email}:{method}");
        let url = self.url(Service::Iamcredentials, &path)?;
        let request = self.http.post(url).bearer_auth(&self.runner).json(body);
        let answer: Value = request.send().await?.error_for_status()?.json().await?;
        let token = answer[field].as_str();
        Ok(token
            .with_context(|| format!("{method} answered no {field}"))?
            .to_owned())
    }

    /// A federated access token of [`SUBJECT`].
    async fn federated(&self) -> Result<String> {
        let token = self.sign("issuer", &Value::Null).await?;
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", &self.names["provider"]),
            ("scope", idtoken_operator::google::FEDERATED_SCOPE),
            (
                "requested_token_type",
                "urn:ietf:params:oauth:token-type:access_token",
            ),
            ("subject_token", &token),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ];
        let url = self.url(Service::Sts, "/v1/token")?;
        let response = self.http.post(url).form(&form).send().await?;
        let answer: Value = response.error_for_status()?.json().await?;
        let token = answer["access_token"]
            .as_str()
            .context("the exchange answered no token")?;
        Ok(token.to_owned())
    }

    pub(crate) fn url(&self, service: Service, path: &str) -> Result<Url> {
        self.endpoints
            .url(service, path)?
            .context("there is no metadata server")
    }

    /// The text that a GET answers.
    pub(crate) async fn get(&self, service: Service, path: &str) -> Result<String> {
        let request = self
            .http
            .get(self.url(service, path)?)
            .header("metadata-flavor", "Google");
        Ok(request.send().await?.error_for_status()?.text().await?)
    }
}

/// The HTTP client of a run, through the system's proxy or not. It follows no redirect.
///
/// # Errors
/// When TLS cannot be set up.
pub(crate) fn http(through_proxy: bool) -> Result<reqwest::Client> {
    // One provider for every TLS client. Fails only if one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(std::time::Duration::from_secs(30));
    let builder = if through_proxy {
        builder
    } else {
        builder.no_proxy()
    };
    Ok(builder.build()?)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
