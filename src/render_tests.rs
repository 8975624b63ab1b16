use base64::Engine;

use super::*;
use crate::fixtures::{ACCOUNT, UID, apply, content, request, stored, token};
use crate::request::template::Template;

const T0: i64 = 1_800_000_000;

fn decoded(value: &Value) -> String {
    String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap()
}

fn first(request: &ValidRequest) -> Value {
    let rendered = render(request, &token(request, T0)).unwrap();
    let mut secret = json!(rendered.create(&request.namespace, &request.target.name));
    stored(&mut secret, 10);
    secret
}

fn full() -> Value {
    json!({"target": {"name": "s", "key": "jwt", "template": {
        "metadata": {"labels": {"team": "shop"}, "annotations": {"note": "x"}},
        "data": {"header": "Authorization: Bearer $(token)", "who": "$(email) for $(audience) until $(expirationTime), $$(token)"},
    }}})
}

#[test]
fn create_holds_all_of_it() {
    let request = request(full());
    let token = token(&request, T0);
    let secret = first(&request);
    assert_eq!(secret["type"], "Opaque");
    assert_eq!(secret["metadata"]["name"], "s");
    assert_eq!(secret["metadata"]["namespace"], "shop");
    assert_eq!(
        secret["metadata"]["labels"],
        json!({"team": "shop", (LABEL_MANAGED_BY): MANAGED_BY})
    );
    assert_eq!(
        secret["metadata"]["ownerReferences"],
        json!([{"apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest", "name": "billing", "uid": UID, "controller": true}])
    );
    assert_eq!(decoded(&secret["data"]["jwt"]), token.expose());
    assert_eq!(
        decoded(&secret["data"]["header"]),
        format!("Authorization: Bearer {}", token.expose())
    );
    assert_eq!(
        decoded(&secret["data"]["who"]),
        format!("{ACCOUNT} for https://billing-x.run.app until 2027-01-15T09:00:00Z, $(token)")
    );
    let summary = content(&secret).summary;
    assert_eq!(summary.token_hash.as_ref(), Some(&request.token_hash));
    assert_eq!(summary.render_hash.as_ref(), Some(&request.render_hash));
    assert_eq!(summary.request_uid.as_deref(), Some(UID));
    assert_eq!(summary.token_fingerprint, Some(token.fingerprint()));
    assert_eq!(
        (summary.issued_at, summary.expires_at),
        (Some(token.claims().iat), Some(token.claims().exp))
    );
    assert!(summary.managed && !summary.adopted);
    assert_eq!(
        secret["metadata"]["annotations"][annotations::OWNED],
        "data:header,data:jwt,data:who,label:app.kubernetes.io/managed-by,label:team,annotation:note"
    );
    let orphan = crate::fixtures::request(json!({"target": {"creationPolicy": "Orphan"}}));
    assert_eq!(first(&orphan)["metadata"]["ownerReferences"], json!([]));
}

#[test]
fn renew_is_bound_to_what_was_seen_and_gives_what_create_would() {
    let request = request(full());
    let mut secret = first(&request);
    let rendered = render(&request, &token(&request, T0 + 1800)).unwrap();
    let patch = json!(rendered.token_patch("secret-10", "10"));
    assert_eq!(patch["metadata"]["uid"], "secret-10");
    assert_eq!(patch["metadata"]["resourceVersion"], "10");
    assert!(patch.get("type").is_none() && patch["metadata"].get("ownerReferences").is_none());
    apply(&mut secret, &patch);
    let mut fresh = json!(rendered.create("shop", "s"));
    fresh["metadata"]["uid"] = "secret-10".into();
    fresh["metadata"]["resourceVersion"] = "10".into();
    assert_eq!(secret, fresh);
    assert_eq!(rendered.drift(&content(&secret)), None);
}

