//! The cluster, user and namespace of the caller: kubeconfig files, flags and the pod's ServiceAccount, by the rules of client-go.
//!
//! Not by those of kube, which takes the first file's empty `current-context` for a name, fails for a missing file in KUBECONFIG, and
//! takes no user for one that the kubeconfig does not have.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Intercept;
use idtoken_operator::shell::quote;
use kube::Config;
use kube::config::{AuthInfo, Cluster, Context as KubeContext, ExecAuthCluster, Kubeconfig, KubeconfigError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};

use crate::args::ClusterArgs;
use crate::kubernetes::proxy::proxy;

/// Where the API server is and who calls it.
struct Target {
    cluster: Cluster,
    user: AuthInfo,
    namespace: Option<String>,
}

/// The configuration of a client, and the proxy to the API server. The namespace is that of the flag or of the context.
///
/// # Errors
/// The kubeconfig or a flag cannot be used.
pub(crate) fn config(args: &ClusterArgs) -> Result<(Config, Option<Intercept>)> {
    let kubeconfig = read(args.kubeconfig.as_deref())?;
    let mut target = match select(kubeconfig, args)? {
        Some(target) => target,
        None => in_cluster()?,
    };
    set_cluster(&mut target.cluster, args);
    set_user(&mut target.user, args);
    configured(target, given(&args.namespace))
}

fn configured(target: Target, namespace: Option<String>) -> Result<(Config, Option<Intercept>)> {
    let Target {
        cluster, mut user, ..
    } = target;
    let server = cluster.server.as_deref().unwrap_or_default();
    let server = match server.contains("://") {
        true => server.to_owned(),
        false => format!("https://{server}"),
    };
    let server: Uri = server
        .parse()
        .context("the address of the API server is no URL; set --server, such as https://HOST:PORT")?;
    let is_insecure = cluster.insecure_skip_tls_verify == Some(true);
    let details = ExecAuthCluster::try_from(&cluster)?;
    ensure!(
        !is_insecure || details.certificate_authority_data.is_none(),
        "the cluster has both a certificate authority and insecure-skip-tls-verify; keep one of them"
    );
    let proxy = proxy(
        &server,
        cluster.proxy_url.as_deref().filter(|url| !url.is_empty()),
        |name| std::env::var(name).ok(),
    )?;
    if server.scheme_str() == Some("http") {
        // Credentials are for an API server that has shown who it is.
        user = AuthInfo {
            impersonate: user.impersonate,
            impersonate_uid: user.impersonate_uid,
            impersonate_groups: user.impersonate_groups,
            impersonate_user_extra: user.impersonate_user_extra,
            ..AuthInfo::default()
        };
    }
    check(&mut user)?;
    let mut config = Config::new(server);
    config.root_cert = details
        .certificate_authority_data
        .as_deref()
        .map(certificates)
        .transpose()?;
    config.accept_invalid_certs = is_insecure;
    config.tls_server_name = cluster.tls_server_name.filter(|name| !name.is_empty());
    if let Some(exec) = user.exec.as_mut().filter(|exec| exec.provide_cluster_info) {
        exec.cluster = Some(details);
    }
    config.auth_info = user;
    if let Some(namespace) = namespace.or(target.namespace) {
        config.default_namespace = namespace;
    }
    Ok((config, proxy))
}

fn given(value: &Option<String>) -> Option<String> {
    value.clone().filter(|value| !value.is_empty())
}

/// The file of `--kubeconfig`, or those of KUBECONFIG that exist, or `~/.kube/config`.
fn read(path: Option<&Path>) -> Result<Kubeconfig> {
    if let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) {
        return read_file(path)?.with_context(|| format!("the kubeconfig {} does not exist", path.display()));
    }
    let listed = std::env::var_os("KUBECONFIG").unwrap_or_default();
    let mut paths: Vec<PathBuf> = std::env::split_paths(&listed)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    if paths.is_empty() {
        paths.extend(std::env::home_dir().map(|home| home.join(".kube/config")));
    }
    let mut merged = Kubeconfig::default();
    for path in paths {
        if let Some(next) = read_file(&path)? {
            merged = merged
                .merge(next)
                .with_context(|| format!("the kubeconfig {} cannot be used", path.display()))?;
        }
    }
    Ok(merged)
}

