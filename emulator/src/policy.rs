//! The world the emulator plays: accounts, who may use them, and who vouches for whom.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::keys::{Jwk, sha256};
use crate::provider::{GkeCluster, WorkloadIdentityProvider};

/// `roles/iam.serviceAccountOpenIdTokenCreator`: may mint ID tokens.
pub const OPEN_ID_TOKEN_CREATOR: &str = "roles/iam.serviceAccountOpenIdTokenCreator";
/// `roles/iam.serviceAccountTokenCreator`: may mint ID tokens and access tokens, and pass through as a delegate.
pub const TOKEN_CREATOR: &str = "roles/iam.serviceAccountTokenCreator";
/// `roles/iam.workloadIdentityUser`: may mint ID tokens and access tokens.
pub const WORKLOAD_IDENTITY_USER: &str = "roles/iam.workloadIdentityUser";

/// A permission on a service account, with the roles that hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    GetOpenIdToken,
    GetAccessToken,
    ImplicitDelegation,
}

impl Permission {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GetOpenIdToken => "iam.serviceAccounts.getOpenIdToken",
            Self::GetAccessToken => "iam.serviceAccounts.getAccessToken",
            Self::ImplicitDelegation => "iam.serviceAccounts.implicitDelegation",
        }
    }

    fn is_held_by(self, role: &str) -> bool {
        match self {
            Self::GetOpenIdToken => {
                [OPEN_ID_TOKEN_CREATOR, TOKEN_CREATOR, WORKLOAD_IDENTITY_USER].contains(&role)
            }
            Self::GetAccessToken => [TOKEN_CREATOR, WORKLOAD_IDENTITY_USER].contains(&role),
            Self::ImplicitDelegation => role == TOKEN_CREATOR,
        }
    }
}

/// Everything the emulator decides by. Read from YAML (or JSON, which is YAML) with camelCase names.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// What the metadata server and key files name as the universe. Default `googleapis.com`.
    pub universe_domain: String,
    /// The organization of all accounts, for `google.organization_number`; `null` in the token where absent.
    pub organization_number: Option<u64>,
    /// The project of the metadata server and of the service accounts.
    pub project: Project,
    /// The service accounts that exist.
    pub service_accounts: Vec<ServiceAccount>,
    /// What the metadata server knows.
    pub metadata_server: MetadataServer,
    /// The identity providers of Workload Identity Federation.
    pub workload_identity_providers: Vec<WorkloadIdentityProvider>,
    /// GKE clusters, whose service accounts the pool `PROJECT.svc.id.goog` vouches for.
    pub gke_clusters: Vec<GkeCluster>,
    /// OAuth clients and their users' refresh tokens.
    pub oauth_clients: Vec<OauthClient>,
    /// Whether a 403 for a missing permission has `details`, as Google's often but not always has. Default true.
    pub error_details: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            universe_domain: "googleapis.com".into(),
            organization_number: None,
            project: Project::default(),
            service_accounts: Vec::new(),
            metadata_server: MetadataServer::default(),
            workload_identity_providers: Vec::new(),
            gke_clusters: Vec::new(),
            oauth_clients: Vec::new(),
            error_details: true,
        }
    }
}

/// A Google Cloud project.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Project {
    /// The project's id. Default `emulated-project`.
    pub id: String,
    /// The project's number. Default 123456789012.
    pub number: u64,
}

impl Default for Project {
    fn default() -> Self {
        Self {
            id: "emulated-project".into(),
            number: 123_456_789_012,
        }
    }
}

/// A Google service account and its IAM policy.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccount {
    /// The account's e-mail.
    pub email: String,
    /// The account's numeric id, 21 digits; made from the e-mail where absent, always the same.
    #[serde(default)]
    pub unique_id: Option<String>,
    /// A disabled account yields no tokens.
    #[serde(default)]
    pub disabled: bool,
    /// Who may do what with the account, as `gcloud iam service-accounts get-iam-policy` prints it.
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// E-mails or unique ids that a delegation chain to this account may hold; any that IAM lets pass where absent.
    #[serde(default)]
    pub delegates: Option<Vec<String>>,
    /// Public keys whose private halves the account's key files hold.
    #[serde(default)]
    pub keys: Vec<AccountKey>,
}

impl ServiceAccount {
    /// An account that nobody may use yet.
    #[must_use]
    pub fn new(email: impl Into<String>) -> Self {
        Self {
            email: email.into(),
            ..Self::default()
        }
    }

