//! Which proxy leads to the API server: decided as client-go does, not as kube does, which compares NO_PROXY with the address of the proxy.

use std::net::IpAddr;

use http::Uri;
use ipnet::IpNet;

/// The URL of the proxy to `server`, and where it is set: the `configured` one, which NO_PROXY does not bypass, or else that of the
/// environment, which `variable` reads.
pub fn proxy_url(
    server: &Uri,
    configured: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<(&'static str, String)> {
    if let Some(url) = configured {
        return Some(("proxy-url", url.to_owned()));
    }
    let [upper, lower] = match server.scheme_str() {
        Some("http") => ["HTTP_PROXY", "http_proxy"],
        _ => ["HTTPS_PROXY", "https_proxy"],
    };
    let first = |names: [&str; 2]| {
        names
            .into_iter()
            .find_map(|name| variable(name).filter(|value| !value.is_empty()))
    };
    let url = first([upper, lower])?;
    let no_proxy = first(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    (!is_direct(server, &no_proxy)).then_some((upper, url))
}

/// Whether a proxy of the environment is not for `server`: it is this machine, or NO_PROXY has it. The rules are those of Go's
/// golang.org/x/net/http/httpproxy.
fn is_direct(server: &Uri, no_proxy: &str) -> bool {
    let host = server.host().unwrap_or_default().to_ascii_lowercase();
    let host = bare(&host);
    let port = server.port_u16().unwrap_or(match server.scheme_str() {
        Some("http") => 80,
        _ => 443,
    });
    let ip = host.parse::<IpAddr>().ok();
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    no_proxy.split(',').any(|entry| {
        let entry = entry.trim().to_ascii_lowercase();
        if let Ok(net) = entry.parse::<IpNet>() {
            return ip.is_some_and(|ip| net.contains(&ip));
        }
        // An address of IPv6 has brackets if a port follows, and only then.
        let (name, its_port) = match entry.rsplit_once(':') {
            Some((name, port)) if name.ends_with(']') => (bare(name), port),
            Some((name, port)) if !name.contains(':') => (name, port),
            _ => (entry.as_str(), ""),
        };
        if name.is_empty() || !its_port.is_empty() && its_port != port.to_string() {
            return false;
        }
        if entry == "*" {
            return true;
        }
        if let Ok(address) = name.parse::<IpAddr>() {
            return ip == Some(address);
        }
        let name = name
            .strip_prefix('*')
            .filter(|rest| rest.starts_with('.'))
            .unwrap_or(name);
        match name.starts_with('.') {
            true => host.ends_with(name),
            false => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
        }
    })
}

/// An address of IPv6 without its brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(server: &str, no_proxy: &str) -> bool {
        is_direct(&server.parse().unwrap(), no_proxy)
    }

    #[test]
    fn no_proxy_is_read_as_go_reads_it() {
        let server = "https://api.shop.example:6443";
        for yes in [
            "*",
            "api.shop.example",
            "API.Shop.Example",
            "shop.example",
            ".shop.example",
            "*.shop.example",
            "example",
            "api.shop.example:6443",
            "other.example, api.shop.example",
            ",,shop.example,",
        ] {
            assert!(direct(server, yes), "{yes}");
        }
        for no in [
            "",
            ",",
            "pi.shop.example",
            "hop.example",
            ".api.shop.example",
            "*.api.shop.example",
            "api.shop.example:443",
            "10.0.0.0/8",
            "not an entry",
            "a.example api.shop.example",
        ] {
            assert!(!direct(server, no), "{no}");
        }
        for yes in ["10.0.0.1", "10.0.0.0/8", "10.0.0.1:443", "10.0.0.1/32"] {
            assert!(direct("https://10.0.0.1", yes), "{yes}");
        }
        for no in ["10.0.0.10", "10.1.0.0/16", "10.0.0.1:80", "*:443"] {
            assert!(!direct("https://10.0.0.1", no), "{no}");
        }
        for yes in ["2001:db8::1", "[2001:db8::1]:443", "2001:db8::/32"] {
            assert!(direct("https://[2001:db8::1]", yes), "{yes}");
        }
        assert!(!direct("https://[2001:db8::1]", "2001:db8::2"));
        for local in [
            "https://localhost:6443",
            "https://127.1.2.3",
            "https://[::1]:6443",
        ] {
            assert!(direct(local, ""), "{local}");
        }
    }

    fn chosen(server: &str, configured: Option<&str>, environment: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| {
            let mut all = environment.iter();
            all.find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        };
        proxy_url(&server.parse().unwrap(), configured, variable).map(|(_, url)| url)
    }

    #[test]
    fn the_kubeconfig_comes_before_the_environment() {
        let server = "https://api.example:6443";
        let url = |text: &str| Some(text.to_owned());
        let environment = [
            ("HTTPS_PROXY", "http://proxy.example:3128"),
            ("HTTP_PROXY", "http://plain.example:1"),
            ("NO_PROXY", "api.example"),
        ];
        assert_eq!(
            chosen(server, None, &environment[..2]),
            url("http://proxy.example:3128")
        );
        assert_eq!(chosen(server, None, &environment), None);
        // NO_PROXY is for proxies of the environment.
        let socks = "socks5://socks.example:1080";
        assert_eq!(
            chosen(server, Some(socks), &environment),
            url("socks5://socks.example:1080")
        );
        // NO_PROXY has the proxy, not the API server.
        let itself = [environment[0], ("NO_PROXY", "proxy.example")];
        assert_eq!(chosen(server, None, &itself), url("http://proxy.example:3128"));
        let lower = [("https_proxy", "proxy.example:3128"), ("HTTPS_PROXY", "")];
        assert_eq!(chosen(server, None, &lower), url("proxy.example:3128"));
        assert_eq!(
            chosen("http://api.example", None, &environment[..2]),
            url("http://plain.example:1")
        );
    }
}
