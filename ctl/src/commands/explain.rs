//! `explain`: shows the state of a request and its Secret, and what to do next.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::request::{target_name, validate};
use idtoken_operator::token::IdToken;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::args::{ClusterArgs, OutputFormat, ReleaseArgs};
use crate::decisions::diagnosis::{self, Difference, TokenState};
use crate::decisions::grant_sets::Origin;
use crate::decisions::{release_grants, remediation};
use crate::kubernetes::client::KubeClient;
use crate::output::age::{age, relative};
use crate::output::table;
use crate::output::{self, printable, redacted};

/// The claims nest too deeply, or have a number out of range.
const UNREADABLE_CLAIMS: &str = "the token's claims cannot be read";

/// Flags of `explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Name of the IdTokenRequest
    name: String,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: OutputFormat,

    #[command(flatten)]
    release: ReleaseArgs,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// All that is known about a request.
struct Explanation {
    object: IdTokenRequest,
    secret: String,
    token_state: TokenState,
    differences: Vec<Difference>,
    steps: Vec<String>,
    /// Where the grant is that allows the request: a ConfigMap, if it is none of the cluster's IdTokenGrants.
    grant_origin: Origin,
    now: Timestamp,
}

/// Reads the request and its Secret, and explains them. Exits with 1 if the request is not Ready.
///
/// # Errors
/// The request cannot be read. If the caller may not read the Secret, the explanation says so.
pub(crate) async fn run(args: ExplainArgs) -> Result<ExitCode> {
    let client = KubeClient::connect(&args.cluster)?;
    let object = client.request(&args.name).await?;
    let validated = validate(&object);
    let secret = target_name(&object);
    let view = client.secret(&secret).await?;
    let now = Timestamp::now();
    let token_state = diagnosis::token_state(&view, diagnosis::token_key(&object));
    let differences = diagnosis::differences(&object, &validated, &view, &token_state);
    let mut steps = remediation::remediations(&object, &token_state, &differences, now);
    let mut grant_origin = Origin::default();
    if release_grants::matter(&object) {
        let namespace = args.release.operator_namespace.as_deref();
        match client.release_grants(namespace).await {
            Ok(found) => {
                grant_origin = release_grants::origin(&object, &found.sets);
                let labels = client.namespace_labels().await.ok();
                steps.extend(release_grants::step(&object, &found.sets, &labels));
            }
            Err(error) => steps.extend(release_grants::unread(&object, &error.to_string())),
        }
    }
    let code = output::exit_code(diagnosis::is_ready(&object, now));
    let explanation = Explanation {
        object,
        secret,
        token_state,
        differences,
        steps,
        grant_origin,
        now,
    };
    match args.output {
        OutputFormat::Text => output::print(explanation.text()?)?,
        OutputFormat::Json => output::json(&explanation.json()?)?,
        OutputFormat::Yaml => output::yaml(&explanation.json()?)?,
    }
    Ok(code)
}

impl Explanation {
    fn text(&self) -> Result<String> {
        let mut text = table::fields(&self.header(), 0);
        text.push('\n');
        text.push_str(&self.conditions());
        text.push_str("\nToken:\n");
        text.push_str(&self.token()?);
        if !matches!(self.token_state, TokenState::Unreadable(_)) || !self.differences.is_empty() {
            text.push_str("\nDifferences from the spec:\n");
            let line = |difference: &Difference| {
                let Difference {
                    field,
                    expected,
                    found,
                } = difference.redacted();
                format!("  {field}: should be {expected}, is {found}\n")
            };
            text.push_str(&bullets(self.differences.iter().map(line)));
        }
        text.push_str("\nNext:\n");
        text.push_str(&bullets(
            self.steps.iter().map(|step| format!("  {}\n", redacted(step))),
        ));
        Ok(text)
    }

    fn header(&self) -> Vec<(&'static str, String)> {
        let (meta, spec) = (&self.object.metadata, &self.object.spec);
        let name = meta.name.as_deref().unwrap_or_default();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let mut pairs = vec![
            ("IdTokenRequest", redacted(&format!("{namespace}/{name}"))),
            ("Audience", printable(&spec.audience)),
            (
                "Service account",
                redacted(spec.service_account.as_deref().unwrap_or("set by the source")),
            ),
            (
                "Secret",
                redacted(&format!(
                    "{}, key {}",
                    self.secret,
                    diagnosis::token_key(&self.object)
                )),
            ),
        ];
        let Some(status) = &self.object.status else {
            return pairs;
        };
        if let Some(source) = &status.source {
            pairs.push(("Source", redacted(source)));
        }
        if let Some(grant) = &status.grant {
            let grant = format!("{}{}", grant.name, self.grant_origin);
            pairs.push(("Allowed by", redacted(&grant)));
        }
        if let Some(time) = &status.renewal_time {
            pairs.push(("Renewal", relative(time.0, self.now)));
        }
        pairs
    }

