//! The refresh grant of gcloud's user credentials, at the OAuth 2.0 token endpoint
//! (<https://developers.google.com/identity/protocols/oauth2/native-app#offline>), or, for a user of a workforce pool, at the Security
//! Token Service (<https://cloud.google.com/iam/docs/workforce-obtaining-short-lived-credentials>).

use std::sync::Mutex;
use std::time::Duration;

use reqwest::RequestBuilder;
use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use crate::google::transport::endpoint_client::EndpointClient;
use crate::google::transport::error_body::OauthError;
use crate::google::transport::response::Response;
use crate::google::vocabulary::{AccessToken, CallPriority, Endpoint, Error, ErrorClass, Reason};
use crate::sync::lock;
use crate::text;
use crate::token::IdToken;

/// The longest text of the endpoint's that is shown, in characters.
const MAX_SHOWN_CHARS: usize = 300;

/// A user's credentials as gcloud writes them. No `Debug`, because they are secret.
pub(crate) struct UserCredentials {
    pub(crate) client_id: String,
    pub(crate) client_secret: Zeroizing<String>,
    /// Replaced by the one that a refresh returns, if it returns one.
    pub(crate) refresh_token: Mutex<Zeroizing<String>>,
    pub(crate) token_uri: Url,
    pub(crate) client_authentication: ClientAuthentication,
}

/// How an OAuth client shows its secret (RFC 6749, 2.3.1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientAuthentication {
    /// In the form: Google's OAuth 2.0 endpoint.
    Form,
    /// In a header: the Security Token Service.
    Header,
}

/// The tokens that a refresh returns.
pub(crate) struct Refreshed {
    pub(crate) access_token: AccessToken,
    id_token: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    expires_in: u64,
    id_token: Option<String>,
    refresh_token: Option<Zeroizing<String>>,
}

/// Gets new tokens, with the scopes that the user once granted. To name some here would lose the others, `openid` among them.
pub(crate) async fn refresh(
    client: &EndpointClient,
    priority: CallPriority<'_>,
    user: &UserCredentials,
) -> Result<Refreshed, Error> {
    let refresh_token = lock(&user.refresh_token).clone();
    let mut form = vec![
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh_token.as_str()),
    ];
    let request = client.http_for(&user.token_uri).post(user.token_uri.clone());
    let request = match user.client_authentication {
        ClientAuthentication::Form => {
            form.extend([
                ("client_id", user.client_id.as_str()),
                ("client_secret", &user.client_secret),
            ]);
            request
        }
        // As Google's libraries do, without the form encoding of RFC 6749. reqwest marks the header as sensitive.
        ClientAuthentication::Header => {
            request.basic_auth(&user.client_id, Some(user.client_secret.as_str()))
        }
    };
    let response = call(client, priority, request.form(&form)).await?;
    let TokenResponse {
        access_token,
        expires_in,
        id_token,
        refresh_token,
    } = parse(&response)?;
    if let Some(next) = refresh_token.filter(|next| !next.is_empty()) {
        *lock(&user.refresh_token) = next;
    }
    Ok(Refreshed {
        access_token: AccessToken::new(
            access_token,
            Duration::from_secs(expires_in),
            client.clock().boot(),
        ),
        id_token: id_token.map(Zeroizing::new),
    })
}

impl Refreshed {
    /// The ID token, whose audience is the OAuth client.
    pub(crate) fn id_token(self) -> Result<IdToken, Error> {
        let Some(token) = self.id_token else {
            let message =
                "the user's credentials give no ID token: they were created without the scope openid";
            let error = Error::new(Endpoint::Credentials, Reason::UnexpectedResponse, message);
            return Err(error.with_class(ErrorClass::Rejected).with_remediation(
                "Recreate them: gcloud auth application-default login, without --scopes or with openid among them.",
            ));
        };
        IdToken::parse(token).map_err(|error| Error::from_token(Endpoint::Credentials, &error))
    }
}

/// Calls an endpoint whose errors are those of RFC 6749.
pub(crate) async fn call(
    client: &EndpointClient,
    priority: CallPriority<'_>,
    request: RequestBuilder,
) -> Result<Response, Error> {
    client
        .call_with(
            priority,
            || Ok(request),
            |endpoint, response| rejection(endpoint, &response),
        )
        .await
}

/// Parses a successful response. The parser's message is left out: it could quote a token.
pub(crate) fn parse<'a, T: Deserialize<'a>>(response: &'a Response) -> Result<T, Error> {
    serde_json::from_slice(&response.body).map_err(|_| {
        let message = "a token endpoint answered without a token";
        Error::new(Endpoint::Credentials, Reason::UnexpectedResponse, message)
            .with_status(response.status.as_u16())
    })
}

fn rejection(endpoint: Endpoint, response: &Response) -> Error {
    let message = OauthError::parse(&response.body)
        .map(|error| error.to_string())
        .unwrap_or_else(|| "no error message of Google's".to_owned());
    response.error_from_text(endpoint, &text::redacted(&message, MAX_SHOWN_CHARS))
}
