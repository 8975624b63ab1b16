//! What services behind each of Google's front ends answer. Their statuses, headers and bodies are the
//! documented or publicly reported ones; docs/targets.md has the sources.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::response::{self, HttpResponse, Request};
use crate::state::EmulatorState;
use crate::target::{FrontEnd, Target, Trouble};

/// Paths of targets begin with it: `/targets/NAME`.
pub(crate) const PREFIX: &str = "/targets/";

/// Answers a call of `/targets/NAME`.
pub(crate) fn handle(state: &EmulatorState, request: &Request, rest: &str) -> HttpResponse {
    let policy = state.policy();
    let name = rest.split('/').next().unwrap_or_default();
    let Some(target) = policy.targets.iter().find(|target| target.name == name) else {
        return response::text(StatusCode::NOT_FOUND, "the policy has no such target");
    };
    let token = bearer(request, target.front_end);
    let claims = token.as_deref().map(|token| state.verify(token));
    let refused = match target.front_end {
        FrontEnd::CloudRun | FrontEnd::CloudFunctions => cloud_run(target, &claims),
        FrontEnd::Iap | FrontEnd::IapOfGoogle => iap(target, &claims),
        FrontEnd::Gateway => gateway(target, &claims),
        FrontEnd::GoogleApi => Some(response::api_error(
            StatusCode::UNAUTHORIZED,
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication \
             credential.",
            &[response::error_info(
                "ACCESS_TOKEN_TYPE_UNSUPPORTED",
                "googleapis.com",
                json!({}),
            )],
        )),
        FrontEnd::LoadBalancer => Some(page(
            StatusCode::BAD_GATEWAY,
            "Server Error",
            "The server encountered a temporary error and could not complete your request.<p>Please try again in 30 seconds.",
        )),
        FrontEnd::None => None,
    };
    refused.unwrap_or_else(|| {
        let status = StatusCode::from_u16(target.application.status).unwrap_or(StatusCode::OK);
        let body = target
            .application
            .body
            .replace("{token}", token.as_deref().unwrap_or_default());
        response::text(status, body)
    })
}

type Verified = Option<anyhow::Result<Value>>;

/// The token, from the headers that the front end reads, the most particular first.
fn bearer(request: &Request, front_end: FrontEnd) -> Option<String> {
    let names: &[&str] = match front_end {
        FrontEnd::CloudRun | FrontEnd::CloudFunctions => &["x-serverless-authorization", "authorization"],
        FrontEnd::Iap | FrontEnd::IapOfGoogle => &["proxy-authorization", "authorization"],
        _ => &["authorization"],
    };
    let value = names.iter().find_map(|name| request.header(name))?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim().to_owned())
}

fn is_member(target: &Target, claims: &Value) -> bool {
    let email = claims["email"].as_str();
    target.members.iter().any(|member| Some(member.as_str()) == email)
}

fn cloud_run(target: &Target, claims: &Verified) -> Option<HttpResponse> {
    if target.internal {
        return Some(page(
            StatusCode::NOT_FOUND,
            "Page not found",
            "The requested URL was not found on this server.",
        ));
    }
    match target.trouble {
        Some(Trouble::Perimeter) => return Some(perimeter()),
        Some(Trouble::NoInstance) => {
            let refused = response::text(StatusCode::TOO_MANY_REQUESTS, "Rate exceeded.");
            return Some(with(refused, header::SERVER, "Google Frontend"));
        }
        _ => {}
    }
    let forbidden = || {
        page(
            StatusCode::FORBIDDEN,
            "Forbidden",
            "Your client does not have permission to get URL <code>/</code> from this server.",
        )
    };
    match claims {
        None => Some(forbidden()),
        Some(Ok(claims)) if claims["aud"] == target.audience.as_str() => {
            (!is_member(target, claims)).then(forbidden)
        }
        Some(_) => {
            let refused = page(
                StatusCode::UNAUTHORIZED,
                "Unauthorized",
                "Your client does not have permission to the requested URL <code>/</code>.",
            );
            let why =
                "Bearer error=\"invalid_token\" error_description=\"The access token could not be verified\"";
            Some(with(refused, header::WWW_AUTHENTICATE, why))
        }
    }
}