    fn conditions(&self) -> String {
        let conditions = self
            .object
            .status
            .as_ref()
            .map(|status| status.conditions.as_slice())
            .unwrap_or_default();
        let rows: Vec<[String; 5]> = conditions
            .iter()
            .map(|condition| {
                let age = age(self.now.duration_since(condition.last_transition_time.0));
                [
                    redacted(&condition.type_),
                    redacted(&condition.status),
                    redacted(&condition.reason),
                    age,
                    redacted(&condition.message),
                ]
            })
            .collect();
        if rows.is_empty() {
            return "No conditions yet.\n".to_owned();
        }
        table::render(["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], &rows)
    }

    fn token(&self) -> Result<String> {
        let token = match &self.token_state {
            TokenState::Unreadable(message) => {
                return Ok(format!(
                    "  not shown: you may not read Secret {}: {}\n",
                    redacted(&self.secret),
                    redacted(message)
                ));
            }
            TokenState::NoSecret => {
                return Ok(format!("  none: there is no Secret {}\n", redacted(&self.secret)));
            }
            TokenState::NoKey => {
                let key = diagnosis::token_key(&self.object);
                return Ok(format!(
                    "  none: Secret {} has no key {}\n",
                    redacted(&self.secret),
                    redacted(key)
                ));
            }
            TokenState::NoToken(error) => return Ok(format!("  none: {}\n", redacted(&error.to_string()))),
            TokenState::Token(token) => token,
        };
        let exp = token.claims().exp;
        let left = exp.duration_since(self.now);
        let state = if left.is_positive() {
            format!("valid for another {}", age(left))
        } else {
            format!("expired {} ago", age(left))
        };
        let claims = token.all_claims().context(UNREADABLE_CLAIMS)?;
        let mut text = format!("  {state}\n");
        let pairs: Vec<(String, String)> = claims
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (printable(name), printable(&format_claim(name, value, self.now))))
            .collect();
        let pairs: Vec<(&str, String)> = pairs
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect();
        text.push_str(&table::fields(&pairs, 2));
        Ok(text)
    }

    fn json(&self) -> Result<Value> {
        let meta = &self.object.metadata;
        let mut status = self.object.status.clone().unwrap_or_default();
        for condition in &mut status.conditions {
            condition.message = redacted(&condition.message);
        }
        let differences: Vec<_> = self.differences.iter().map(Difference::redacted).collect();
        let steps: Vec<_> = self.steps.iter().map(|step| redacted(step)).collect();
        let problem = match &self.token_state {
            TokenState::Unreadable(message) => Some(("Unreadable", message.clone())),
            TokenState::NoSecret => Some(("SecretMissing", "there is no such Secret".to_owned())),
            TokenState::NoKey => Some(("KeyMissing", "the Secret has no such key".to_owned())),
            TokenState::NoToken(error) => Some((error.reason(), error.to_string())),
            TokenState::Token(_) => None,
        };
        let token = match (&self.token_state, problem) {
            (TokenState::Token(token), _) => self.token_json(token)?,
            (_, Some((reason, message))) => {
                json!({"problem": {"reason": reason, "message": redacted(&message)}})
            }
            _ => Value::Null,
        };
        Ok(json!({
            "namespace": meta.namespace,
            "name": meta.name,
            "spec": self.object.spec,
            "status": status,
            "secret": {"name": self.secret, "key": diagnosis::token_key(&self.object)},
            "token": token,
            "grantConfigMap": match &self.grant_origin {
                Origin::ConfigMap(map) => json!(map),
                Origin::Named => Value::Null,
            },
            "differences": differences,
            "next": steps,
        }))
    }

    fn token_json(&self, token: &IdToken) -> Result<Value> {
        let left = token.claims().exp.duration_since(self.now);
        Ok(json!({
            "claims": token.all_claims().context(UNREADABLE_CLAIMS)?,
            "expired": !left.is_positive(),
            "secondsLeft": left.as_secs().max(0),
        }))
    }
}

fn bullets(lines: impl Iterator<Item = String>) -> String {
    let text: String = lines.collect();
    if text.is_empty() {
        "  none\n".to_owned()
    } else {
        text
    }
}

/// Formats a claim; times get a date and a distance.
fn format_claim(name: &str, value: &Value, now: Timestamp) -> String {
    let time = value
        .as_i64()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    match (name, time, value) {
        ("iat" | "exp" | "nbf", Some(time), _) => relative(time, now),
        (_, _, Value::String(text)) => text.clone(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
