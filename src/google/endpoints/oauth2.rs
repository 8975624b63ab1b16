//! The OAuth 2.0 token endpoint: the refresh grant of gcloud's user credentials
//! (<https://developers.google.com/identity/protocols/oauth2/native-app#offline>).

use std::time::Duration;

use reqwest::RequestBuilder;
use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use crate::google::transport::endpoint_client::EndpointClient;
use crate::google::transport::error_body::OauthError;
use crate::google::transport::response::Response;
use crate::google::vocabulary::{AccessToken, CallPriority, Endpoint, Error, ErrorClass, Reason};
use crate::text;
use crate::token::IdToken;

/// The longest text of the endpoint's that is shown, in characters.
const MAX_SHOWN_CHARS: usize = 300;

/// A user's credentials as gcloud writes them. No `Debug`, because they are secret.
pub(crate) struct UserCredentials {
    pub(crate) client_id: String,
    pub(crate) client_secret: Zeroizing<String>,
    pub(crate) refresh_token: Zeroizing<String>,
    pub(crate) token_uri: Url,
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
}

/// Gets new tokens, with the scopes that the user once granted. To name some here would lose the others, `openid` among them.
pub(crate) async fn refresh(
    client: &EndpointClient,
    priority: CallPriority<'_>,
    user: &UserCredentials,
) -> Result<Refreshed, Error> {
    let request = client.http_for(&user.token_uri).post(user.token_uri.clone());
    let request = request.form(&[
        ("grant_type", "refresh_token"),
        ("client_id", &user.client_id),
        ("client_secret", &user.client_secret),
        ("refresh_token", &user.refresh_token),
    ]);
    let response = call(client, priority, request).await?;
    let TokenResponse {
        access_token,
        expires_in,
        id_token,
    } = parse(&response)?;
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
        .call_with(priority, request, |endpoint, response| {
            rejection(endpoint, &response)
        })
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
