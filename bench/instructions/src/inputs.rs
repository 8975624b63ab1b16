//! The inputs of the cases: an ordinary request with a current token, as the API server sends it, and a token like Google's.

use std::error::Error;
use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use idtoken_operator::api::ObjectKey;
use idtoken_operator::api::v1alpha1::{
    GrantRef, IdTokenRequest, IdTokenRequestStatus, SecretStatus, TokenStatus,
};
use idtoken_operator::classify::ErrorClass;
use idtoken_operator::controller::cache::Cache;
use idtoken_operator::controller::issue::observation::Observation;
use idtoken_operator::controller::reconcile::outcome::{CurrentToken, Outcome, Reconciled};
use idtoken_operator::controller::reconcile::plan::{Facts, Timing, due_renewal};
use idtoken_operator::controller::reconcile::status;
use idtoken_operator::grants::index::{Grant, GrantIndex, Namespaces};
use idtoken_operator::kubernetes::secret::SecretContent;
use idtoken_operator::kubernetes::secret_summary::SecretSummary;
use idtoken_operator::render::{Rendered, render};
use idtoken_operator::request::{ValidRequest, validate};
use idtoken_operator::schedule::backoff::{Backoff, BackoffKey};
use idtoken_operator::token::IdToken;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

/// The token's `iat`.
const ISSUED: i64 = 1_800_000_000;
const LIFETIME: i64 = 3600;
const UID: &str = "0b9a66cb-61a4-4f4e-8a3c-000000000001";
const ACCOUNT: &str = "caller@my-project.iam.gserviceaccount.com";
const AUDIENCE: &str = "https://billing-4nrmvqjxda-ew.a.run.app";
/// The number of grants besides the one that allows the request.
const GRANTS: usize = 1000;

/// The inputs of the cases.
pub(crate) struct Inputs {
    pub(crate) key: ObjectKey,
    /// Contains `object`.
    pub(crate) cache: Cache,
    /// The request as the API server sends it, with its status.
    pub(crate) object: IdTokenRequest,
    pub(crate) status: IdTokenRequestStatus,
    /// The request, whose Secret has only the token.
    pub(crate) request: ValidRequest,
    /// The same with a template for two more keys and metadata.
    pub(crate) templated: ValidRequest,
    pub(crate) grants: GrantIndex,
    /// The unchanged Secret of the request.
    pub(crate) observation: Observation,
    /// What decides besides: nothing failed.
    pub(crate) facts: Facts,
    /// The same after a failed renewal.
    pub(crate) failed: Facts,
    /// The Secret as the API server sends it.
    pub(crate) secret: String,
    pub(crate) content: SecretContent,
    pub(crate) rendered: Rendered,
    /// The result of a reconcile that finds an unchanged Secret.
    pub(crate) unchanged: Reconciled,
    /// The result of a renewal.
    pub(crate) renewed: Reconciled,
    /// A token as Google sends it.
    pub(crate) jwt: String,
    pub(crate) token: IdToken,
    pub(crate) issued: Timestamp,
    pub(crate) expires: Timestamp,
    /// Some time after the issue: nothing is due.
    pub(crate) early: Timestamp,
    /// When the renewal is due.
    pub(crate) late: Timestamp,
}

impl Inputs {
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        let at = Timestamp::from_second;
        let (issued, expires) = (at(ISSUED)?, at(ISSUED + LIFETIME)?);
        let (early, late) = (at(ISSUED + 600)?, at(ISSUED + 2400)?);
        let object = object(&json!({}))?;
        let request = validate(&object)?;
        let templated = validate(&self::object(&json!({
            "template": {
                "metadata": {"labels": {"app": "billing"}, "annotations": {"team": "shop"}},
                "data": {
                    "header": "Authorization: Bearer $(token)",
                    "config.yaml": "url: $(audience)\naccount: $(email)\nexpires: $(expirationTime)\n",
                },
            },
        }))?)?;
        let jwt = jwt(ISSUED);
        let token = IdToken::parse(jwt.clone())?;
        let rendered = render(&templated, &token)?;
        let secret = secret(&rendered);
        let content = SecretContent::decode("shop", "get", &secret)?;
        let observation = Observation::Cached(Some(SecretSummary {
            render_hash: Some(request.render_hash.clone()),
            ..content.summary.clone()
        }));
        let facts = Facts {
            recorded_version: Some(content.summary.resource_version.clone()),
            has_digest: true,
            ..Facts::default()
        };
        let unchanged = report(&request, &token, &content.summary.resource_version);
        let status = status::next(&IdTokenRequestStatus::default(), 3, &unchanged, issued);
        let renewed = report(&request, &IdToken::parse(self::jwt(ISSUED + 2400))?, "481517");
        let object = IdTokenRequest {
            status: Some(status.clone()),
            ..object
        };
        let key = ObjectKey::new(&request.namespace, &request.name);
        let cache = Cache::default();
        cache.upsert_request(object.clone());
        Ok(Self {
            key,
            cache,
            object,
            status,
            grants: grants()?,
            observation,
            secret,
            content,
            rendered,
            failed: Facts {
                backoff: Some(Backoff {
                    reason: "Refused",
                    message: "iamcredentials.googleapis.com answered 403 PERMISSION_DENIED".into(),
                    class: ErrorClass::Rejected,
                    attempts: 4,
                    since: at(ISSUED + 2300)?,
                    at: at(ISSUED + 2390)?,
                    next: at(ISSUED + 2450)?,
                    needs_user_action: false,
                    awaits_google: false,
                    key: BackoffKey {
                        generation: 3,
                        renew: None,
                        grant: Some("team-shop".into()),
                    },
                }),
                ..facts.clone()
            },
            facts,
            unchanged,
            renewed,
            jwt,
            token,
            issued,
            expires,
            early,
            late,
            request,
            templated,
        })
    }
}

