//! What can happen in the model.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::api::{LABEL_MANAGED_BY, annotations as notes};
use crate::controller::cache::Standing;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Upstream {
    Ok,
    Rejected,
    Transient,
    /// Transient, with a `Retry-After` of so many seconds.
    Asked(u64),
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// A merge patch of the spec.
    Spec(Value),
    /// A new value of the annotation that asks for a renewal.
    Renew(u8),
    /// A merge patch of the Secret, by another client.
    Secret(Value),
    Delete,
    Upstream(Upstream),
    Restart,
    /// This machine's clock is set to so many seconds before or after Google's.
    Clock(i64),
    /// Seconds that pass.
    Wait(i64),
    Grant(bool),
    /// The API server refuses the status that follows a write.
    StatusLost,
    /// Whether another request comes before this one at the Secret.
    Rival(bool),
    /// What the cache says of the request. A relist has shown the request and not yet its Secret.
    Standing(Standing),
    /// Whether memory has no place for the Secret.
    Lacking(bool),
    /// Whether another client's Secret stands under the name, without the label that the watch is limited to. A user deletes it.
    Foreign(bool),
    /// The request is deleted and created again, from a backup with its status or without one. Its Secret stays.
    Recreate {
        with_status: bool,
    },
    /// An older version led, which trusted what the Secret says of its token, and whose status has no digest.
    OlderVersion,
    /// A status or the source says for how many seconds the source returns the same token.
    Repeats(i64),
    /// Another replica leads, issues a token and loses the lead again. The watch shows it only at the next [`Action::Watch`].
    OtherLeader,
    /// The watch catches up.
    Watch,
}

pub(crate) fn act() -> impl Strategy<Value = Action> {
    let spec = select(vec![
        json!({"audience": "https://a.run.app"}),
        json!({"audience": "https://b.run.app"}),
        json!({"audience": "not an audience"}),
        json!({"includeEmail": false}),
        json!({"includeEmail": null}),
        json!({"renewBefore": "10m"}),
        json!({"renewBefore": "3h"}),
        json!({"renewBefore": "0s"}),
        json!({"renewBefore": null}),
        json!({"suspend": true}),
        json!({"suspend": false}),
        json!({"target": {"template": {"data": {"header": "Bearer $(token)"}}}}),
        json!({"target": {"template": {"data": {"header": null, "until": "$(expirationTime)"}}}}),
        json!({"target": {"template": {"metadata": {"labels": {"team": "shop"}}}}}),
        json!({"target": {"template": null}}),
        json!({"target": {"key": "jwt"}}),
        json!({"target": {"key": null}}),
        json!({"target": {"creationPolicy": "Orphan"}}),
        json!({"target": {"creationPolicy": null}}),
        json!({"audience": "https://b.run.app", "target": {"template": {"data": {"header": null}}}}),
        json!({"audience": "https://a.run.app", "target": {"template": {"data": {"header": "$(token)"}}}}),
    ]);
    let secret = select(vec![
        json!({"data": {"token": "bm8gdG9rZW4="}}),
        json!({"data": {"token": null}}),
        json!({"data": {"header": "eA=="}}),
        json!({"data": null}),
        json!({"data": {"foreign": "eA=="}}),
        json!({"metadata": {"labels": {"foreign": "x"}}}),
        json!({"metadata": {"labels": {(LABEL_MANAGED_BY): null}}}),
        json!({"metadata": {"labels": {"team": null}}}),
        json!({"metadata": {"ownerReferences": null}}),
        json!({"metadata": {"annotations": {(notes::EXPIRES): "2001-01-01T00:00:00Z"}}}),
        json!({"metadata": {"annotations": {(notes::EXPIRES): "2999-01-01T00:00:00Z"}}}),
        json!({"metadata": {"annotations": {(notes::ISSUED): null}}}),
        json!({"metadata": {"annotations": {(notes::DIGEST): "0011223344556677"}}}),
        json!({"metadata": {"annotations": {(notes::RENEWS): null}}}),
        json!({"metadata": {"annotations": {(notes::RENDER_HASH): "x"}}}),
        json!({"metadata": {"annotations": {(notes::REQUEST_UID): "x"}}}),
    ]);
    prop_oneof![
        6 => spec.prop_map(Action::Spec),
        2 => (0_u8..3).prop_map(Action::Renew),
        4 => secret.prop_map(Action::Secret),
        1 => Just(Action::Delete),
        3 => select(vec![Upstream::Ok, Upstream::Rejected, Upstream::Transient, Upstream::Asked(90)]).prop_map(Action::Upstream),
        2 => Just(Action::Restart),
        6 => select(vec![1_i64, 60, 1200, 3000, 5000, 9000]).prop_map(Action::Wait),
        1 => (-1500_i64..1500).prop_map(Action::Clock),
        2 => any::<bool>().prop_map(Action::Grant),
        1 => Just(Action::StatusLost),
        1 => any::<bool>().prop_map(Action::Rival),
        3 => select(vec![Standing::Gone, Standing::Outdated, Standing::Relisting, Standing::Current]).prop_map(Action::Standing),
        1 => any::<bool>().prop_map(Action::Lacking),
        2 => any::<bool>().prop_map(Action::Foreign),
        2 => any::<bool>().prop_map(|with_status| Action::Recreate { with_status }),
        1 => Just(Action::OlderVersion),
        1 => (0_i64..9000).prop_map(Action::Repeats),
        1 => Just(Action::OtherLeader),
        1 => Just(Action::Watch),
    ]
}