/// The answer of VPC Service Controls.
fn perimeter() -> HttpResponse {
    response::api_error(
        StatusCode::FORBIDDEN,
        "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: emulator",
        &[],
    )
}

fn iap(target: &Target, claims: &Verified) -> Option<HttpResponse> {
    let of_google = target.front_end == FrontEnd::IapOfGoogle;
    let (status, text) = match claims {
        None => (
            StatusCode::FOUND,
            "Invalid IAP credentials: empty token".to_owned(),
        ),
        Some(Err(error)) if error.to_string().contains("not a JWT") => (
            StatusCode::UNAUTHORIZED,
            "Invalid IAP credentials: Unable to parse JWT".to_owned(),
        ),
        Some(Err(_)) => (
            StatusCode::UNAUTHORIZED,
            "Invalid IAP credentials: JWT signature is invalid".to_owned(),
        ),
        Some(Ok(claims)) if claims["aud"] != target.audience.as_str() => (
            StatusCode::UNAUTHORIZED,
            match of_google {
                true => "Invalid IAP credentials: Invalid bearer token. Invalid JWT audience.".to_owned(),
                false => format!(
                    "Invalid IAP credentials: JWT audience doesn't match this application ('aud' claim ({}) doesn't match expected value ({}))",
                    claims["aud"].as_str().unwrap_or_default(),
                    target.audience
                ),
            },
        ),
        Some(Ok(claims)) if !claims["email"].is_string() => (
            StatusCode::UNAUTHORIZED,
            "Invalid IAP credentials: JWT 'email' claim isn't a string".to_owned(),
        ),
        Some(Ok(claims)) if is_member(target, claims) => return None,
        Some(Ok(claims)) => (
            StatusCode::FORBIDDEN,
            format!("{} does not have access to this application", claims["email"]),
        ),
    };
    let mut refused = response::body(status, "text/html; charset=UTF-8", text);
    if status == StatusCode::FOUND {
        let url = "https://accounts.google.com/o/oauth2/v2/auth?redirect_uri=https://iap.googleapis.com/v1/oauth/clientIds/x:handleRedirect";
        refused = with(refused, header::LOCATION, url);
    }
    Some(with(
        refused,
        HeaderName::from_static("x-goog-iap-generated-response"),
        "true",
    ))
}

fn gateway(target: &Target, claims: &Verified) -> Option<HttpResponse> {
    let (code, message) = match claims {
        _ if target.trouble == Some(Trouble::UnknownPath) => {
            (404, "The current request is not defined by this API.")
        }
        None => (401, "Jwt is missing"),
        Some(_) if target.trouble == Some(Trouble::OtherIssuer) => (401, "Jwt issuer is not configured"),
        Some(Err(error)) if error.to_string().contains("expired") => (401, "Jwt is expired"),
        Some(Err(_)) => (401, "Jwt verification fails"),
        Some(Ok(claims)) if claims["aud"] == target.audience.as_str() => match target.trouble {
            Some(Trouble::NoApiKey) => (
                401,
                "UNAUTHENTICATED: Method doesn't allow unregistered callers (callers without established identity). Please use API Key or \
                 other form of API consumer identity to call this API.",
            ),
            _ => return None,
        },
        Some(Ok(_)) => (403, "Audiences in Jwt are not allowed"),
    };
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::UNAUTHORIZED);
    Some(response::json(status, &json!({"code": code, "message": message})))
}

/// The plain page of Google's front ends.
fn page(status: StatusCode, heading: &str, text: &str) -> HttpResponse {
    let title = match heading {
        "Page not found" | "Server Error" => heading.to_owned(),
        _ => status.canonical_reason().unwrap_or_default().to_owned(),
    };
    let html = format!(
        "\n<html><head>\n<meta http-equiv=\"content-type\" content=\"text/html;charset=utf-8\">\n<title>{} {title}</title>\n</head>\n<body \
         text=#000000 bgcolor=#ffffff>\n<h1>Error: {heading}</h1>\n<h2>{text}</h2>\n<h2></h2>\n</body></html>\n",
        status.as_u16()
    );
    with(
        response::body(status, "text/html; charset=UTF-8", html),
        header::SERVER,
        "Google Frontend",
    )
}

fn with(mut response: HttpResponse, name: HeaderName, value: &'static str) -> HttpResponse {
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
    response
}
