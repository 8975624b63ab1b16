//! Calls of Google's APIs by whoever runs the suite: their errors, which name the role that is missing, and their waits.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use idtoken_operator::text::{error_chain, redacted};
use reqwest::Method;
use serde_json::Value;

use super::Outside;
use crate::world::http;

/// How many characters of a message of Google's are shown.
const MAX_MESSAGE: usize = 400;
/// How long an operation may take.
const OPERATION_LIMIT: Duration = Duration::from_secs(180);
const INTERRUPTED: &str = "interrupted";

/// A call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) service: &'static str,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Option<Value>,
    /// The role that allows it.
    pub(crate) role: &'static str,
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The HTTP status; none without an answer.
    pub(crate) status: Option<u16>,
    text: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// Whether the call certainly had no effect.
    pub(crate) fn is_final(&self) -> bool {
        self.status.is_some_and(|status| (400..500).contains(&status))
    }

    /// Whether it may pass: what was created is not known everywhere at once, and then it is forbidden, not found or in conflict.
    fn may_pass(&self) -> bool {
        match self.status {
            None | Some(403 | 404 | 409 | 429 | 500..) => true,
            Some(400) => self.text.contains("does not exist"),
            Some(_) => false,
        }
    }
}

/// Google, as whoever runs the suite reaches it from now on until an interrupt: the next one, or the second one while something is deleted.
pub(crate) struct Api<'o> {
    pub(crate) outside: &'o Outside,
    pub(crate) http: reqwest::Client,
    pub(crate) token: String,
    pub(crate) project: String,
    /// So many end nothing.
    interrupts: u32,
}

impl<'o> Api<'o> {
    pub(crate) async fn new(outside: &'o Outside, project: &str) -> Result<Self> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-.:".contains(c);
        ensure!(
            !project.is_empty() && project.chars().all(is_name),
            "the project is no id"
        );
        let interrupts = *outside.interrupts.borrow();
        Ok(Self {
            http: http(outside.endpoints.base.starts_with("https:"))?,
            token: outside.credential.token().await?,
            project: project.to_owned(),
            outside,
            interrupts,
        })
    }

    /// The same with a new token if there is one, to delete by: of the interrupts from now on, the first ends nothing.
    pub(crate) async fn to_delete(&self) -> Self {
        let interrupts = *self.outside.interrupts.borrow() + 1;
        let token = self.outside.credential.token().await;
        Self {
            outside: self.outside,
            http: self.http.clone(),
            token: token.unwrap_or_else(|_| self.token.clone()),
            project: self.project.clone(),
            interrupts,
        }
    }

    pub(crate) fn say(&self, line: &str) {
        (self.outside.say)(line);
    }

