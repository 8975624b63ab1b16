//! The objects of a small API server: it creates, changes and deletes them as a real one does, and shows each change to who watches.

use std::collections::BTreeMap;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use serde_json::{Map, Value, json};

/// The namespace of the requests by which a test knows that the operator has handled all earlier events. It sorts after all others.
pub(crate) const MARKERS: &str = "zz-markers";
/// What an object's resourceVersion is a multiple of, so that the changes of markers, between two multiples, are not seen in it.
const STEP: u64 = 1000;

/// Which object, or which collection where the name is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Id {
    pub(crate) fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self {
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// Which objects of a collection are shown, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) collection: Id,
    /// `key=value`, all of which must match.
    pub(crate) labels: Vec<(String, String)>,
    /// The value of the field selector `metadata.name`.
    pub(crate) name: Option<String>,
    pub(crate) metadata_only: bool,
}

impl View {
    fn shows(&self, id: &Id, object: &Value) -> bool {
        let namespace = &self.collection.namespace;
        let labels = &object["metadata"]["labels"];
        id.resource == self.collection.resource
            && (namespace.is_empty() || id.namespace == *namespace)
            && self.name.as_ref().is_none_or(|name| id.name == *name)
            && self.labels.iter().all(|(key, value)| labels[key] == **value)
    }

    fn project(&self, object: &Value) -> Value {
        match self.metadata_only {
            true => {
                json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
            }
            false => object.clone(),
        }
    }

    /// The body of an answer; that of an error is the same in each form.
    pub(crate) fn answer(&self, (code, body): Answer) -> Value {
        match code {
            200..300 => self.project(&body),
            _ => body,
        }
    }
}

/// An HTTP status and a body.
pub(crate) type Answer = (u16, Value);

/// An error of the API server.
pub(crate) fn failure(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    (code, status)
}

struct Change {
    version: u64,
    id: Id,
    before: Option<Value>,
    after: Option<Value>,
}

struct Watcher {
    view: View,
    sender: UnboundedSender<String>,
}

/// All objects, all that happened to them, and who watches.
#[derive(Default)]
pub(crate) struct Objects {
    version: u64,
    created: u64,
    all: BTreeMap<Id, Value>,
    history: Vec<Change>,
    watchers: Vec<Watcher>,
}

impl Objects {
    pub(crate) fn get(&self, id: &Id) -> Option<&Value> {
        self.all.get(id)
    }

    /// The names of the objects in a collection.
    pub(crate) fn names(&self, resource: &str, namespace: &str) -> Vec<&str> {
        let ids = self.all.keys();
        ids.filter(|id| id.resource == resource && id.namespace == namespace)
            .map(|id| id.name.as_str())
            .collect()
    }

    fn next_version(&mut self, id: &Id) -> u64 {
        self.version = match id.namespace == MARKERS || id.name == MARKERS {
            true => self.version + 1,
            false => (self.version / STEP + 1) * STEP,
        };
        self.version
    }

    /// Puts an object in or, where there is none given, takes one out; and shows it to who watches.
    fn store(&mut self, id: &Id, object: Option<Value>) -> Value {
        let version = self.next_version(id);
        let mut object = object;
        if let Some(object) = &mut object {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
        }
        let before = match &object {
            Some(object) => self.all.insert(id.clone(), object.clone()),
            None => self.all.remove(id),
        };
        let change = Change {
            version,
            id: id.clone(),
            before,
            after: object,
        };
        self.watchers
            .retain(|watcher| match event(&watcher.view, &change) {
                Some(line) => watcher.sender.unbounded_send(line).is_ok(),
                None => !watcher.sender.is_closed(),
            });
        let shown = change.after.clone().or_else(|| change.before.clone());
        self.history.push(change);
        shown.unwrap_or_default()
    }

    /// Creates an object, with what an API server adds where it is absent.
    pub(crate) fn create(&mut self, id: &Id, mut object: Value) -> Value {
        if id.namespace != MARKERS {
            self.created += 1;
        }
        let metadata = &mut object["metadata"];
        for (key, value) in [
            ("name", json!(id.name)),
            ("namespace", json!(id.namespace)),
            ("uid", json!(format!("uid-{}", self.created))),
            ("creationTimestamp", json!("2026-01-01T00:00:00Z")),
            ("generation", json!(1)),
        ] {
            if metadata[key].is_null() && (key != "namespace" || !id.namespace.is_empty()) {
                metadata[key] = value;
            }
        }
        self.store(id, Some(object))
    }

    /// Changes an object as another client does. A change of its spec is a new generation.
    pub(crate) fn change(&mut self, id: &Id, change: impl FnOnce(&mut Value)) -> Value {
        let mut object = self.all.get(id).expect("the object to change").clone();
        let spec = object["spec"].clone();
        change(&mut object);
        if object["spec"] != spec {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
            object["metadata"]["generation"] = json!(generation + 1);
        }
        self.store(id, Some(object))
    }

