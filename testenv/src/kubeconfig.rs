//! kubeconfig files with client certificates.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::pki::Credentials;

/// A kubeconfig as JSON, which is also YAML. It contains the certificates, so that the file can be copied.
pub(crate) fn render(server: &str, ca: &str, user: &str, credentials: &Credentials) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testenv", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(ca),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": STANDARD.encode(&credentials.certificate),
            "client-key-data": STANDARD.encode(&credentials.key),
        }}],
        "contexts": [{"name": "testenv", "context": {"cluster": "testenv", "user": user}}],
        "current-context": "testenv",
    })
    .to_string()
}

/// A file name for `user`, with an underscore for everything but letters, digits, dots and dashes.
pub(crate) fn file_name(user: &str, count: u32) -> String {
    let safe: String = user
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') {
                c
            } else {
                '_'
            }
        })
        .take(100)
        .collect();
    format!("{count}-{safe}.kubeconfig")
}
