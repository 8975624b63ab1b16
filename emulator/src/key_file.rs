//! Makes service account key files for accounts of the policy, and verifies tokens by the emulator's own key.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::clock::now;
use crate::issue::GOOGLE_ISSUER;
use crate::jwt::Jwt;
use crate::keys::SigningKey;
use crate::state::EmulatorState;

impl EmulatorState {
    /// Makes a key for an account, and returns its key file.
    pub(crate) fn service_account_key(&self, name: &str) -> anyhow::Result<Value> {
        let policy = self.policy();
        let account = policy.account(name).with_context(|| {
            format!("service account {name} is not in the policy: add it to serviceAccounts")
        })?;
        let key = SigningKey::generate()?;
        self.add_account_key(&account.email, key.jwk());
        Ok(json!({
            "type": "service_account",
            "project_id": policy.project.id,
            "private_key_id": key.kid(),
            "private_key": key.to_pem()?,
            "client_email": account.email,
            "client_id": account.unique_id(),
            "auth_uri": format!("{}/o/oauth2/auth", self.url),
            "token_uri": format!("{}/token", self.url),
            "auth_provider_x509_cert_url": format!("{}/oauth2/v1/certs", self.url),
            "client_x509_cert_url": format!("{}/oauth2/v1/certs", self.url),
            "universe_domain": policy.universe_domain,
        }))
    }

    /// Checks an ID token's signature, issuer and expiry, and returns its claims.
    pub(crate) fn verify(&self, token: &str) -> anyhow::Result<Value> {
        let jwt = Jwt::parse(token).context("not a JWT")?;
        ensure!(
            jwt.kid() == Some(self.key.kid()),
            "the JWT's `kid` is not the emulator's key"
        );
        ensure!(jwt.verified_by(&[self.key.jwk()]), "the JWT's signature is wrong");
        ensure!(
            jwt.text("iss") == Some(GOOGLE_ISSUER),
            "the JWT's issuer is not {GOOGLE_ISSUER}"
        );
        let expires = jwt.time("exp").context("the JWT has no `exp`")?;
        ensure!(expires > now(), "the JWT expired {} s ago", now() - expires);
        Ok(Value::Object(jwt.claims))
    }
}
