//! The policy: which accounts exist, who may use them, and which identity providers IAM trusts.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::aws_keys::Aws;
use crate::provider::{GkeCluster, WorkloadIdentityProvider};
use crate::secret::Secret;
use crate::service_account::ServiceAccount;
use crate::target::Target;

/// What the emulator decides by, with camel case names in YAML or JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// The universe domain of the metadata server and of key files. Default `googleapis.com`.
    pub universe_domain: String,
    /// The organization of all accounts, for `google.organization_number`. Absent: `null` in the token.
    pub organization_number: Option<u64>,
    /// The project of the metadata server and of the service accounts.
    pub project: Project,
    /// The service accounts that exist.
    pub service_accounts: Vec<ServiceAccount>,
    /// What the metadata server returns.
    pub metadata_server: MetadataServer,
    /// The identity providers of Workload Identity Federation.
    pub workload_identity_providers: Vec<WorkloadIdentityProvider>,
    /// What AWS knows, and EC2's metadata server returns.
    pub aws: Aws,
    /// The GKE clusters whose service accounts the pool `PROJECT.svc.id.goog` holds.
    pub gke_clusters: Vec<GkeCluster>,
    /// OAuth clients and their users' refresh tokens.
    pub oauth_clients: Vec<OauthClient>,
    /// Services behind Google's front ends, at `/targets/NAME`.
    pub targets: Vec<Target>,
    /// The projects that callers may name in `X-Goog-User-Project`. Absent: any.
    pub user_projects: Option<Vec<String>>,
    /// Whether a 403 for a missing permission has `details`. Google's often but not always has. Default true.
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
            aws: Aws::default(),
            gke_clusters: Vec::new(),
            oauth_clients: Vec::new(),
            targets: Vec::new(),
            user_projects: None,
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

/// What the metadata server returns.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetadataServer {
    /// The account attached to the instance or pod, by e-mail or unique id. Absent: none is attached.
    pub service_account: Option<String>,
    /// Scopes of the account's access tokens if the caller names none. Default `cloud-platform`.
    pub scopes: Vec<String>,
    /// `NAMESPACE/NAME` of a Kubernetes ServiceAccount that lacks the annotation. Identity tokens then fail with GKE's 404.
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
    /// The client id, which is also the audience of its users' ID tokens.
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
    /// The user's e-mail. For a user of a workforce pool, who refreshes at the Security Token Service,
    /// `principal://iam.googleapis.com/locations/global/workforcePools/P/subject/S`.
    pub user: String,
    /// A revoked token fails with `invalid_grant`.
    #[serde(default)]
    pub revoked: bool,
}

impl Policy {
    /// Parses a policy from YAML or JSON.
    ///
    /// # Errors
    /// When the text is not a policy, or [`Policy::validate`] rejects it.
    pub fn from_yaml(text: &str) -> anyhow::Result<Self> {
        let policy: Self = serde_saphyr::from_str(text).context("the policy is not the YAML of a policy")?;
        policy.validate()?;
        Ok(policy)
    }

    /// Reads a policy from a file of YAML or JSON.
    ///
    /// # Errors
    /// When the file cannot be read, is not a policy, or [`Policy::validate`] rejects it.
    pub fn from_file(path: impl AsRef<Path>) -> anyhow::Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the policy {}", path.display()))?;
        Self::from_yaml(&text).with_context(|| format!("in the policy {}", path.display()))
    }

    /// Checks the policy.
    ///
    /// # Errors
    /// When an account or a target is listed twice, an account lacks an `@`, a role or member is unknown, a name is malformed, an
    /// expression is not supported, or a key cannot be parsed.
    pub fn validate(&self) -> anyhow::Result<()> {
        let mut names = BTreeSet::new();
        for account in &self.service_accounts {
            account
                .validate()
                .with_context(|| format!("in serviceAccounts, {}", account.email))?;
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
        let mut targets = BTreeSet::new();
        for target in &self.targets {
            ensure!(
                targets.insert(&target.name),
                "target {} is listed twice",
                target.name
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(yaml: &str) -> String {
        format!("{:#}", Policy::from_yaml(yaml).unwrap_err())
    }

    #[test]
    fn mistakes_are_named() {
        assert!(rejection("serviceAcounts: []").contains("serviceAcounts"));
        assert!(rejection("serviceAccounts: [{email: a}]").contains("e-mail"));
        assert!(rejection("serviceAccounts: [{email: a@b}, {email: a@b}]").contains("twice"));
        let targets =
            "targets: [{name: t, frontEnd: iap, audience: a}, {name: t, frontEnd: none, audience: a}]";
        assert!(rejection(targets).contains("target t is listed twice"));
        assert!(rejection("metadataServer: {serviceAccount: a@b}").contains("add it there"));
        let role = "serviceAccounts: [{email: a@b, bindings: [{role: roles/owner, members: []}]}]";
        assert!(rejection(role).contains("roles/iam.serviceAccountTokenCreator"));
        let provider = "workloadIdentityProviders: [{name: //iam.googleapis.com/x, issuer: https://i}]";
        assert!(rejection(provider).contains("workloadIdentityPools/P/providers/Q"));
        let name = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
        let condition = format!(
            "workloadIdentityProviders: [{{name: {name}, issuer: https://i, attributeCondition: 'true'}}]"
        );
        assert!(rejection(&condition).contains("attributeCondition"));
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
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Secret("hunter2".into())), "[redacted]");
    }
}
