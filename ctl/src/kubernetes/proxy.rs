//! The proxy to the API server, and its credentials.

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use idtoken_operator::kubernetes::proxy_url;
use thiserror::Error;

/// A proxy that cannot be used. Without its URL, which can contain a password.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the proxy of {0} cannot be used: its URL must begin with http://, https:// or socks5:// and have a host"
)]
pub(crate) struct InvalidProxy(&'static str);

/// The proxy to `server`, as [`proxy_url`] decides.
///
/// # Errors
/// Its URL cannot be used.
pub(crate) fn proxy(
    server: &Uri,
    configured: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Intercept>, InvalidProxy> {
    let Some((source, url)) = proxy_url(server, configured, variable) else {
        return Ok(None);
    };
    let found = Matcher::builder().all(url).build().intercept(server);
    let usable = |proxy: &Intercept| {
        let scheme = proxy.uri().scheme_str();
        matches!(scheme, Some("http" | "https" | "socks5" | "socks5h"))
    };
    found.filter(usable).map(Some).ok_or(InvalidProxy(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_cannot_be_used_is_an_error_without_its_password() {
        let server = "https://api.example".parse().unwrap();
        for url in [
            "ftp://u:secret@p.example",
            "socks4://u:secret@p.example",
            "http://",
            "a b",
        ] {
            let error = proxy(&server, Some(url), |_| None).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let variable = |name: &str| (name == "HTTPS_PROXY").then(|| "://u:secret@".to_owned());
        assert_eq!(
            proxy(&server, None, variable).unwrap_err(),
            InvalidProxy("HTTPS_PROXY")
        );
    }
}
