//! The namespace and name of an object.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Namespace and name of an object. A clone shares the text, since each cache holds the key of each object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(Arc<str>);

impl ObjectKey {
    /// The key of the object `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        // Called often in each reconcile: `format!` would allocate three times.
        Self([namespace, "/", name].concat().into())
    }

    /// The key of the object with this metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        Self::new(namespace.unwrap_or_default(), name.unwrap_or_default())
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.split().0
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.split().1
    }

    /// Whether the object is in the namespace `scope`; always, if `scope` is empty.
    pub fn is_in(&self, scope: &str) -> bool {
        is_in_scope(self.namespace(), scope)
    }

    fn split(&self) -> (&str, &str) {
        // No name in Kubernetes has a slash
        // (<https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#path-segment-names>).
        self.0.split_once('/').unwrap_or_default()
    }
}

/// Whether `namespace` is in `scope`: a namespace, or empty for all namespaces.
pub fn is_in_scope(namespace: &str, scope: &str) -> bool {
    scope.is_empty() || namespace == scope
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
