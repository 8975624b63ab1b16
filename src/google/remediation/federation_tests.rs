use zeroize::Zeroizing;

use super::*;
use crate::google::vocabulary::ErrorClass;

const POOL: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";
const GKE: &str =
    "identitynamespace:p.svc.id.goog:https://container.googleapis.com/v1/projects/p/locations/l/clusters/c";
const SUBJECT: &str = "system:serviceaccount:shop:billing";
const ALL: [Reason; 11] = [
    Reason::ProviderNotFound,
    Reason::InvalidArgument,
    Reason::SubjectTokenWrongAudience,
    Reason::SubjectTokenWrongIssuer,
    Reason::SubjectTokenStale,
    Reason::SubjectTokenUnverified,
    Reason::IssuerUnreachable,
    Reason::AttributeConditionRejected,
    Reason::SubjectTooLong,
    Reason::ExchangeRefused,
    Reason::ApiDisabled,
];

fn workload<'a>(provider: &'a IdentityProvider, subject: &'a str) -> Workload<'a> {
    Workload {
        provider,
        namespace: "shop",
        name: "billing",
        subject,
        request_reason: "shop/billing",
        priority: crate::google::vocabulary::CallPriority::OPERATOR,
    }
}

fn token(issuer: &str, audience: &str) -> SubjectToken {
    SubjectToken {
        token: Zeroizing::new("a.b.c".into()),
        issuer: issuer.into(),
        audience: audience.into(),
    }
}

fn remediation(reason: Reason, provider: &str, token: &SubjectToken) -> String {
    let provider = provider.parse().unwrap();
    let error = for_exchange(
        Error::new(Endpoint::Sts, reason, "no"),
        &workload(&provider, SUBJECT),
        token,
    );
    assert_eq!(error.class(), ErrorClass::Rejected);
    error.remediation().unwrap().to_owned()
}

#[test]
fn every_rejection_has_its_own_remediation() {
    for provider in [POOL, GKE] {
        let all: Vec<String> = ALL
            .into_iter()
            .map(|reason| remediation(reason, provider, &token("https://i", "x")))
            .collect();
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }
}

#[test]
fn transient_errors_need_none() {
    let provider: IdentityProvider = POOL.parse().unwrap();
    for reason in [Reason::UpstreamUnavailable, Reason::QuotaExceeded] {
        let error = Error::new(Endpoint::Sts, reason, "no");
        let error = for_exchange(error, &workload(&provider, SUBJECT), &token("https://i", "x"));
        assert_eq!(error.remediation(), None);
    }
}

#[test]
fn members_are_what_iam_calls_them() {
    let provider: IdentityProvider = POOL.parse().unwrap();
    assert_eq!(
        member(&workload(&provider, SUBJECT)),
        "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/system:serviceaccount:shop:billing"
    );
    let provider: IdentityProvider = GKE.parse().unwrap();
    assert_eq!(
        member(&workload(&provider, SUBJECT)),
        "serviceAccount:p.svc.id.goog[shop/billing]"
    );
}

#[test]
fn subjects_are_measured_in_bytes() {
    let provider: IdentityProvider = POOL.parse().unwrap();
    let of =
        |subject: &str| check_subject(&workload(&provider, subject)).map_err(|error| error.reason().as_str());
    assert_eq!(of(&"x".repeat(127)), Ok(()));
    assert_eq!(of(&"x".repeat(128)), Err("SubjectTooLong"));
    assert_eq!(of(&"ü".repeat(64)), Err("SubjectTooLong"));
    // GKE's own pool maps another attribute.
    let provider: IdentityProvider = GKE.parse().unwrap();
    assert!(check_subject(&workload(&provider, &"x".repeat(128))).is_ok());
}

#[test]
fn commands_are_inert() {
    for hostile in [
        "$(reboot)",
        "';id;'",
        "`id`",
        "a\nid",
        "--flag",
        "https://x/$(id)",
    ] {
        for reason in ALL {
            let text = remediation(reason, POOL, &token(hostile, hostile));
            assert!(!text.contains('\n'), "{text}");
            let Some((_, command)) = text.split_once(": gcloud ") else {
                continue;
            };
            let script = format!("gcloud() {{ printf '<%s>' \"$@\"; }}; gcloud {command}");
            let output = std::process::Command::new("sh")
                .args(["-c", &script])
                .output()
                .unwrap();
            let output = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.starts_with("<iam>") || output.starts_with("<services>"),
                "{script} gave {output}"
            );
            assert!(
                !output.contains("uid=") && !output.contains("<--flag>"),
                "{script} gave {output}"
            );
        }
    }
}

#[test]
fn a_refusal_that_names_no_permission_has_a_guess_and_another_rule_has_none() {
    use crate::google::transport::response::Response;
    let provider: IdentityProvider = POOL.parse().unwrap();
    let refused = |endpoint, message: &str| {
        let body =
            serde_json::json!({"error": {"code": 403, "message": message, "status": "PERMISSION_DENIED"}});
        let error = Response::of(403, body.to_string()).error(endpoint);
        let workload = workload(&provider, SUBJECT);
        let error = match endpoint {
            Endpoint::Sts => for_exchange(error, &workload, &token("https://i", "x")),
            _ => for_mint(error, &workload, "caller@p.iam.gserviceaccount.com"),
        };
        error.remediation().unwrap_or_default().to_owned()
    };
    let bare = "The caller does not have permission";
    let advice = refused(Endpoint::IamCredentials, bare);
    let member = "--member=principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/system:serviceaccount:shop:billing";
    for part in [
        "which is a guess: ",
        "needs iam.serviceAccounts.getOpenIdToken on caller@p",
        member,
    ] {
        assert!(advice.contains(part), "{part}: {advice}");
    }
    let advice = refused(Endpoint::Sts, bare);
    assert!(advice.contains("which is a guess: Enable the API"), "{advice}");
    for endpoint in [Endpoint::Sts, Endpoint::IamCredentials] {
        assert_eq!(
            refused(endpoint, "Request is prohibited by organization's policy."),
            ""
        );
    }
}
