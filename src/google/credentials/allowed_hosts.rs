//! Where a credential file may send secrets: to hosts of the universe, to loopback, or where the operator's flags allow it.

use url::{Host, Url};

use super::file_error::CredentialFileError;
use crate::google::vocabulary::{DEFAULT_UNIVERSE, GoogleConfig, is_link_local, is_loopback};
use crate::text;

/// Parses a URL of the file and checks its host; none if the field is absent or empty.
pub(crate) fn checked_url(
    field: &'static str,
    value: Option<&str>,
    config: &GoogleConfig,
) -> Result<Option<Url>, CredentialFileError> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let url = Url::parse(value).map_err(|_| CredentialFileError::NotUrl { field })?;
    if is_loopback(&url) && matches!(url.scheme(), "http" | "https") {
        return Ok(Some(url));
    }
    let host = url
        .host_str()
        .ok_or(CredentialFileError::NotUrl { field })?
        .to_ascii_lowercase();
    let shown_host = || text::redacted(&host, 253);
    let allowed_by_flag = config
        .allowed_credential_hosts
        .iter()
        .any(|allowed| matches_host(allowed, &host));
    let in_universe = matches!(url.host(), Some(Host::Domain(_)))
        && (is_in_domain(&host, &config.universe_domain)
            || is_in_domain(&host, DEFAULT_UNIVERSE)
            // The token_uri of service account keys made before 2018.
            || host == "accounts.google.com");
    if !in_universe && !allowed_by_flag {
        return Err(CredentialFileError::ForeignHost {
            field,
            host: shown_host(),
            universe: config.universe_domain.clone(),
        });
    }
    // Metadata servers of other clouds speak plain http, and no other machine can reach them.
    let plain_is_local = url.scheme() == "http" && is_link_local(&url);
    if url.scheme() != "https" && !plain_is_local {
        return Err(CredentialFileError::NotHttps {
            field,
            host: shown_host(),
        });
    }
    Ok(Some(url))
}

fn is_in_domain(host: &str, domain: &str) -> bool {
    host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// `example.com` is that host; `.example.com` is everything below it.
fn matches_host(allowed: &str, host: &str) -> bool {
    let allowed = allowed.trim().to_ascii_lowercase();
    match allowed.strip_prefix('.') {
        Some(domain) => host.len() > allowed.len() && is_in_domain(host, domain),
        None => host == allowed || host.trim_matches(['[', ']']) == allowed,
    }
}
