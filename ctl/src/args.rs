//! Flags that several commands share. Imports nothing of this crate.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use idtoken_operator::api::group;
use idtoken_operator::grants::file;
use idtoken_operator::grants::index::Grant;
use idtoken_operator::request::duration;
use reqwest::Method;
use reqwest::header::{HeaderName, HeaderValue};
use secrecy::SecretString;

/// Cluster, user and namespace, named as kubectl names these flags. An empty value is as none.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Namespace of the request [default: the context's namespace]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,

    /// Path to the kubeconfig [env: KUBECONFIG, which may list several] [default: ~/.kube/config, or the ServiceAccount of
    /// the pod]
    // Not with clap's `env`: the variable can be a list of paths.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig [default: the current context]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// Cluster of the kubeconfig [default: that of the context]
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,

    /// User of the kubeconfig [default: that of the context]
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// Address of the API server
    #[arg(short, long, value_name = "URL")]
    pub(crate) server: Option<String>,

    /// File of the certificates (PEM) that the API server's certificate must lead to
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate_authority: Option<String>,

    /// Name in the API server's certificate [default: the host of its address]
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,

    /// Do not check the API server's certificate. Whoever is between can read your credentials
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub(crate) insecure_skip_tls_verify: bool,

    /// Proxy to the API server: http://, https:// or socks5:// [default: proxy-url of the kubeconfig, or HTTPS_PROXY unless
    /// NO_PROXY has the API server]
    #[arg(long, value_name = "URL")]
    pub(crate) proxy_url: Option<String>,

    /// Bearer token for the API server
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<SecretString>,

    /// File of your client certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) client_certificate: Option<String>,

    /// File of your client certificate's key (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) client_key: Option<String>,

    /// User to impersonate
    #[arg(long = "as", value_name = "USER")]
    pub(crate) impersonate: Option<String>,

    /// Group to impersonate; repeat for each
    #[arg(long = "as-group", value_name = "GROUP")]
    pub(crate) impersonate_groups: Vec<String>,

    /// UID to impersonate
    #[arg(long = "as-uid", value_name = "UID")]
    pub(crate) impersonate_uid: Option<String>,

    /// Extra field of the user to impersonate; repeat for each
    #[arg(long = "as-user-extra", value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub(crate) impersonate_extra: Vec<(String, String)>,

    /// Longest time to wait for a single response of the API server, such as 30s or 2m; 0 means no limit
    #[arg(
        long,
        value_name = "DURATION",
        env = "IDTOKEN_REQUEST_TIMEOUT",
        default_value = "30s"
    )]
    pub(crate) request_timeout: RequestTimeout,
}

/// The file of grants beside the cluster's objects.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Grants")]
pub(crate) struct GrantsFileArgs {
    /// File of the operator's --grants-file, to check as well
    #[arg(long, value_name = "FILE", env = "IDTOKEN_GRANTS_FILE")]
    pub(crate) grants_file: Option<PathBuf>,
}

impl GrantsFileArgs {
    /// The grants of the file; none without a file.
    ///
    /// # Errors
    /// The file cannot be read, or this version cannot use what is in it.
    pub(crate) fn read(&self) -> Result<Vec<Grant>> {
        let Some(path) = &self.grants_file else {
            return Ok(Vec::new());
        };
        file::read_file(path).with_context(|| format!("the grants file {} cannot be used", path.display()))
    }
}

/// The release whose grants of the chart's values are seen too.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Grants")]
pub(crate) struct ReleaseArgs {
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "IDTOKEN_OPERATOR_NAMESPACE",
        help = concat!(
            "Namespace of the operator's release, whose ConfigMap has the chart's value grants [default: ConfigMaps with the label ",
            group!("/config=grants"),
            " in all namespaces]"
        )
    )]
    pub(crate) operator_namespace: Option<String>,
}

/// Files of manifests, as kubectl names the flag.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Manifests")]
pub(crate) struct ManifestArgs {
    /// File or folder of manifests, or - for standard input: checks their requests by their grants, without a cluster; repeat for
    /// each
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub(crate) filenames: Vec<PathBuf>,
}

impl ManifestArgs {
    /// The texts of the files, each with its name. A folder stands for its *.yaml, *.yml and *.json, as with kubectl.
    ///
    /// # Errors
    /// A file cannot be read or is too large, or a folder has none.
    pub(crate) fn read(&self) -> Result<Vec<(String, String)>> {
        let mut texts = Vec::new();
        for path in &self.filenames {
            for file in files(path)? {
                let name = file.display().to_string();
                let text = read_bounded(&file).with_context(|| format!("cannot read {name}"))?;
                texts.push((name, text));
            }
        }
        Ok(texts)
    }
}

