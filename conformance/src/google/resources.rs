//! What a run creates in a project, and deletes: service accounts with bindings on each, and a workload identity pool with two providers.
//!
//! All of it has names that begin with a prefix and a random suffix. Nothing is bound on the project, and no key is created.

use std::time::Duration;

use anyhow::{Context, Result};
use idtoken_emulator::{OPEN_ID_TOKEN_CREATOR, TOKEN_CREATOR};
use reqwest::Method;
use serde_json::{Value, json};

use super::api::{Api, Call, Refused};
use crate::world::{ALLOWED_SUBJECTS, ISSUER, SUBJECT};

const PREFIX: &str = "idtoken-conf-";
const SUFFIX_DIGITS: usize = 8;
/// All accounts. With the suffix, an id has 30 characters at most.
const ACCOUNTS: [&str; 6] = ["caller", "target", "delegate", "far", "stranger", "disabled"];
const ACCOUNTS_ROLE: &str = "roles/iam.serviceAccountAdmin";
const POOLS_ROLE: &str = "roles/iam.workloadIdentityPoolAdmin";
/// How long it may take until a new account can have bindings.
const CREATION_LIMIT: Duration = Duration::from_secs(120);
/// How long a deletion is tried. What was created just now may be found later.
const DELETION_LIMIT: Duration = Duration::from_secs(40);

/// Something that was created, or may have been.
pub(crate) struct Made {
    pub(crate) what: String,
    path: String,
    role: &'static str,
}