/// `None` if there is no such file.
fn read_file(path: &Path) -> Result<Option<Kubeconfig>> {
    match Kubeconfig::read_from(path) {
        Ok(mut file) => {
            file.current_context = given(&file.current_context);
            Ok(Some(file))
        }
        Err(KubeconfigError::ReadConfig(error, _)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The parser's message can quote a credential.
        Err(KubeconfigError::Parse(_)) => bail!(
            "the kubeconfig {path} is not valid YAML, or not a kubeconfig; see: kubectl config view --kubeconfig={path}",
            path = quote(&path.display().to_string())
        ),
        Err(error) => Err(error).with_context(|| format!("the kubeconfig {} cannot be used", path.display())),
    }
}

/// What the context and the flags name; `None` if neither names a server, nor anything else.
fn select(kubeconfig: Kubeconfig, args: &ClusterArgs) -> Result<Option<Target>> {
    let named = given(&args.context).or(kubeconfig.current_context);
    let missing = |what: &str, name: &str| {
        anyhow!(
            "the kubeconfig has no {what} {}; to list the existing ones: kubectl config get-{what}s",
            quote(name)
        )
    };
    let context = match &named {
        None => KubeContext::default(),
        Some(name) => kubeconfig
            .contexts
            .into_iter()
            .find(|context| context.name == *name)
            .and_then(|context| context.context)
            .ok_or_else(|| missing("context", name))?,
    };
    let cluster_name = given(&args.cluster).unwrap_or(context.cluster);
    let cluster = kubeconfig
        .clusters
        .into_iter()
        .find(|cluster| cluster.name == cluster_name)
        .and_then(|cluster| cluster.cluster);
    let has_server = given(&args.server).is_some();
    if cluster.is_none() && (given(&args.cluster).is_some() || !cluster_name.is_empty() && !has_server) {
        return Err(missing("cluster", &cluster_name));
    }
    let user_name = given(&args.user).or(context.user).unwrap_or_default();
    let user = kubeconfig
        .auth_infos
        .into_iter()
        .find(|user| user.name == user_name)
        .and_then(|user| user.auth_info);
    if user.is_none() && given(&args.user).is_some() {
        return Err(missing("user", &user_name));
    }
    let cluster = cluster.unwrap_or_default();
    if !has_server && given(&cluster.server).is_none() {
        ensure!(
            named.is_none() && cluster_name.is_empty(),
            "the cluster {} of the kubeconfig has no server; set --server",
            quote(&cluster_name)
        );
        return Ok(None);
    }
    Ok(Some(Target {
        cluster,
        user: user.unwrap_or_default(),
        namespace: given(&context.namespace),
    }))
}

/// The API server and the ServiceAccount of the pod that this runs in.
fn in_cluster() -> Result<Target> {
    let config = Config::incluster().context(
        "there is no usable kubeconfig, and this is not a pod with a ServiceAccount; set --kubeconfig, KUBECONFIG or --context",
    )?;
    let file = config.root_cert_file.map(|path| path.display().to_string());
    Ok(Target {
        cluster: Cluster {
            server: Some(config.cluster_url.to_string()),
            certificate_authority: file,
            ..Cluster::default()
        },
        user: config.auth_info,
        namespace: Some(config.default_namespace),
    })
}

fn set_cluster(cluster: &mut Cluster, args: &ClusterArgs) {
    let (server, name) = (given(&args.server), given(&args.tls_server_name));
    if server.is_some() || name.is_some() {
        // The kubeconfig's name is that of its own server.
        cluster.tls_server_name = name;
    }
    if server.is_some() {
        cluster.server = server;
    }
    let authority = given(&args.certificate_authority);
    if args.insecure_skip_tls_verify || authority.is_some() {
        cluster.insecure_skip_tls_verify = Some(args.insecure_skip_tls_verify);
        cluster.certificate_authority = authority;
        cluster.certificate_authority_data = None;
    }
    if let Some(url) = given(&args.proxy_url) {
        cluster.proxy_url = Some(url);
    }
}

fn set_user(user: &mut AuthInfo, args: &ClusterArgs) {
    if let Some(token) = args
        .token
        .as_ref()
        .filter(|token| !token.expose_secret().is_empty())
    {
        user.token = Some(token.clone());
        user.token_file = None;
        user.username = None;
        user.password = None;
        user.auth_provider = None;
        user.exec = None;
    }
    if let Some(file) = given(&args.client_certificate) {
        user.client_certificate = Some(file);
        user.client_certificate_data = None;
    }
    if let Some(file) = given(&args.client_key) {
        user.client_key = Some(file);
        user.client_key_data = None;
    }
    if let Some(name) = given(&args.impersonate) {
        user.impersonate = Some(name);
    }
    if let Some(uid) = given(&args.impersonate_uid) {
        user.impersonate_uid = Some(uid);
    }
    if !args.impersonate_groups.is_empty() {
        user.impersonate_groups = Some(args.impersonate_groups.clone());
    }
    if !args.impersonate_extra.is_empty() {
        let mut extra: HashMap<String, Vec<String>> = HashMap::new();
        for (key, value) in &args.impersonate_extra {
            extra.entry(key.clone()).or_default().push(value.clone());
        }
        user.impersonate_user_extra = Some(extra);
    }
}

/// Checks what kube would use without a check, or panic about.
fn check(user: &mut AuthInfo) -> Result<()> {
    let has_more = user.impersonate_uid.is_some()
        || user
            .impersonate_groups
            .as_ref()
            .is_some_and(|groups| !groups.is_empty())
        || user
            .impersonate_user_extra
            .as_ref()
            .is_some_and(|extra| !extra.is_empty());
    ensure!(
        given(&user.impersonate).is_some() || !has_more,
        "--as-group, --as-uid and --as-user-extra need --as"
    );
    if user.token.is_none()
        && let Some(path) = &user.token_file
    {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the token file {} cannot be read", quote(path)))?;
        // kube reads the file again each minute, but takes its last newline for a part of the token.
        if text.trim() != text {
            user.token = Some(SecretString::from(text.trim().to_owned()));
        }
    }
    if let Some(token) = &user.token {
        ensure!(
            HeaderValue::from_str(token.expose_secret()).is_ok(),
            "the bearer token for the API server has a control character, such as a newline"
        );
    }
    Ok(())
}

fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>> {
    let found: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(pem)
        .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
        .collect::<Result<_, _>>()
        .context("the certificate authority of the cluster is no PEM")?;
    ensure!(
        !found.is_empty(),
        "the certificate authority of the cluster has no certificate"
    );
    Ok(found)
}