/// Most bytes of one file of manifests.
const MAX_MANIFEST: u64 = 16 * 1024 * 1024;

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry
            .with_context(|| format!("cannot read {}", path.display()))?
            .path();
        let extension = file.extension().unwrap_or_default();
        if ["yaml", "yml", "json"].iter().any(|known| extension == *known) && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => bail!("{} has no file *.yaml, *.yml or *.json", path.display()),
        false => Ok(files),
    }
}

fn read_bounded(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = |source: &mut dyn Read, text: &mut String| source.take(MAX_MANIFEST + 1).read_to_string(text);
    match path.as_os_str() == "-" {
        true => read(&mut std::io::stdin().lock(), &mut text)?,
        false => read(&mut std::fs::File::open(path)?, &mut text)?,
    };
    match text.len() as u64 > MAX_MANIFEST {
        true => bail!("it has more than {MAX_MANIFEST} bytes"),
        false => Ok(text),
    }
}

/// The output format of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Text for people
    #[default]
    Text,
    /// One JSON object
    Json,
    /// The same as YAML
    Yaml,
}

/// The value of `--request-timeout`: none where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestTimeout(pub(crate) Option<Duration>);

impl FromStr for RequestTimeout {
    type Err = String;

    /// As kubectl: an integer counts seconds, anything else is a Go duration, and zero means no limit.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_integer = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let timeout = if is_integer {
            go_duration(&format!("{text}s"))?
        } else {
            go_duration(text)?
        };
        Ok(Self((!timeout.is_zero()).then_some(timeout)))
    }
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}

/// Parses a Go duration such as `90s` or `1h30m` that is more than zero.
///
/// # Errors
/// What is wrong with it, for clap's message.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match go_duration(text)? {
        Duration::ZERO => Err("must be more than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// The longest Go duration: an `i64` of nanoseconds. Timers overflow on much longer ones.
const MAX_DURATION: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());

fn go_duration(text: &str) -> Result<Duration, String> {
    let duration = duration::parse(text).map_err(|error| error.to_string())?;
    match duration.unsigned_abs() {
        duration if duration <= MAX_DURATION => Ok(duration),
        _ => Err(duration::DurationError::TooLong.to_string()),
    }
}

/// Headers that decide where a call goes and how its body ends.
const NOT_SET: [&str; 4] = ["host", "content-length", "transfer-encoding", "connection"];

/// Parses an HTTP method other than CONNECT.
///
/// # Errors
/// What is wrong with it, for clap's message.
pub(crate) fn method(text: &str) -> Result<Method, String> {
    let is_upper = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase());
    Method::from_bytes(text.as_bytes())
        .ok()
        .filter(|method| is_upper && *method != Method::CONNECT)
        .ok_or_else(|| "must be a method in capitals, such as POST".to_owned())
}

/// Parses the name of a header that a call may set.
///
/// # Errors
/// As [`method`].
pub(crate) fn header_name(text: &str) -> Result<String, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| "is no name of a header".to_owned())?;
    match NOT_SET.contains(&name.as_str()) {
        true => Err(format!("{name} cannot be set")),
        false => Ok(text.to_owned()),
    }
}

/// Parses `NAME: VALUE` of a header that a call may set.
///
/// # Errors
/// As [`method`].
pub(crate) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| "must be NAME: VALUE".to_owned())?;
    let name = header_name(name.trim())?;
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
    let value = HeaderValue::from_str(value.trim())
        .ok()
        .filter(|value| value.to_str().is_ok())
        .ok_or_else(|| "has a value that is not printable ASCII".to_owned())?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that does not fit, and the longest that the operator's parser accepts and Go's does not.
    const TOO_LONG: [&str; 2] = ["99999999999999999999h", "2562047h47m16.9s"];

    #[test]
    fn durations() {
        assert_eq!(positive_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(positive_duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "0s", "-1s", "1 s", "soon", "30"] {
            assert!(positive_duration(wrong).is_err(), "{wrong}");
        }
        for long in TOO_LONG {
            assert_eq!(positive_duration(long), Err("is too long".to_owned()), "{long}");
        }
    }

    #[test]
    fn request_timeouts_are_as_kubectl_reads_them() {
        let timeout = |text: &str| text.parse::<RequestTimeout>().map(|timeout| timeout.0);
        for (text, seconds) in [("30s", 30), ("2m", 120), ("45", 45)] {
            assert_eq!(timeout(text), Ok(Some(Duration::from_secs(seconds))), "{text}");
        }
        for unlimited in ["0", "0s", "00"] {
            assert_eq!(timeout(unlimited), Ok(None), "{unlimited}");
        }
        for wrong in ["", "-1", "-1s", "1.5", "soon"] {
            assert!(timeout(wrong).is_err(), "{wrong}");
        }
        for long in TOO_LONG.into_iter().chain(["99999999999999999999"]) {
            assert_eq!(timeout(long), Err("is too long".to_owned()), "{long}");
        }
    }
}
