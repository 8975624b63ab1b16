//! The public hosts: those that this crate connects to itself, and those that its sources and tokens name.

/// The base URL of Google's APIs; `{service}` stands for the first label of a host.
pub(crate) const APIS: &str = "https://{service}.googleapis.com";
/// The metadata server, as an instance reaches it.
pub(crate) const METADATA_SERVER: &str = "http://metadata.google.internal";
/// The Security Token Service for clients that show a certificate.
pub(crate) const MTLS_STS: &str = "https://sts.mtls.googleapis.com";
/// AWS' Security Token Service of a region.
pub(crate) const AWS_STS: &str = "sts.us-east-2.amazonaws.com";
/// The audience of what a service account signs for the token endpoint.
pub(crate) const TOKEN_ENDPOINT: &str = "https://oauth2.googleapis.com/token";
/// What the URL of each scope begins with.
pub(crate) const SCOPES: &str = "https://www.googleapis.com/auth/";
/// Google's own documentation, that of AWS for what is AWS', and the standards that they follow.
pub(crate) const DOCUMENTATION: [&str; 6] = [
    "https://cloud.google.com/",
    "https://developers.google.com/",
    "https://docs.aws.amazon.com/",
    "https://docs.cloud.google.com/",
    "https://google.aip.dev/",
    "https://www.rfc-editor.org/",
];