/// The names of what was created.
pub(crate) struct Created {
    /// Variable, e-mail and unique id.
    pub(crate) accounts: Vec<(&'static str, String, String)>,
    pub(crate) nobody: String,
    /// `projects/NUMBER/locations/global/workloadIdentityPools/ID`.
    pub(crate) pool: String,
}

impl Created {
    fn member(&self, name: &str) -> String {
        let email = self.accounts.iter().find(|(known, ..)| *known == name);
        format!(
            "serviceAccount:{}",
            email.map_or("", |(_, email, _)| email.as_str())
        )
    }
}

/// Creates all of it, for the member who runs the suite. `made` has what there is to delete, also after an error.
pub(crate) async fn create(
    api: &Api<'_>,
    member: &str,
    suffix: &str,
    jwks: &str,
    made: &mut Vec<Made>,
) -> Result<Created> {
    let id = |name: &str| format!("{PREFIX}{suffix}-{name}");
    let all = accounts(api);
    let mut created = Created {
        accounts: Vec::new(),
        nobody: email(api, &id("nobody")),
        pool: String::new(),
    };
    for name in ACCOUNTS {
        let body =
            json!({"accountId": id(name), "serviceAccount": {"displayName": "A run of idtoken-conformance"}});
        let email = email(api, &id(name));
        let account = begin(
            api,
            made,
            &call(Method::POST, &all, Some(body), ACCOUNTS_ROLE),
            &email,
        )
        .await?;
        let unique_id = account["uniqueId"]
            .as_str()
            .context("an account has a unique id")?;
        created.accounts.push((name, email, unique_id.to_owned()));
    }
    created.pool = create_pool(api, &format!("{PREFIX}{suffix}"), jwks, made).await?;
    let subject = format!(
        "principal://iam.googleapis.com/{}/subject/{SUBJECT}",
        created.pool
    );
    let caller = created.member("caller");
    for (name, role, members) in [
        ("caller", TOKEN_CREATOR, vec![member.to_owned()]),
        ("target", OPEN_ID_TOKEN_CREATOR, vec![caller.clone(), subject]),
        ("delegate", TOKEN_CREATOR, vec![caller.clone()]),
        ("far", OPEN_ID_TOKEN_CREATOR, vec![created.member("delegate")]),
        ("disabled", OPEN_ID_TOKEN_CREATOR, vec![caller.clone()]),
    ] {
        let body = json!({"policy": {"bindings": [{"role": role, "members": members}]}});
        change(api, &email(api, &id(name)), "setIamPolicy", body).await?;
    }
    change(api, &email(api, &id("disabled")), "disable", json!({})).await?;
    Ok(created)
}

async fn create_pool(api: &Api<'_>, id: &str, jwks: &str, made: &mut Vec<Made>) -> Result<String> {
    let (all, path) = (pools(api), format!("{}/{id}", pools(api)));
    let post = |path: String, body| call(Method::POST, &path, Some(body), POOLS_ROLE);
    let new = format!("{all}?workloadIdentityPoolId={id}");
    let operation = begin(api, made, &post(new, json!({"displayName": id})), id).await?;
    api.done(operation, POOLS_ROLE).await?;
    // Names of providers and of principals have the project's number.
    let pool = api
        .patient(&call(Method::GET, &path, None, POOLS_ROLE), CREATION_LIMIT)
        .await?;
    let name = pool["name"].as_str().context("a pool has a name")?.to_owned();
    for (provider, jwks) in [("main", Some(jwks)), ("unreachable", None)] {
        let mut body = json!({
            "oidc": {"issuerUri": ISSUER},
            "attributeMapping": {"google.subject": "assertion.sub"},
            "attributeCondition": format!("assertion.sub.startsWith(\"{ALLOWED_SUBJECTS}\")"),
        });
        if let Some(jwks) = jwks {
            body["oidc"]["jwksJson"] = json!(jwks);
        }
        api.check()?;
        // A pool is deleted with its providers.
        let new = format!("{path}/providers?workloadIdentityPoolProviderId={provider}");
        let operation = api.call(&post(new, body)).await?;
        api.done(operation, POOLS_ROLE).await?;
    }
    Ok(name)
}

/// Calls what creates `what`. The call is never given up, since its answer says whether there is something to delete.
async fn begin(api: &Api<'_>, made: &mut Vec<Made>, call: &Call, what: &str) -> Result<Value> {
    api.check()?;
    let all = call.path.split('?').next().unwrap_or_default();
    made.push(Made {
        what: what.to_owned(),
        path: format!("{all}/{what}"),
        role: call.role,
    });
    let answer = api.call(call).await;
    match &answer {
        Ok(_) => api.say(&format!("created {what}")),
        Err(refused) if refused.is_final() => drop(made.pop()),
        Err(_) => {}
    }
    Ok(answer?)
}

/// Changes an account that was created just now.
async fn change(api: &Api<'_>, email: &str, method: &str, body: Value) -> Result<()> {
    let path = format!("{}/{email}:{method}", accounts(api));
    let call = call(Method::POST, &path, Some(body), ACCOUNTS_ROLE);
    api.patient(&call, CREATION_LIMIT).await.map(drop)
}

/// Deletes what was made, the last first. Returns what is left, and why. The first interrupt ends nothing: what is still to be deleted is said.
pub(crate) async fn tear_down(api: &Api<'_>, mut made: Vec<Made>) -> Vec<String> {
    let (mut left, mut hurried) = (Vec::new(), false);
    made.reverse();
    for (place, next) in made.iter().enumerate() {
        let mut deletion = std::pin::pin!(async {
            tokio::select! {
                biased;
                error = api.interrupted() => Err(error),
                result = delete(api, next) => result,
            }
        });
        let deleted = loop {
            tokio::select! {
                biased;
                () = api.hurried(), if !hurried => {
                    hurried = true;
                    let rest: Vec<_> = made[place..].iter().map(|made| made.what.clone()).collect();
                    api.say(&format!(
                        "interrupted; the deletion goes on, and another interrupt ends it. Still {}",
                        super::left(&api.project, &rest)
                    ));
                }
                deleted = &mut deletion => break deleted,
            }
        };
        match deleted {
            Ok(()) => api.say(&format!("deleted {}", next.what)),
            Err(error) => left.push(format!("{}: {error:#}", next.what)),
        }
    }
    left
}

async fn delete(api: &Api<'_>, made: &Made) -> Result<()> {
    let call = call(Method::DELETE, &made.path, None, made.role);
    match api.patient(&call, DELETION_LIMIT).await {
        Ok(operation) => api.done(operation, made.role).await,
        Err(error) => match error.downcast_ref::<Refused>() {
            Some(Refused {
                status: Some(404), ..
            }) => Ok(()),
            _ => Err(error),
        },
    }
}

/// What runs have left in the project.
pub(crate) async fn left_behind(api: &Api<'_>) -> Result<Vec<Made>> {
    let mut found = Vec::new();
    for account in list(api, &accounts(api), "accounts", ACCOUNTS_ROLE).await? {
        let email = account["email"].as_str().unwrap_or_default();
        let (id, _) = email.split_once('@').unwrap_or_default();
        let has_name = suffixed(id).is_some_and(|rest| rest.starts_with('-'));
        // Only what is of this project: a listing has nothing else.
        if has_name && email == self::email(api, id) {
            found.push(Made {
                what: email.to_owned(),
                path: format!("{}/{email}", accounts(api)),
                role: ACCOUNTS_ROLE,
            });
        }
    }
    for pool in list(api, &pools(api), "workloadIdentityPools", POOLS_ROLE).await? {
        let id = pool["name"].as_str().and_then(|name| name.rsplit('/').next());
        let id = id.filter(|id| suffixed(id) == Some("") && pool["state"] != "DELETED");
        found.extend(id.map(|id| Made {
            what: id.to_owned(),
            path: format!("{}/{id}", pools(api)),
            role: POOLS_ROLE,
        }));
    }
    Ok(found)
}

async fn list(api: &Api<'_>, path: &str, field: &str, role: &'static str) -> Result<Vec<Value>> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("pageSize", "100");
        if !token.is_empty() {
            query.append_pair("pageToken", &token);
        }
        let path = format!("{path}?{}", query.finish());
        let page = api.call(&call(Method::GET, &path, None, role)).await?;
        all.extend(page[field].as_array().cloned().unwrap_or_default());
        match page["nextPageToken"].as_str().unwrap_or_default() {
            "" => return Ok(all),
            next => next.clone_into(&mut token),
        }
    }
}

