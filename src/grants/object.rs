//! Pure: an IdTokenGrant as the API server shows it → what it grants, and the status that it should have.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::conditions::{STALLED, reason};
use crate::api::v1alpha1::{GrantRef, IdTokenGrantSpec, IdTokenGrantStatus};
use crate::classify::Classify;
use crate::grants::index::Grant;
use crate::grants::selector::invalid_entries;
use crate::text::redacted;

/// Most characters of the message of a condition: it quotes the grant.
const MAX_MESSAGE: usize = 1000;

/// An IdTokenGrant.
#[derive(Clone, Debug, PartialEq)]
pub struct GrantObject {
    /// Name and UID.
    pub id: GrantRef,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// The spec, or why this version cannot decode it. It grants nothing then, since an unknown field may narrow it.
    pub spec: Result<Arc<IdTokenGrantSpec>, String>,
    /// The status that it shows.
    pub status: IdTokenGrantStatus,
    problem: Option<GrantProblem>,
}

/// Why a grant, or a part of it, grants nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantProblem {
    /// Reason of the condition.
    pub reason: &'static str,
    /// What is wrong and what to do, bounded and without credentials.
    pub message: String,
}

impl GrantObject {
    /// A grant with what is wrong with it.
    pub fn new(
        id: GrantRef,
        generation: Option<i64>,
        spec: Result<IdTokenGrantSpec, String>,
        status: IdTokenGrantStatus,
    ) -> Self {
        let problem = match &spec {
            Ok(spec) => spec_problem(spec),
            Err(error) => Some(undecodable(error)),
        };
        Self {
            id,
            generation,
            // A copy has no spare capacity; a vector that was decoded has room for four.
            spec: spec.map(|spec| Arc::new(spec.clone())),
            status,
            problem,
        }
    }

    /// What it grants; none if it cannot be decoded.
    pub fn grant(&self) -> Option<Grant> {
        let spec = self.spec.as_ref().ok()?.clone();
        let id = self.id.clone();
        Some(Grant { id, spec })
    }

    /// Why it, or a part of it, grants nothing.
    pub fn problem(&self) -> Option<&GrantProblem> {
        self.problem.as_ref()
    }

    /// The status at `now` if the grant allows so many requests, or an unknown number; none if it is the status that it shows.
    pub fn outdated_status(&self, allowed: Option<i64>, now: Timestamp) -> Option<IdTokenGrantStatus> {
        let shown = self
            .status
            .conditions
            .iter()
            .find(|condition| condition.type_ == STALLED);
        let mut next = self.status.clone();
        next.conditions.retain(|condition| condition.type_ != STALLED);
        next.conditions.extend(
            self.problem
                .iter()
                .map(|problem| self.stalled(problem, shown, now)),
        );
        next.allowed_requests = allowed.or(next.allowed_requests);
        (next != self.status).then_some(next)
    }

    /// The condition; the one that is shown if it says the same. Operators of two versions may have two texts for it: neither corrects the
    /// other.
    fn stalled(&self, problem: &GrantProblem, shown: Option<&Condition>, now: Timestamp) -> Condition {
        let shown = shown.filter(|shown| shown.status == "True");
        if let Some(shown) = shown
            && shown.reason == problem.reason
            && shown.observed_generation == self.generation
        {
            return shown.clone();
        }
        Condition {
            type_: STALLED.to_owned(),
            status: "True".to_owned(),
            reason: problem.reason.to_owned(),
            message: problem.message.clone(),
            observed_generation: self.generation,
            last_transition_time: shown.map_or(Time(now), |shown| shown.last_transition_time.clone()),
        }
    }
}

fn undecodable(error: &str) -> GrantProblem {
    let text = format!(
        "this version of the operator cannot decode the grant, so it grants nothing: {error}; correct the spec, or upgrade the operator"
    );
    GrantProblem {
        reason: reason::INVALID_SPEC,
        message: redacted(&text, MAX_MESSAGE),
    }
}