    /// The same account, with `member` bound to `role`, one of the constants of this module.
    #[must_use]
    pub fn bind(mut self, role: impl Into<String>, member: impl Into<String>) -> Self {
        self.bindings.push(Binding {
            role: role.into(),
            members: vec![member.into()],
        });
        self
    }

    /// The same account, from which `member` may mint ID tokens.
    #[must_use]
    pub fn impersonated_by(self, member: impl Into<String>) -> Self {
        self.bind(OPEN_ID_TOKEN_CREATOR, member)
    }

    /// The account's numeric id: the one given, or 21 digits that its e-mail decides.
    #[must_use]
    pub fn unique_id(&self) -> String {
        self.unique_id.clone().unwrap_or_else(|| {
            let digits: String = sha256(self.email.as_bytes())[..20]
                .iter()
                .map(|byte| char::from(b'0' + byte % 10))
                .collect();
            format!("1{digits}")
        })
    }

    /// Whether `name` is the account's e-mail or unique id.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.email == name || self.unique_id() == name
    }

    pub(crate) fn allows(&self, permission: Permission, is_member: impl Fn(&str) -> bool) -> bool {
        self.bindings
            .iter()
            .filter(|binding| permission.is_held_by(&binding.role))
            .any(|binding| binding.members.iter().any(|member| is_member(member)))
    }
}

/// A role bound to members.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Binding {
    /// One of [`OPEN_ID_TOKEN_CREATOR`], [`TOKEN_CREATOR`], [`WORKLOAD_IDENTITY_USER`].
    pub role: String,
    /// `serviceAccount:E-MAIL`, `serviceAccount:PROJECT.svc.id.goog[NAMESPACE/NAME]`, `user:E-MAIL`, `principal://…`,
    /// `principalSet://…` or `allAuthenticatedUsers`.
    pub members: Vec<String>,
}

/// The public half of a service account key: PEM or JWK.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccountKey {
    /// `private_key_id` of the key file, which becomes the JWT's `kid`; any `kid` verifies where absent.
    #[serde(default)]
    pub id: Option<String>,
    /// A PEM `PUBLIC KEY`.
    pub public_key_pem: String,
}

impl AccountKey {
    pub(crate) fn jwk(&self) -> anyhow::Result<Jwk> {
        Jwk::from_public_pem(&self.public_key_pem, self.id.clone())
    }
}

/// What the metadata server knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetadataServer {
    /// The account attached to the instance or pod, by e-mail or unique id; none where absent.
    pub service_account: Option<String>,
    /// Scopes of the account's access tokens where the caller names none. Default `cloud-platform`.
    pub scopes: Vec<String>,
    /// `NAMESPACE/NAME` of a Kubernetes ServiceAccount that lacks the annotation, for GKE's 404.
    pub unannotated_kubernetes_service_account: Option<String>,
    /// The instance's name. Default `emulated-instance`.
    pub instance_name: String,
    /// The instance's zone. Default `us-central1-a`.
    pub zone: String,
}

impl Default for MetadataServer {
    fn default() -> Self {
        Self {
            service_account: None,
            scopes: vec!["https://www.googleapis.com/auth/cloud-platform".into()],
            unannotated_kubernetes_service_account: None,
            instance_name: "emulated-instance".into(),
            zone: "us-central1-a".into(),
        }
    }
}

/// An OAuth client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OauthClient {
    /// The client id, which is the audience of its users' ID tokens.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: Secret,
    /// Its users' refresh tokens.
    #[serde(default)]
    pub refresh_tokens: Vec<RefreshToken>,
}

/// A user's refresh token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RefreshToken {
    /// The token.
    pub token: Secret,
    /// The user's e-mail.
    pub user: String,
    /// A revoked token answers `invalid_grant`.
    #[serde(default)]
    pub revoked: bool,
}