/// The unique id of an account of the project.
pub(crate) async fn unique_id(api: &Api<'_>, email: &str) -> Result<String> {
    let path = format!("{}/{email}", accounts(api));
    let account = api.call(&call(Method::GET, &path, None, ACCOUNTS_ROLE)).await?;
    let id = account["uniqueId"].as_str();
    Ok(id.context("an account has a unique id")?.to_owned())
}

/// What follows the prefix and a suffix.
fn suffixed(id: &str) -> Option<&str> {
    let (suffix, rest) = id.strip_prefix(PREFIX)?.split_at_checked(SUFFIX_DIGITS)?;
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    suffix.bytes().all(is_hex).then_some(rest)
}

fn call(method: Method, path: &str, body: Option<Value>, role: &'static str) -> Call {
    Call {
        service: "iam",
        method,
        path: path.to_owned(),
        body,
        role,
    }
}

fn accounts(api: &Api<'_>) -> String {
    format!("/v1/projects/{}/serviceAccounts", api.project)
}

fn pools(api: &Api<'_>) -> String {
    format!(
        "/v1/projects/{}/locations/global/workloadIdentityPools",
        api.project
    )
}

/// An account's e-mail. The project of a domain, `example.com:p`, has it the other way round.
fn email(api: &Api<'_>, id: &str) -> String {
    let project = match api.project.split_once(':') {
        Some((domain, name)) => format!("{name}.{domain}"),
        None => api.project.clone(),
    };
    format!("{id}@{project}.iam.gserviceaccount.com")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_prefix_with_a_suffix_is_of_a_run() {
        assert_eq!(suffixed("idtoken-conf-0123abcd-caller"), Some("-caller"));
        assert_eq!(suffixed("idtoken-conf-0123abcd"), Some(""));
        for other in [
            "idtoken-conf-emulated-caller",
            "idtoken-conf-0123abc",
            "conf-0123abcd",
            "idtoken-conf-é",
        ] {
            assert_eq!(suffixed(other), None, "{other}");
        }
        let longest = ACCOUNTS.iter().map(|name| name.len()).max();
        assert_eq!(
            longest.map(|name| PREFIX.len() + SUFFIX_DIGITS + 1 + name),
            Some(30)
        );
    }
}