/// Why parts of a grant grant nothing; none if every part is valid.
pub fn spec_problem(spec: &IdTokenGrantSpec) -> Option<GrantProblem> {
    let invalid: Vec<_> = invalid_entries(spec).collect();
    let empty = empty_parts(spec);
    if invalid.is_empty() && empty.is_empty() {
        return None;
    }
    let reason = invalid
        .first()
        .map_or(reason::INVALID_SPEC, |(_, error)| error.reason());
    let texts: Vec<String> = invalid
        .into_iter()
        .map(|(index, error)| format!("spec.from[{index}] grants nothing, since it {error}"))
        .chain(
            empty
                .into_iter()
                .map(|part| format!("{part} is empty, which grants nothing")),
        )
        .collect();
    let message = redacted(&texts.join("; "), MAX_MESSAGE);
    Some(GrantProblem { reason, message })
}

/// The lists and texts of a grant that are empty and match nothing. The schema refuses them; a grants file has none.
fn empty_parts(spec: &IdTokenGrantSpec) -> Vec<String> {
    let mut parts = Vec::new();
    let mut check = |field: String, texts: Option<&Vec<String>>, may_be_empty: bool| {
        let Some(texts) = texts else { return };
        let items = texts.iter().enumerate().filter(|(_, text)| text.is_empty());
        parts.extend(items.map(|(item, _)| format!("{field}[{item}]")));
        parts.extend((texts.is_empty() && !may_be_empty).then_some(field));
    };
    for (index, to) in spec.to.iter().enumerate() {
        check(
            format!("spec.to[{index}].serviceAccounts"),
            Some(&to.service_accounts),
            false,
        );
        check(format!("spec.to[{index}].audiences"), Some(&to.audiences), false);
        check(format!("spec.to[{index}].delegates"), to.delegates.as_ref(), true);
    }
    for (index, from) in spec.from.iter().enumerate() {
        parts
            .extend((from.namespace.as_deref() == Some("")).then(|| format!("spec.from[{index}].namespace")));
    }
    for (index, to) in spec.to.iter().enumerate() {
        let has_none = to.sources.as_ref().is_some_and(Vec::is_empty);
        parts.extend(has_none.then(|| format!("spec.to[{index}].sources")));
    }
    parts.extend(spec.from.is_empty().then(|| "spec.from".to_owned()));
    parts.extend(spec.to.is_empty().then(|| "spec.to".to_owned()));
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(from: Value) -> Result<IdTokenGrantSpec, String> {
        let to = json!([{"serviceAccounts": ["1"], "audiences": ["aud"]}]);
        Ok(serde_json::from_value(json!({"from": from, "to": to})).unwrap())
    }

    fn object(
        generation: i64,
        spec: Result<IdTokenGrantSpec, String>,
        status: IdTokenGrantStatus,
    ) -> GrantObject {
        let id = GrantRef {
            name: "a".to_owned(),
            uid: Some("u".to_owned()),
        };
        GrantObject::new(id, Some(generation), spec, status)
    }

    fn problem(from: Value) -> Option<GrantProblem> {
        object(1, spec(from), IdTokenGrantStatus::default()).problem
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn each_invalid_entry_is_named() {
        assert_eq!(
            problem(json!([{"namespace": "shop"}, {"allNamespaces": true}])),
            None
        );
        let empty = problem(json!([{"namespaceSelector": {}}, {"namespace": "shop"}, {}])).unwrap();
        assert_eq!(empty.reason, "EmptySelector");
        for part in [
            "spec.from[0] grants nothing",
            "allNamespaces: true",
            "spec.from[2] grants nothing",
        ] {
            assert!(empty.message.contains(part), "{part}: {}", empty.message);
        }
        assert!(!empty.message.contains("spec.from[1]"), "{}", empty.message);
        let many = vec![json!({"namespaceSelector": {"matchLabels": {"ä".repeat(60): "x"}}}); 64];
        let invalid = problem(Value::Array(many)).unwrap();
        assert_eq!(invalid.reason, "InvalidSpec");
        assert!(
            invalid.message.chars().count() <= MAX_MESSAGE + 1,
            "{}",
            invalid.message
        );
    }

    #[test]
    fn what_is_empty_is_named() {
        let grant = |from: Value, to: Value| -> IdTokenGrantSpec {
            serde_json::from_value(json!({"from": from, "to": to})).unwrap()
        };
        let shop = json!([{"namespace": "shop"}]);
        let to = |field: &str, value: Value| {
            let mut to = json!([{"serviceAccounts": ["1"], "audiences": ["aud"], "delegates": []}]);
            to[0][field] = value;
            to
        };
        let valid = to("delegates", json!([]));
        assert_eq!(spec_problem(&grant(shop.clone(), valid.clone())), None);
        for (from, to, part) in [
            (json!([]), valid.clone(), "spec.from is empty"),
            (shop.clone(), json!([]), "spec.to is empty"),
            (
                json!([{"namespace": ""}]),
                valid,
                "spec.from[0].namespace is empty",
            ),
            (
                shop.clone(),
                to("audiences", json!([])),
                "spec.to[0].audiences is empty",
            ),
            (
                shop.clone(),
                to("audiences", json!(["a", ""])),
                "spec.to[0].audiences[1] is empty",
            ),
            (
                shop.clone(),
                to("serviceAccounts", json!([])),
                "spec.to[0].serviceAccounts is empty",
            ),
            (
                shop.clone(),
                to("delegates", json!([""])),
                "spec.to[0].delegates[0] is empty",
            ),
            (shop, to("sources", json!([])), "spec.to[0].sources is empty"),
        ] {
            let problem = spec_problem(&grant(from, to)).unwrap();
            assert_eq!(problem.reason, "InvalidSpec");
            assert!(problem.message.starts_with(part), "{part}: {}", problem.message);
        }
    }

    #[test]
    fn a_grant_that_cannot_be_decoded_says_so() {
        let error = Err("unknown field `matchlabels`".to_owned());
        let object = object(2, error, IdTokenGrantStatus::default());
        assert!(object.grant().is_none());
        let status = object.outdated_status(Some(0), at(5)).unwrap();
        let stalled = &status.conditions[0];
        assert_eq!(
            (stalled.type_.as_str(), stalled.status.as_str()),
            ("Stalled", "True")
        );
        assert_eq!(
            (stalled.reason.as_str(), stalled.observed_generation),
            ("InvalidSpec", Some(2))
        );
        assert!(
            stalled.message.contains("unknown field `matchlabels`"),
            "{}",
            stalled.message
        );
    }

    #[test]
    fn a_status_is_written_once_and_the_condition_goes_with_the_problem() {
        let empty = || spec(json!([{"namespaceSelector": {}}]));
        let mut status = object(2, empty(), IdTokenGrantStatus::default())
            .outdated_status(None, at(5))
            .unwrap();
        assert_eq!(status.allowed_requests, None);
        assert_eq!(
            object(2, empty(), status.clone()).outdated_status(None, at(6)),
            None
        );
        // The text of another version stays.
        status.conditions[0].message = "another text".to_owned();
        assert_eq!(
            object(2, empty(), status.clone()).outdated_status(None, at(6)),
            None
        );
        // Another generation is another text, and no transition.
        let status = object(3, empty(), status)
            .outdated_status(Some(1), at(7))
            .unwrap();
        assert_eq!(status.conditions[0].last_transition_time, Time(at(5)));
        assert_eq!(status.conditions[0].observed_generation, Some(3));
        let valid = spec(json!([{"namespace": "shop"}]));
        let next = object(4, valid, status).outdated_status(None, at(8)).unwrap();
        assert_eq!((next.conditions.len(), next.allowed_requests), (0, Some(1)));
    }
}