#[test]
fn replace_leaves_what_is_foreign_and_takes_back_what_was_ours() {
    let before = request(full());
    let mut secret = first(&before);
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "u-1"});
    secret["metadata"]["ownerReferences"]
        .as_array_mut()
        .unwrap()
        .push(owner.clone());
    secret["metadata"]["labels"]["theirs"] = "l".into();
    secret["metadata"]["annotations"]["theirs"] = "a".into();
    secret["metadata"]["finalizers"] = json!(["theirs.io/f"]);
    secret["data"]["theirs"] = "eA==".into();
    let after = request(json!({"target": {"name": "s", "creationPolicy": "Orphan"}}));
    let rendered = render(&after, &token(&after, T0)).unwrap();
    let seen = content(&secret);
    assert!(rendered.drift(&seen).is_some());
    let patch = rendered.full_patch(&seen, false);
    for (kind, key) in [
        ("/data", "jwt"),
        ("/data", "header"),
        ("/metadata/labels", "team"),
        ("/metadata/annotations", "note"),
    ] {
        assert_eq!(
            patch.pointer(kind).unwrap().get(key),
            Some(&Value::Null),
            "{kind} {key}"
        );
    }
    apply(&mut secret, &patch);
    assert_eq!(secret["metadata"]["ownerReferences"], json!([owner]));
    assert_eq!(secret["metadata"]["finalizers"], json!(["theirs.io/f"]));
    assert_eq!(
        secret["metadata"]["labels"],
        json!({"theirs": "l", (LABEL_MANAGED_BY): MANAGED_BY})
    );
    assert_eq!(secret["metadata"]["annotations"]["theirs"], "a");
    let keys: Vec<&String> = secret["data"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["theirs", "token"]);
    let seen = content(&secret);
    assert_eq!(rendered.drift(&seen), None);
    assert!(
        rendered.full_patch(&seen, false)["metadata"]
            .get("ownerReferences")
            .is_none()
    );

    // And back: our own ownerReference joins theirs.
    let rendered = render(&before, &token(&before, T0)).unwrap();
    apply(&mut secret, &rendered.full_patch(&seen, false));
    let owners = secret["metadata"]["ownerReferences"].as_array().unwrap();
    assert_eq!(owners.len(), 2);
    assert_eq!(owners[0], owner);
    assert_eq!(owners[1]["uid"], UID);
    assert_eq!(rendered.drift(&content(&secret)), None);
}

#[test]
fn a_reserved_annotation_is_never_taken_for_stale() {
    let request = request(json!({}));
    let mut secret = first(&request);
    secret["metadata"]["annotations"][annotations::OWNED] = format!(
        "annotation:{},data:token,nonsense,data:gone",
        annotations::ADOPTED
    )
    .into();
    secret["metadata"]["annotations"][annotations::ADOPTED] = "true".into();
    let rendered = render(&request, &token(&request, T0)).unwrap();
    let patch = rendered.full_patch(&content(&secret), false);
    apply(&mut secret, &patch);
    assert_eq!(secret["metadata"]["annotations"][annotations::ADOPTED], "true");
    assert!(secret["data"].get("token").is_some());
}

#[test]
fn an_owner_of_another_group_is_not_ours() {
    let request = request(full());
    let mut secret = first(&request);
    let mut other = secret["metadata"]["ownerReferences"][0].clone();
    other["apiVersion"] = "idtoken.dev.example.com/v1".into();
    other["uid"] = "u-1".into();
    other["controller"] = false.into();
    let owners = secret["metadata"]["ownerReferences"].as_array_mut().unwrap();
    owners[0]["uid"] = "an-earlier-life".into();
    owners.push(other.clone());
    let rendered = render(&request, &token(&request, T0)).unwrap();
    let patch = rendered.full_patch(&content(&secret), false);
    apply(&mut secret, &patch);
    let owners = secret["metadata"]["ownerReferences"].as_array().unwrap();
    assert_eq!((owners.len(), &owners[0]), (2, &other));
    assert_eq!(owners[1]["uid"], UID);
}

#[test]
fn a_stale_owner_of_a_restored_secret_is_replaced() {
    let request = request(json!({}));
    let mut secret = first(&request);
    secret["metadata"]["ownerReferences"][0]["uid"] = "an-earlier-life".into();
    let rendered = render(&request, &token(&request, T0)).unwrap();
    assert_eq!(
        rendered.drift(&content(&secret)).as_deref(),
        Some("metadata.ownerReferences")
    );
    let patch = rendered.full_patch(&content(&secret), false);
    apply(&mut secret, &patch);
    assert_eq!(secret["metadata"]["ownerReferences"].as_array().unwrap().len(), 1);
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], UID);
}

