//! Pure: the URL of a call and the audience of the token → where the token may be sent.

use std::net::IpAddr;

use idtoken_operator::text::printable;
use thiserror::Error;
use url::{Host, Url};

/// Longest URL that is shown, in characters.
const MAX_URL: usize = 512;

/// Why a token is not sent.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum DestinationError {
    /// No URL is given, and the audience is none.
    #[error(
        "the audience {0} is no https URL: name the URL to call, with --any-host if its owner may have the token"
    )]
    AudienceIsNoUrl(String),
    /// It cannot be parsed.
    #[error("{0} is no URL")]
    NoUrl(String),
    /// Neither https nor this machine.
    #[error(
        "{0}: only https:// is called, since whoever is between would read the token; http:// is for loopback addresses"
    )]
    Insecure(String),
    /// A user or password in the URL.
    #[error("the URL has a user or a password: the token is the credential")]
    Credentials,
    /// Another host than the audience's would get the token.
    #[error(
        "{host} is not the host of the audience {audience}: whoever answers there can call the audience with the token. If {host} may \
         have it, such as a custom domain of the same service, add --any-host"
    )]
    OtherHost { host: String, audience: String },
}

/// Where a token for `audience` is sent if the caller asks for `url`: https only, except for this machine, and only to the host and
/// port of the audience unless `any_host`.
///
/// # Errors
/// [`DestinationError`].
pub(crate) fn destination(
    url: Option<&str>,
    audience: &str,
    any_host: bool,
) -> Result<Url, DestinationError> {
    let of_audience = Url::parse(audience).ok().filter(Url::has_host);
    let shown = |text: &str| printable(text, MAX_URL);
    let Some(text) = url else {
        return match of_audience {
            Some(url) => checked(url, audience),
            None => Err(DestinationError::AudienceIsNoUrl(shown(audience))),
        };
    };
    let url = Url::parse(text)
        .ok()
        .filter(Url::has_host)
        .ok_or_else(|| DestinationError::NoUrl(shown(text)))?;
    let url = checked(url, text)?;
    let place = |url: &Url| {
        (
            url.host().map(|host| host.to_owned()),
            url.port_or_known_default(),
        )
    };
    if any_host || of_audience.is_some_and(|own| place(&own) == place(&url)) {
        return Ok(url);
    }
    Err(DestinationError::OtherHost {
        host: shown(&authority(&url)),
        audience: shown(audience),
    })
}

/// Whether the host is this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    }
}

/// Host, and port if it is not the scheme's.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn checked(mut url: Url, text: &str) -> Result<Url, DestinationError> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(DestinationError::Credentials);
    }
    if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
        return Err(DestinationError::Insecure(printable(text, MAX_URL)));
    }
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIENCE: &str = "https://billing-x.run.app";

    #[test]
    fn the_token_goes_to_the_host_of_its_audience() {
        let to = |url| destination(url, AUDIENCE, false).map(|url| url.to_string());
        assert_eq!(to(None).unwrap(), "https://billing-x.run.app/");
        for same in [
            "https://billing-x.run.app/v1?a=b",
            "https://BILLING-X.run.app:443/",
            "https://billing-x.run.app/#fragment",
        ] {
            assert!(to(Some(same)).is_ok(), "{same}");
        }
        for other in [
            "https://evil.example/",
            "https://billing-x.run.app.evil.example/",
            "https://billing-x.run.app:8443/",
            "https://evil.example\\@billing-x.run.app/",
            "https://evil.example/?https://billing-x.run.app/",
            "http://127.0.0.1:8080/",
        ] {
            let error = to(Some(other)).unwrap_err();
            assert!(
                matches!(error, DestinationError::OtherHost { .. }),
                "{other}: {error}"
            );
            assert!(destination(Some(other), AUDIENCE, true).is_ok(), "{other}");
        }
    }

    #[test]
    fn no_flag_sends_the_token_in_the_clear_or_with_another_credential() {
        for (url, expected) in [
            ("http://billing-x.run.app/", "only https://"),
            ("http://10.0.0.1/", "only https://"),
            ("http://localhost.evil.example/", "only https://"),
            ("ftp://billing-x.run.app/", "only https://"),
            ("https://me:secret@billing-x.run.app/", "a user or a password"),
            ("https://evil.example@billing-x.run.app/", "a user or a password"),
            ("billing-x.run.app", "is no URL"),
            ("data:text/plain,x", "is no URL"),
            ("\u{1b}[2J", "is no URL"),
        ] {
            let error = destination(Some(url), AUDIENCE, true).unwrap_err().to_string();
            assert!(error.contains(expected), "{url}: {error}");
            assert!(
                !error.contains("secret") && !error.contains('\u{1b}'),
                "{error:?}"
            );
        }
        for loopback in ["http://127.0.0.1:1/", "http://[::1]:1/", "http://localhost:1/"] {
            assert!(destination(Some(loopback), AUDIENCE, true).is_ok(), "{loopback}");
        }
    }

    #[test]
    fn an_audience_that_is_no_url_needs_one_and_the_flag() {
        let client = "123-abc.apps.googleusercontent.com";
        assert!(matches!(
            destination(None, client, true),
            Err(DestinationError::AudienceIsNoUrl(_))
        ));
        assert!(matches!(
            destination(None, "api://AzureADTokenExchange", true),
            Err(DestinationError::Insecure(_))
        ));
        let url = Some("https://console.example/");
        assert!(destination(url, client, false).is_err());
        assert!(destination(url, client, true).is_ok());
    }
}
