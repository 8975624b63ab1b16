//! Where a credential file may send secrets: to hosts of the universe, to loopback, or where the operator's flags allow it.

use url::{Host, Url};

use super::file_error::CredentialFileError;
use crate::google::vocabulary::{DEFAULT_UNIVERSE, GoogleConfig, is_link_local, is_loopback};
use crate::text;

/// The addresses of EC2's metadata server:
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>.
const EC2_METADATA_SERVERS: [&str; 2] = ["169.254.169.254", "[fd00:ec2::254]"];

/// Where AWS has its endpoints: of all regions, of China, and those that have IPv6.
const AWS_DOMAINS: [&str; 3] = ["amazonaws.com", "amazonaws.com.cn", "api.aws"];

/// Whether it is an endpoint of AWS' Security Token Service.
pub(crate) fn is_aws_host(host: &str) -> bool {
    (host.starts_with("sts.") || host.starts_with("sts-fips."))
        && AWS_DOMAINS.iter().any(|domain| is_in_domain(host, domain))
}

/// Parses a URL of EC2's metadata server, which is link-local, and returns `None` if the field is absent or empty. Loopback is allowed as
/// everywhere.
pub(crate) fn checked_ec2_url(
    field: &'static str,
    value: Option<&str>,
    config: &GoogleConfig,
) -> Result<Option<Url>, CredentialFileError> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let url = Url::parse(value).map_err(|_| CredentialFileError::NotUrl { field })?;
    let host = url.host_str().ok_or(CredentialFileError::NotUrl { field })?;
    let is_allowed = config
        .allowed_credential_hosts
        .iter()
        .any(|allowed| matches_host(allowed, host));
    if EC2_METADATA_SERVERS.contains(&host) && url.scheme() == "http" {
        return Ok(Some(url));
    }
    if !is_allowed && !is_loopback(&url) {
        let host = text::redacted(host, 253);
        return Err(CredentialFileError::NotEc2 { field, host });
    }
    checked_url(field, Some(value), config)
}

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