/// Text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Policy {
    /// Reads a policy from YAML or JSON.
    ///
    /// # Errors
    /// When the text is not a policy, or [`Policy::validate`] refuses it.
    pub fn from_yaml(text: &str) -> anyhow::Result<Self> {
        let policy: Self =
            serde_saphyr::from_str(text).context("the policy is not valid YAML of a policy")?;
        policy.validate()?;
        Ok(policy)
    }

    /// Reads a policy from a file of YAML or JSON.
    ///
    /// # Errors
    /// When the file cannot be read, is not a policy, or [`Policy::validate`] refuses it.
    pub fn from_file(path: impl AsRef<Path>) -> anyhow::Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the policy {}", path.display()))?;
        Self::from_yaml(&text).with_context(|| format!("in the policy {}", path.display()))
    }

    /// Says what in the policy does not make sense.
    ///
    /// # Errors
    /// When an account is listed twice or lacks an `@`, a role or member is unknown, a name is malformed, an
    /// expression is outside of what is understood, or keys cannot be read.
    pub fn validate(&self) -> anyhow::Result<()> {
        let mut names = BTreeSet::new();
        for account in &self.service_accounts {
            validate_account(account).with_context(|| format!("in serviceAccounts, {}", account.email))?;
            ensure!(
                names.insert(account.email.clone()),
                "service account {} is listed twice",
                account.email
            );
            ensure!(
                names.insert(account.unique_id()),
                "unique id {} is given twice",
                account.unique_id()
            );
        }
        if let Some(name) = &self.metadata_server.service_account {
            ensure!(
                self.account(name).is_some(),
                "metadataServer.serviceAccount {name} is not among serviceAccounts: add it there"
            );
        }
        for provider in &self.workload_identity_providers {
            provider
                .validate()
                .with_context(|| format!("in workloadIdentityProviders, {}", provider.name))?;
        }
        for cluster in &self.gke_clusters {
            cluster
                .validate()
                .with_context(|| format!("in gkeClusters, {}", cluster.name))?;
        }
        Ok(())
    }

    /// The account with this e-mail or unique id.
    #[must_use]
    pub fn account(&self, name: &str) -> Option<&ServiceAccount> {
        self.service_accounts
            .iter()
            .find(|account| account.is_named(name))
    }
}

fn validate_account(account: &ServiceAccount) -> anyhow::Result<()> {
    ensure!(account.email.contains('@'), "email must be an e-mail");
    if let Some(id) = &account.unique_id {
        ensure!(
            !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()),
            "uniqueId must be digits"
        );
    }
    for binding in &account.bindings {
        let known = [OPEN_ID_TOKEN_CREATOR, TOKEN_CREATOR, WORKLOAD_IDENTITY_USER];
        ensure!(
            known.contains(&binding.role.as_str()),
            "role {} is not known here: use one of {}",
            binding.role,
            known.join(", ")
        );
        for member in &binding.members {
            let prefixes = ["serviceAccount:", "user:", "principal://", "principalSet://"];
            ensure!(
                member == "allAuthenticatedUsers" || prefixes.iter().any(|prefix| member.starts_with(prefix)),
                "member {member} must be allAuthenticatedUsers or start with one of {}",
                prefixes.join(", ")
            );
        }
    }
    for key in &account.keys {
        key.jwk().context("in keys")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(yaml: &str) -> String {
        format!("{:#}", Policy::from_yaml(yaml).unwrap_err())
    }

    #[test]
    fn mistakes_are_named() {
        assert!(refused("serviceAcounts: []").contains("serviceAcounts"));
        assert!(refused("serviceAccounts: [{email: a}]").contains("e-mail"));
        assert!(refused("serviceAccounts: [{email: a@b}, {email: a@b}]").contains("twice"));
        assert!(refused("metadataServer: {serviceAccount: a@b}").contains("add it there"));
        let role = "serviceAccounts: [{email: a@b, bindings: [{role: roles/owner, members: []}]}]";
        assert!(refused(role).contains("roles/iam.serviceAccountTokenCreator"));
        let provider = "workloadIdentityProviders: [{name: //iam.googleapis.com/x, issuer: https://i}]";
        assert!(refused(provider).contains("workloadIdentityPools/P/providers/Q"));
        let name = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
        let condition = format!(
            "workloadIdentityProviders: [{{name: {name}, issuer: https://i, attributeCondition: 'true'}}]"
        );
        assert!(refused(&condition).contains("attributeCondition"));
    }

    #[test]
    fn an_empty_policy_has_defaults() {
        let policy = Policy::from_yaml("{}").unwrap();
        assert_eq!(policy.universe_domain, "googleapis.com");
        assert_eq!(
            policy.metadata_server.scopes,
            ["https://www.googleapis.com/auth/cloud-platform"]
        );
        assert!(policy.error_details);
    }

    #[test]
    fn unique_ids_are_stable() {
        let id = ServiceAccount::new("a@b").unique_id();
        assert_eq!(id.len(), 21);
        assert_eq!(id, ServiceAccount::new("a@b").unique_id());
        assert_ne!(id, ServiceAccount::new("c@b").unique_id());
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Secret("hunter2".into())), "[redacted]");
    }
}
