//! Asks what an assertion asks, and returns the answer in its normal form.

use anyhow::{Context, Result};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::assertion::Assertion;
use crate::hosts::MTLS_STS;
use crate::normal::{self, Raw};
use crate::world::World;

/// The answer to an assertion's request, in its normal form.
///
/// # Errors
/// A variable without a value, or no answer.
pub(crate) async fn ask(world: &World, assertion: &Assertion) -> Result<Value> {
    let first = send(world, assertion).await?;
    let mut answer = normal::answer(world, &first);
    if assertion.request.twice {
        let second = send(world, assertion).await?;
        let again = match first.body == second.body {
            true => "the same",
            false => "another",
        };
        answer["body"]["again"] = json!(again);
    }
    Ok(answer)
}

/// How an answer differs from what the assertion expects.
pub(crate) fn failures(assertion: &Assertion, answer: &Value) -> Vec<String> {
    let differences = normal::differences(&expected(assertion), &compared(assertion, answer)).into_iter();
    differences
        .map(|(path, expected, found)| format!("{path}: expected {expected}, found {found}"))
        .collect()
}

fn expected(assertion: &Assertion) -> Value {
    json!({
        "status": assertion.answer.status,
        "headers": assertion.answer.headers,
        "body": assertion.answer.body,
    })
}

/// What two servers must answer alike: all of it, with all headers, but for what the assertion leaves open, such as the number of a project.
pub(crate) fn common(assertion: &Assertion, answer: &Value) -> Value {
    let mut common = answer.clone();
    leave_open(&expected(assertion), &mut common);
    common
}

fn leave_open(expected: &Value, found: &mut Value) {
    match (expected, found) {
        (Value::String(any), found) if any == normal::ANY => *found = expected.clone(),
        (Value::Object(expected), Value::Object(found)) => {
            for (name, expected) in expected {
                if let Some(found) = found.get_mut(name) {
                    leave_open(expected, found);
                }
            }
        }
        (Value::Array(expected), Value::Array(found)) => {
            let pairs = expected.iter().zip(found);
            pairs.for_each(|(expected, found)| leave_open(expected, found));
        }
        _ => {}
    }
}

/// What an assertion is about: of the headers, only those that it names.
fn compared(assertion: &Assertion, answer: &Value) -> Value {
    let mut compared = answer.clone();
    if let Some(headers) = compared.get_mut("headers").and_then(Value::as_object_mut) {
        headers.retain(|name, _| assertion.answer.headers.contains_key(name));
    }
    compared
}

async fn send(world: &World, assertion: &Assertion) -> Result<Raw> {
    let asked = &assertion.request;
    let (method, path) = assertion.call();
    let path = world.resolve(path).await?;
    let (http, url) = match asked.certificate {
        true => {
            let (_, client) = world.workload.as_ref().context("nobody has a certificate")?;
            (client, url::Url::parse(&format!("{MTLS_STS}{path}"))?)
        }
        false => (&world.http, world.url(assertion.service(), &path)?),
    };
    let mut request = http.request(method.parse()?, url);
    for (name, value) in &asked.headers {
        request = request.header(name, world.resolve(value).await?);
    }
    if let Some(bearer) = &asked.bearer {
        request = request.bearer_auth(world.resolve(bearer).await?);
    }
    if let Some(body) = &asked.json {
        request = request.json(&world.resolve_json(body).await?);
    }
    if let Some(form) = &asked.form {
        let mut encoded = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in form {
            encoded.append_pair(name, &world.field(value).await?);
        }
        request = request
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(encoded.finish());
    }
    if method == "POST" && asked.json.is_none() && asked.form.is_none() {
        request = request.body("");
    }
    let answered = async {
        let response = request.send().await?;
        anyhow::Ok(Raw {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await?.to_vec(),
        })
    };
    answered
        .await
        .with_context(|| format!("{}: no answer", assertion.name))
}
