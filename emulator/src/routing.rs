//! Which endpoint a request is for: by its path, and by its host if it came through the proxy.

use crate::call_log::Endpoint;

/// The OAuth 2.0 host that belongs to no universe.
pub(crate) const ACCOUNTS_HOST: &str = "accounts.google.com";

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) endpoint: Endpoint,
    /// The service account that the path names; IAM Credentials only.
    pub(crate) resource: Option<AccountResource>,
}

/// `projects/PROJECT/serviceAccounts/ACCOUNT` of a path, as the caller wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AccountResource {
    pub(crate) project: String,
    pub(crate) account: String,
}

/// Routes a request by its decoded path. Through the proxy each service has its own `host`; at any other host its paths are
/// unknown.
pub(crate) fn route(path: &str, host: Option<&str>) -> Route {
    let (endpoint, resource) = match iam_credentials(path) {
        Some((endpoint, resource)) => (endpoint, Some(resource)),
        None => (endpoint(path), None),
    };
    if host.is_some_and(|host| !is_served_at(host, endpoint, path)) {
        return Route {
            endpoint: Endpoint::Unknown,
            resource: None,
        };
    }
    Route { endpoint, resource }
}

/// Splits `/v1/projects/P/serviceAccounts/X:METHOD` and `…/X/allowedLocations`.
fn iam_credentials(path: &str) -> Option<(Endpoint, AccountResource)> {
    let (project, rest) = path
        .strip_prefix("/v1/projects/")?
        .split_once("/serviceAccounts/")?;
    let (account, endpoint) = if let Some(account) = rest.strip_suffix("/allowedLocations") {
        (account, Endpoint::AllowedLocations)
    } else {
        match rest.rsplit_once(':')? {
            (account, "generateIdToken") => (account, Endpoint::GenerateIdToken),
            (account, "generateAccessToken") => (account, Endpoint::GenerateAccessToken),
            _ => return None,
        }
    };
    let resource = AccountResource {
        project: project.to_owned(),
        account: account.to_owned(),
    };
    Some((endpoint, resource))
}

fn endpoint(path: &str) -> Endpoint {
    match path {
        "/v1/token" => Endpoint::SecurityToken,
        "/v1/identitybindingtoken" => Endpoint::IdentityBindingToken,
        "/token" | "/oauth2/v4/token" | "/o/oauth2/token" => Endpoint::OauthToken,
        "/v1/oauthtoken" => Endpoint::WorkforceToken,
        "/oauth2/v3/certs" | "/oauth2/v1/certs" => Endpoint::Certs,
        path if path.starts_with("/latest/") => Endpoint::Ec2Metadata,
        "/" => Endpoint::Metadata,
        path if path.starts_with("/computeMetadata/v1/instance/service-accounts/") => {
            match path.rsplit('/').next() {
                Some("token") => Endpoint::MetadataToken,
                Some("identity") => Endpoint::MetadataIdentity,
                _ => Endpoint::Metadata,
            }
        }
        path if path == "/computeMetadata" || path.starts_with("/computeMetadata/") => Endpoint::Metadata,
        _ => Endpoint::Unknown,
    }
}

/// Whether `host` is one of Google's in this universe.
pub(crate) fn is_google_host(host: &str, universe: &str) -> bool {
    host == ACCOUNTS_HOST
        || host
            .strip_suffix(universe)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// Whether it is one of the hosts of mutual TLS, `SERVICE.mtls.UNIVERSE`.
pub(crate) fn asks_for_certificates(host: &str) -> bool {
    host.split('.').nth(1) == Some("mtls")
}

/// Whether Google serves the endpoint at this host. A service's regional and mutual-TLS hosts (`sts.europe-west1.rep.…`,
/// `iamcredentials.mtls.…`) serve it too.
fn is_served_at(host: &str, endpoint: Endpoint, path: &str) -> bool {
    let service = host.split('.').next().unwrap_or_default();
    match endpoint {
        Endpoint::GenerateIdToken | Endpoint::GenerateAccessToken | Endpoint::AllowedLocations => {
            service == "iamcredentials"
        }
        Endpoint::SecurityToken | Endpoint::WorkforceToken => service == "sts",
        Endpoint::IdentityBindingToken => service == "securetoken",
        Endpoint::Certs => service == "www",
        Endpoint::OauthToken => match path {
            "/token" => service == "oauth2",
            "/oauth2/v4/token" => service == "www",
            _ => host == ACCOUNTS_HOST,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_the_universe_are_googles() {
        for host in [
            "oauth2.googleapis.com",
            "sts.europe-west1.rep.googleapis.com",
            ACCOUNTS_HOST,
        ] {
            assert!(is_google_host(host, "googleapis.com"), "{host}");
        }
        for host in [
            "googleapis.com",
            ".googleapis.com",
            "evilgoogleapis.com",
            "googleapis.com.evil.example",
        ] {
            assert!(!is_google_host(host, "googleapis.com"), "{host}");
        }
    }

    #[test]
    fn each_endpoint_has_its_host() {
        let at = |host, path| route(path, Some(host)).endpoint;
        assert_eq!(at("sts.googleapis.com", "/v1/token"), Endpoint::SecurityToken);
        assert_eq!(
            at("sts.us.rep.googleapis.com", "/v1/token"),
            Endpoint::SecurityToken
        );
        assert_eq!(at("oauth2.googleapis.com", "/v1/token"), Endpoint::Unknown);
        assert_eq!(at("www.googleapis.com", "/oauth2/v4/token"), Endpoint::OauthToken);
        assert_eq!(at("www.googleapis.com", "/token"), Endpoint::Unknown);
        assert_eq!(at(ACCOUNTS_HOST, "/o/oauth2/token"), Endpoint::OauthToken);
        assert_eq!(
            at("www.googleapis.com", "/computeMetadata/v1/"),
            Endpoint::Unknown
        );
    }

    #[test]
    fn an_account_is_named_at_its_own_host_only() {
        let path = "/v1/projects/-/serviceAccounts/a@b:generateIdToken";
        let resource = AccountResource {
            project: "-".into(),
            account: "a@b".into(),
        };
        for host in [None, Some("iamcredentials.googleapis.com")] {
            assert_eq!(route(path, host).resource.as_ref(), Some(&resource), "{host:?}");
        }
        let elsewhere = route(path, Some("sts.googleapis.com"));
        assert_eq!(
            (elsewhere.endpoint, elsewhere.resource),
            (Endpoint::Unknown, None)
        );
    }
}