    /// Fails after an interrupt.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(*self.outside.interrupts.borrow() <= self.interrupts, INTERRUPTED);
        Ok(())
    }

    /// Returns when there is an interrupt.
    pub(crate) async fn interrupted(&self) -> anyhow::Error {
        self.more_interrupts_than(self.interrupts).await;
        anyhow::anyhow!(INTERRUPTED)
    }

    /// Returns when there is an interrupt after which only one more is wanted for the end.
    pub(crate) async fn hurried(&self) {
        self.more_interrupts_than(self.interrupts.saturating_sub(1)).await;
    }

    async fn more_interrupts_than(&self, count: u32) {
        let mut interrupts = self.outside.interrupts.clone();
        if interrupts.wait_for(|now| *now > count).await.is_err() {
            // Nobody is left who could interrupt.
            std::future::pending::<()>().await;
        }
    }

    /// Says why, and waits.
    pub(crate) async fn pause(&self, why: &str, pause: Duration) -> Result<()> {
        self.say(&format!("{why}; asked again in {} s", pause.as_secs()));
        tokio::select! {
            biased;
            error = self.interrupted() => Err(error),
            () = (self.outside.pause)(pause) => Ok(()),
        }
    }

    /// Calls once.
    pub(crate) async fn call(&self, call: &Call) -> Result<Value, Refused> {
        let url = format!("{}{}", self.outside.endpoints.of(call.service), call.path);
        let mut request = self.http.request(call.method.clone(), url);
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        let request = request.bearer_auth(&self.token);
        let answered = async {
            let response = request.send().await?;
            let status = response.status();
            Ok::<_, reqwest::Error>((status, response.bytes().await?))
        };
        let (status, body) = answered.await.map_err(|error| Refused {
            status: None,
            text: format!(
                "{}: {}",
                what(call),
                self.shown(&error_chain(&error.without_url()))
            ),
        })?;
        let answer = serde_json::from_slice(&body).unwrap_or(Value::Null);
        match status.is_success() {
            true => Ok(answer),
            false => Err(self.refused(call, status.as_u16(), &answer)),
        }
    }

    /// Calls again and again, for as long as what was created may not be known everywhere.
    pub(crate) async fn patient(&self, call: &Call, limit: Duration) -> Result<Value> {
        let mut pauses = pauses(limit);
        loop {
            self.check()?;
            match self.call(call).await {
                Err(refused) if refused.may_pass() => match pauses.next() {
                    Some(pause) => self.pause(&refused.to_string(), pause).await?,
                    None => return Err(refused.into()),
                },
                answer => return Ok(answer?),
            }
        }
    }

    /// Waits for the end of an operation. An answer that is none has ended.
    pub(crate) async fn done(&self, mut operation: Value, role: &'static str) -> Result<()> {
        let mut pauses = pauses(OPERATION_LIMIT);
        loop {
            if let Some(message) = operation["error"]["message"].as_str() {
                bail!("an operation failed: {}", self.shown(message));
            }
            let name = operation["name"].as_str().filter(|_| operation["done"] != true);
            let Some(name) = name.filter(|name| name.contains("/operations/")) else {
                return Ok(());
            };
            let pause = pauses.next().with_context(|| format!("{name} does not end"))?;
            self.pause(&format!("{name} goes on"), pause).await?;
            let call = Call {
                service: "iam",
                method: Method::GET,
                path: format!("/v1/{name}"),
                body: None,
                role,
            };
            operation = self.patient(&call, OPERATION_LIMIT).await?;
        }
    }

    /// Outside text, without secrets.
    pub(crate) fn shown(&self, text: &str) -> String {
        redacted(&text.replace(&self.token, "<token>"), MAX_MESSAGE)
    }

    fn refused(&self, call: &Call, status: u16, answer: &Value) -> Refused {
        let message = answer["error"]["message"].as_str().unwrap_or("no message");
        let mut details = answer["error"]["details"].as_array().into_iter().flatten();
        let project = &self.project;
        let advice = match status {
            403 if details.any(|detail| detail["reason"] == "SERVICE_DISABLED") => format!(
                ". Enable what is needed: gcloud services enable iam.googleapis.com iamcredentials.googleapis.com sts.googleapis.com \
                 --project={project}"
            ),
            403 if !call.role.is_empty() => {
                format!(". It needs {} on the project {project}", call.role)
            }
            401 => ". Is the access token still valid?".to_owned(),
            _ => String::new(),
        };
        Refused {
            status: Some(status),
            text: format!(
                "{} answered {status}: {}{advice}",
                what(call),
                self.shown(message)
            ),
        }
    }
}

fn what(call: &Call) -> String {
    let path = call.path.split('?').next().unwrap_or(&call.path);
    format!("{} {} of {}", call.method, path, call.service)
}

/// 2 s, 4 s, 8 s and so on, 30 s at most, which together take `limit`.
pub(crate) fn pauses(limit: Duration) -> impl Iterator<Item = Duration> {
    let (mut next, mut left) = (2, limit.as_secs());
    std::iter::from_fn(move || {
        let pause = next.min(left);
        next = (2 * next).min(30);
        left -= pause;
        (pause > 0).then(|| Duration::from_secs(pause))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_have_an_end() {
        let seconds = |limit| {
            pauses(Duration::from_secs(limit))
                .map(|pause| pause.as_secs())
                .collect::<Vec<_>>()
        };
        assert_eq!(seconds(0), [0; 0]);
        assert_eq!(seconds(20), [2, 4, 8, 6]);
        assert_eq!(seconds(100), [2, 4, 8, 16, 30, 30, 10]);
    }
}