    /// Deletes an object as another client does.
    pub(crate) fn delete(&mut self, id: &Id) {
        assert!(self.all.contains_key(id), "the object to delete: {id:?}");
        self.store(id, None);
    }

    /// A list. Where a page is asked for it holds one object, whatever the limit.
    pub(crate) fn list(&self, view: &View, limited: bool, after: Option<&str>) -> Value {
        let name = |id: &Id| format!("{}/{}", id.namespace, id.name);
        let mut items: Vec<(&Id, &Value)> = self
            .all
            .iter()
            .filter(|(id, object)| view.shows(id, object))
            .filter(|(id, _)| after.is_none_or(|after| *name(id) > *after))
            .collect();
        let more = limited && items.len() > 1;
        if more {
            items.truncate(1);
        }
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if let Some((id, _)) = items.last().filter(|_| more) {
            metadata["continue"] = json!(name(id));
        }
        let items: Vec<Value> = items.iter().map(|(_, object)| view.project(object)).collect();
        let (version, kind) = match view.metadata_only {
            true => ("meta.k8s.io/v1", "PartialObjectMetadataList"),
            false => ("v1", "List"),
        };
        json!({"apiVersion": version, "kind": kind, "metadata": metadata, "items": items})
    }

    /// A watch of what happens after a resourceVersion, with a bookmark first.
    pub(crate) fn watch(&mut self, view: View, since: u64) -> UnboundedReceiver<String> {
        let (sender, receiver) = unbounded();
        let bookmark = json!({"apiVersion": "v1", "kind": "Bookmark", "metadata": {"resourceVersion": since.to_string()}});
        let past = self.history.iter().filter(|change| change.version > since);
        let past = past.filter_map(|change| event(&view, change));
        for line in std::iter::once(line("BOOKMARK", &bookmark)).chain(past) {
            // Fails only where the other end is dropped.
            let _ = sender.unbounded_send(line);
        }
        self.watchers.push(Watcher { view, sender });
        receiver
    }

    /// Does what a call asks for, as an API server does.
    pub(crate) fn call(
        &mut self,
        method: &str,
        id: &Id,
        subresource: &str,
        dry_run: bool,
        body: &Value,
    ) -> Answer {
        // They are never read.
        if id.resource == "events" {
            return (if method == "POST" { 201 } else { 200 }, body.clone());
        }
        let mut id = id.clone();
        if method == "POST" {
            id.name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        }
        let Some(current) = self.all.get(&id).cloned() else {
            return match (method, dry_run) {
                ("POST", false) => (201, self.create(&id, body.clone())),
                ("POST", true) => (201, body.clone()),
                _ => {
                    let message = format!("{} \"{}\" not found", id.resource, id.name);
                    failure(404, "NotFound", &message)
                }
            };
        };
        let (uid, version) = match method {
            "DELETE" => (
                &body["preconditions"]["uid"],
                &body["preconditions"]["resourceVersion"],
            ),
            _ => (&body["metadata"]["uid"], &body["metadata"]["resourceVersion"]),
        };
        let differs =
            |wanted: &Value, field: &str| !wanted.is_null() && *wanted != current["metadata"][field];
        // The API server ignores a UID in a patch of a status.
        if (differs(uid, "uid") && subresource.is_empty()) || differs(version, "resourceVersion") {
            return failure(409, "Conflict", "the object has been modified");
        }
        let mut next = current.clone();
        match (method, subresource) {
            ("GET", _) => return (200, current),
            ("POST", _) => return failure(409, "AlreadyExists", "the object already exists"),
            ("DELETE", _) => {
                self.delete(&id);
                return (
                    200,
                    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
                );
            }
            ("PATCH", "") => merge(&mut next, body),
            ("PATCH", "status") => merge(&mut next["status"], &body["status"]),
            ("PUT", "status") => next["status"] = body["status"].clone(),
            _ => return failure(405, "MethodNotAllowed", "no script foresees this call"),
        }
        match dry_run {
            true => (200, next),
            false => (200, self.store(&id, Some(next))),
        }
    }
}

/// The line by which a watch shows a change; none where it does not.
fn event(view: &View, change: &Change) -> Option<String> {
    let shown = |object: &Option<Value>| {
        object
            .as_ref()
            .is_some_and(|object| view.shows(&change.id, object))
    };
    let type_ = match (shown(&change.before), shown(&change.after)) {
        (false, false) => return None,
        (false, true) => "ADDED",
        (true, true) => "MODIFIED",
        (true, false) => "DELETED",
    };
    let mut object = view.project(change.after.as_ref().or(change.before.as_ref())?);
    object["metadata"]["resourceVersion"] = json!(change.version.to_string());
    Some(line(type_, &object))
}

/// A line of a watch, with its type first as an API server has it.
fn line(type_: &str, object: &Value) -> String {
    format!("{{\"type\":\"{type_}\",\"object\":{object}}}\n")
}

/// Applies a merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        match value.is_null() {
            true => drop(target.as_object_mut().map(|target| target.remove(key))),
            false => merge(&mut target[key], value),
        }
    }
}
