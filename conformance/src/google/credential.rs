//! The credentials of whoever runs the suite.

use anyhow::{Context, Result, ensure};
use idtoken_operator::text::redacted;
use reqwest::Method;

use super::api::{Api, Call};

const VARIABLE: &str = "GOOGLE_OAUTH_ACCESS_TOKEN";
const GCLOUD: [&str; 3] = ["gcloud", "auth", "print-access-token"];

/// Where an access token of scope `cloud-platform` comes from.
pub enum Credential {
    /// This token.
    Token(String),
    /// What a program prints, with its arguments.
    Program(Vec<String>),
}

impl Credential {
    /// The token of `GOOGLE_OAUTH_ACCESS_TOKEN`, or else what `gcloud auth print-access-token` prints.
    #[must_use]
    pub fn find() -> Self {
        match std::env::var(VARIABLE) {
            Ok(token) if !token.trim().is_empty() => Self::Token(token.trim().to_owned()),
            _ => Self::Program(GCLOUD.map(str::to_owned).to_vec()),
        }
    }

    pub(crate) async fn token(&self) -> Result<String> {
        let words = match self {
            Self::Token(token) => return Ok(token.clone()),
            Self::Program(words) => words,
        };
        let shown = words.join(" ");
        let advice = || format!("{shown} gives no access token: log in with gcloud, or set {VARIABLE}");
        let (program, arguments) = words.split_first().context("no program")?;
        let output = tokio::process::Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .with_context(advice)?;
        let token = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let failed = redacted(String::from_utf8_lossy(&output.stderr).trim(), 400);
        ensure!(
            output.status.success() && !token.is_empty(),
            "{}: {failed}",
            advice()
        );
        Ok(token)
    }
}

/// The IAM member whose token it is, as Google knows it.
pub(crate) async fn member(api: &Api<'_>) -> Result<String> {
    let advice = "Google does not say whose access token it is: name it by --member, such as user:E-MAIL or serviceAccount:E-MAIL";
    // With the token in a header. `tokeninfo`, which says the same, has it in the URL.
    let call = Call {
        service: "www",
        method: Method::GET,
        path: "/oauth2/v2/userinfo".to_owned(),
        body: None,
        role: "",
    };
    let answer = api.call(&call).await.context(advice)?;
    let email = answer["email"].as_str().context(advice)?;
    let kind = match email.ends_with(".gserviceaccount.com") {
        true => "serviceAccount",
        false => "user",
    };
    Ok(format!("{kind}:{email}"))
}