/// The request shop/billing with this `spec.target`.
fn object(target: &Value) -> Result<IdTokenRequest, serde_json::Error> {
    serde_json::from_value(json!({
        "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
        "metadata": {
            "name": "billing", "namespace": "shop", "uid": UID, "generation": 3, "resourceVersion": "481516",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"audience": AUDIENCE, "serviceAccount": ACCOUNT, "renewBefore": "25m", "target": target},
    }))
}

/// A token with the claims of Google's, and a signature of the same length.
fn jwt(issued: i64) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({"alg": "RS256", "kid": "763f7c4cd26a1eb2b1b39a88f4434d1f4d9a368b", "typ": "JWT"});
    let claims = json!({
        "aud": AUDIENCE, "azp": "123456789012345678901", "email": ACCOUNT, "email_verified": true,
        "exp": issued + LIFETIME, "iat": issued, "iss": "https://accounts.google.com", "sub": "123456789012345678901",
    });
    let signature = URL_SAFE_NO_PAD.encode([0xa5_u8; 256]);
    format!("{}.{}.{signature}", part(&header), part(&claims))
}

/// `rendered` as the API server sends it.
fn secret(rendered: &Rendered) -> String {
    let mut secret = json!(rendered.create("shop", "billing"));
    secret["metadata"]["uid"] = "5a0ffb2c-9e07-4be1-8d2a-000000000002".into();
    secret["metadata"]["resourceVersion"] = "481515".into();
    secret["metadata"]["creationTimestamp"] = "2026-01-01T00:00:01Z".into();
    secret.to_string()
}

/// The result of a reconcile that leaves `token` in the Secret.
fn report(request: &ValidRequest, token: &IdToken, resource_version: &str) -> Reconciled {
    let claims = token.claims();
    Reconciled {
        outcome: Outcome::Kept(CurrentToken {
            secret: SecretStatus {
                name: request.target.name.clone(),
                uid: Some("5a0ffb2c-9e07-4be1-8d2a-000000000002".to_owned()),
                resource_version: Some(resource_version.to_owned()),
            },
            token: TokenStatus {
                accepted_subject: None,
                issue_time: Some(Time(claims.iat)),
                expiration_time: Some(Time(claims.exp)),
                audience: Some(claims.aud.clone()),
                email: claims.email.clone(),
                subject: Some(claims.sub.clone()),
                digest: Some(token.digest()),
            },
            renewal: due_renewal(request, Timing::default(), claims.iat, claims.exp),
            unchanged: false,
        }),
        source: Some(request.token.source.name()),
        grant: Some(GrantRef {
            name: "team-shop".into(),
            uid: Some(UID.into()),
        }),
        handled_renew: None,
    }
}

/// The grant that allows the request, and many that do not.
fn grants() -> Result<GrantIndex, serde_json::Error> {
    let grant = |name: String, namespace: String| -> Result<Grant, serde_json::Error> {
        let spec = serde_json::from_value(json!({
            "from": [{"namespace": namespace}],
            "to": [{"serviceAccounts": ["*@my-project.iam.gserviceaccount.com"], "audiences": [AUDIENCE]}],
        }))?;
        Ok(Grant {
            id: GrantRef {
                name,
                uid: Some(UID.into()),
            },
            spec: Arc::new(spec),
        })
    };
    let mut all = vec![grant("team-shop".into(), "shop".into())?];
    for number in 0..GRANTS {
        all.push(grant(format!("team-{number}"), format!("team-{number}"))?);
    }
    Ok(GrantIndex::new(&all, &Namespaces::new()))
}
