use serde_json::{Value, json};

use super::*;

fn policy(change: impl FnOnce(&mut Value)) -> ValidatingAdmissionPolicy {
    let mut object = json!({
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": bundled_policy().expect("config/admission.yaml has it"),
    });
    // The defaults of the API server.
    object["spec"]["matchConstraints"]["namespaceSelector"] = json!({});
    object["spec"]["matchConstraints"]["objectSelector"] = json!({});
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

fn binding(change: impl FnOnce(&mut Value)) -> ValidatingAdmissionPolicyBinding {
    let mut object = json!({
        "metadata": {"name": "b", "creationTimestamp": "2026-01-01T00:00:05Z"},
        "spec": {"policyName": "p", "validationActions": ["Deny"]},
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

fn since(time: &str) -> PolicyCoverage {
    PolicyCoverage::Since {
        policy: "p".into(),
        since: time.parse().unwrap(),
    }
}

#[test]
fn covers_since_the_last_change_of_policy_or_binding() {
    let whole = [binding(|_| {})];
    assert_eq!(coverage(&[policy(|_| {})], &whole), since("2026-01-01T00:00:05Z"));
    let edited = policy(|object| {
        object["metadata"]["managedFields"] = json!([
            {"manager": "kubectl", "time": "2026-03-01T00:00:00Z"},
            {"manager": "kube-apiserver", "subresource": "status", "time": "2026-04-01T00:00:00Z"},
        ]);
    });
    assert_eq!(coverage(&[edited], &whole), since("2026-03-01T00:00:00Z"));
    // Messages to authors do not count.
    let reworded = policy(|object| object["spec"]["validations"][0]["message"] = json!("no"));
    assert_eq!(coverage(&[reworded], &whole), since("2026-01-01T00:00:05Z"));
}

#[test]
fn a_weaker_policy_or_binding_does_not_cover() {
    type Change = fn(&mut Value);
    let weaker: [Change; 7] = [
        |object| object["spec"]["failurePolicy"] = json!("Ignore"),
        |object| object["spec"]["validations"] = json!([{"expression": "true"}]),
        |object| object["spec"]["matchConditions"][1]["expression"] = json!("false"),
        |object| object["spec"]["matchConstraints"]["resourceRules"][0]["operations"] = json!(["CREATE"]),
        |object| object["spec"]["matchConstraints"]["resourceRules"][0]["apiVersions"] = json!(["v1"]),
        |object| object["spec"]["matchConstraints"]["namespaceSelector"] = json!({"matchLabels": {"a": "b"}}),
        |object| {
            object["spec"]["matchConstraints"]["excludeResourceRules"] =
                json!([{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "operations": ["*"]}]);
        },
    ];
    for change in weaker {
        let policy = policy(change);
        let found = coverage(std::slice::from_ref(&policy), &[binding(|_| {})]);
        assert!(
            matches!(&found, PolicyCoverage::Missing(why) if why.contains("differs from the policy of this version")),
            "{policy:?}"
        );
    }
    let loose: [Change; 4] = [
        |object| object["spec"]["validationActions"] = json!(["Audit", "Warn"]),
        |object| object["spec"]["policyName"] = json!("other"),
        |object| object["spec"]["matchResources"] = json!({"namespaceSelector": {"matchLabels": {"a": "b"}}}),
        |object| object["spec"]["matchResources"] = json!({"resourceRules": [{"resourceNames": ["x"]}]}),
    ];
    for change in loose {
        let binding = binding(change);
        let found = coverage(&[policy(|_| {})], std::slice::from_ref(&binding));
        assert!(
            matches!(&found, PolicyCoverage::Missing(why) if why.contains("no binding")),
            "{binding:?}"
        );
    }
    assert!(matches!(coverage(&[], &[]), PolicyCoverage::Missing(why) if why.contains("there is none")));
}