#[test]
fn an_adopted_secret_is_not_owned_and_the_permission_is_consumed() {
    let request = request(json!({}));
    let mut secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"token": "b2xk", "other": "eA=="},
        "metadata": {"name": "billing", "namespace": "shop", "annotations": {(annotations::ADOPT): "billing"}},
    });
    stored(&mut secret, 7);
    let rendered = render(&request, &token(&request, T0)).unwrap();
    let patch = rendered.full_patch(&content(&secret), true);
    assert_eq!(
        patch["metadata"]["annotations"].get(annotations::ADOPT),
        Some(&Value::Null)
    );
    apply(&mut secret, &patch);
    let adopted = content(&secret);
    assert!(adopted.summary.adopted && adopted.summary.managed);
    assert_eq!(adopted.annotation(annotations::ADOPT), None);
    assert_eq!(
        secret["metadata"]
            .get("ownerReferences")
            .filter(|owners| *owners != &json!([])),
        None
    );
    assert_eq!(secret["data"]["other"], "eA==");
    assert_eq!(rendered.drift(&adopted), None);
    // A later write keeps it so.
    let later = render(&request, &token(&request, T0 + 1800)).unwrap();
    apply(&mut secret, &later.full_patch(&adopted, false));
    assert!(content(&secret).summary.adopted);
    assert_eq!(
        secret["metadata"]
            .get("ownerReferences")
            .filter(|owners| *owners != &json!([])),
        None
    );
}

#[test]
fn drift_finds_each_field() {
    let request = request(full());
    let rendered = render(&request, &token(&request, T0)).unwrap();
    let intact = first(&request);
    assert_eq!(rendered.drift(&content(&intact)), None);
    let mut fields: Vec<(String, String)> = Vec::new();
    for key in intact["data"].as_object().unwrap().keys() {
        fields.push((format!("/data/{key}"), format!("data[{key}]")));
    }
    for kind in ["labels", "annotations"] {
        for key in intact["metadata"][kind].as_object().unwrap().keys() {
            fields.push((
                format!("/metadata/{kind}/{}", key.replace('/', "~1")),
                format!("metadata.{kind}[{key}]"),
            ));
        }
    }
    assert_eq!(fields.len(), 3 + 2 + 10);
    for (pointer, name) in fields {
        let mut changed = intact.clone();
        *changed.pointer_mut(&pointer).unwrap() = "eA==".into();
        assert_eq!(
            rendered.drift(&content(&changed)),
            Some(name.clone()),
            "{name} changed"
        );
        let mut removed = intact.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = removed.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        parent.remove(&key.replace("~1", "/")).unwrap();
        assert_eq!(
            rendered.drift(&content(&removed)),
            Some(name.clone()),
            "{name} removed"
        );
    }
    let mut changed = intact;
    changed["metadata"]["ownerReferences"] = json!([]);
    assert_eq!(
        rendered.drift(&content(&changed)).as_deref(),
        Some("metadata.ownerReferences")
    );
}

#[test]
fn debug_shows_no_token() {
    let request = request(full());
    let token = token(&request, T0);
    let secret = first(&request);
    let shown = format!("{:?} {:#?}", content(&secret), token);
    let signature = token.expose().rsplit('.').next().unwrap();
    let encoded = secret["data"]["jwt"].as_str().unwrap();
    for part in [token.expose(), signature, encoded, &token.expose()[..40]] {
        assert!(!shown.contains(part), "{shown}");
    }
}

#[test]
fn sizes_are_limited() {
    let request = |text: &str, count: usize| {
        let mut request = request(json!({}));
        for n in 0..count {
            request
                .target
                .data
                .insert(format!("k{n:02}"), Template::parse(text).unwrap());
        }
        request
    };
    let of = |text: &str, count: usize| {
        let request = request(text, count);
        render(&request, &token(&request, T0)).err()
    };
    let literal = "x".repeat(60 * 1024);
    assert!(of(&literal, 8).is_none());
    let error = of(&literal, 9).unwrap();
    assert!(matches!(error, RenderError::TooLarge { size } if size > 9 * 60 * 1024));
    assert_eq!(error.reason(), reason::INVALID_SPEC);
    // 8 KiB of text can name the token a thousand times.
    let error = of(&"$(token)".repeat(1000), 1).unwrap();
    assert!(
        matches!(&error, RenderError::Template { key, source: TemplateError::TooLarge { .. } } if key == "k00")
    );
    assert!(!error.to_string().contains("eyJ"), "{error}");
}

#[test]
fn an_email_that_the_token_lacks_is_an_error() {
    let without = request(json!({"includeEmail": false}));
    let with = request(json!({"target": {"template": {"data": {"who": "$(email)"}}}}));
    let error = render(&with, &token(&without, T0)).err().unwrap();
    assert!(matches!(
        error,
        RenderError::Template {
            source: TemplateError::NoEmail,
            ..
        }
    ));
}
