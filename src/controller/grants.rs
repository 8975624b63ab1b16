//! What is granted at the moment: grants from objects and from a file, resolved against the namespaces' labels, and how fresh they are.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use serde::Deserialize;
use thiserror::Error;

use super::authorize::{Denied, Grant, GrantSet, Namespaces};
use super::validate::Request;
use crate::api::v1alpha1::{GrantStatus, IdTokenGrant, IdTokenGrantSpec};

/// Most bytes of a grants file; a ConfigMap holds 1 MiB.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Why a grants file is not used.
#[derive(Debug, Error)]
pub enum GrantsFileError {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    /// It is too large.
    #[error("it has {0} bytes, more than {MAX_FILE}")]
    TooLarge(u64),
    /// It is not a list of grants.
    #[error("it must be a YAML list of {{name, from, to}}, each as an IdTokenGrant's spec: {0}")]
    Parse(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileGrant {
    name: String,
    from: Vec<crate::api::v1alpha1::GrantFrom>,
    to: Vec<crate::api::v1alpha1::GrantTo>,
}

/// Parses a grants file: a YAML list of grants, each with a `name` beside the fields of an IdTokenGrant's spec.
///
/// # Errors
/// It is no such list; unknown fields are refused, since one that is overlooked could grant more than was meant.
pub fn parse_file(yaml: &str) -> Result<Vec<Grant>, GrantsFileError> {
    if yaml.trim().is_empty() {
        return Ok(Vec::new());
    }
    let grants: Vec<FileGrant> =
        serde_saphyr::from_str(yaml).map_err(|error| GrantsFileError::Parse(error.to_string()))?;
    let grant = |grant: FileGrant| Grant {
        id: GrantStatus {
            name: format!("file:{}", grant.name),
            uid: None,
        },
        spec: Arc::new(IdTokenGrantSpec {
            from: grant.from,
            to: grant.to,
        }),
    };
    Ok(grants.into_iter().map(grant).collect())
}

/// Reads and parses a grants file.
///
/// # Errors
/// It cannot be read, or is no list of grants.
pub fn read_file(path: &Path) -> Result<Vec<Grant>, GrantsFileError> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(GrantsFileError::TooLarge(size));
    }
    parse_file(&std::fs::read_to_string(path)?)
}

#[derive(Debug, Default)]
struct Sources {
    file: Vec<Grant>,
    objects: HashMap<String, Grant>,
    namespaces: Namespaces,
    /// Last sign of life of the watches of grants and of namespaces; none where there is no such watch.
    seen: [Option<Timestamp>; 2],
    set: GrantSet,
}

/// Which watch gave a sign of life.
#[derive(Clone, Copy, Debug)]
pub enum Watched {
    /// IdTokenGrants.
    Grants = 0,
    /// Namespaces.
    Namespaces = 1,
}

/// All grants. Decisions take a read lock for one map look-up.
#[derive(Debug, Default)]
pub struct Grants(RwLock<Sources>);

impl Grants {
    /// Decides whether `request` may have its token, and by which grant; none where the source needs none.
    ///
    /// # Errors
    /// No grant allows it, or the grants are not known to be current.
    pub fn authorize(&self, request: &Request, now: Timestamp) -> Result<Option<GrantStatus>, Denied> {
        if request.token.source.granted_as().is_none() {
            return Ok(None);
        }
        let sources = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sources
            .set
            .authorize(&request.namespace, &request.name, &request.token, now)
            .map(Some)
    }

    fn change(&self, change: impl FnOnce(&mut Sources)) {
        let mut sources = self.0.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut sources);
        let all: Vec<Grant> = sources
            .file
            .iter()
            .chain(sources.objects.values())
            .cloned()
            .collect();
        sources.set = GrantSet::new(&all, &sources.namespaces, sources.oldest_seen());
    }

    /// A watch is alive at `now`.
    pub fn seen(&self, watched: Watched, now: Timestamp) {
        let mut sources = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sources.seen[watched as usize] = Some(now);
        if let Some(oldest) = sources.oldest_seen() {
            sources.set.seen_at(oldest);
        }
    }

    /// Takes the grants of the file.
    pub fn set_file(&self, grants: Vec<Grant>) {
        self.change(|sources| sources.file = grants);
    }

    /// Takes all IdTokenGrants.
    pub fn set_objects(&self, objects: Vec<IdTokenGrant>) {
        self.change(|sources| sources.objects = objects.into_iter().map(named).collect());
    }

    /// Takes one IdTokenGrant.
    pub fn apply(&self, object: IdTokenGrant) {
        self.change(|sources| sources.objects.extend([named(object)]));
    }

    /// Drops one IdTokenGrant.
    pub fn delete(&self, name: &str) {
        self.change(|sources| {
            sources.objects.remove(name);
        });
    }

    /// Takes all namespaces' labels.
    pub fn set_namespaces(&self, namespaces: Namespaces) {
        self.change(|sources| sources.namespaces = namespaces);
    }

    /// Takes or drops one namespace's labels. Says whether that changed anything.
    pub fn set_namespace(
        &self,
        name: &str,
        labels: Option<std::collections::BTreeMap<String, String>>,
    ) -> bool {
        let same = {
            let sources = self.0.read().unwrap_or_else(PoisonError::into_inner);
            sources.namespaces.get(name) == labels.as_ref()
        };
        if !same {
            self.change(|sources| match labels {
                Some(labels) => drop(sources.namespaces.insert(name.to_owned(), labels)),
                None => drop(sources.namespaces.remove(name)),
            });
        }
        !same
    }
}

impl Sources {
    fn oldest_seen(&self) -> Option<Timestamp> {
        self.seen.iter().flatten().min().copied()
    }
}

fn named(object: IdTokenGrant) -> (String, Grant) {
    let name = object.metadata.name.unwrap_or_default();
    let id = GrantStatus {
        name: name.clone(),
        uid: object.metadata.uid,
    };
    (
        name,
        Grant {
            id,
            spec: Arc::new(object.spec),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_grants_and_refuses_unknown_fields() {
        let yaml = "- name: shop\n  from: [{namespace: shop}]\n  to:\n  - serviceAccounts: [a@p.iam.gserviceaccount.com]\n    audiences: [aud]\n";
        let grants = parse_file(yaml).unwrap();
        assert_eq!(grants[0].id.name, "file:shop");
        assert_eq!(grants[0].spec.to[0].audiences, ["aud"]);
        assert!(parse_file(&yaml.replace("audiences", "audience")).is_err());
        assert!(parse_file(" \n").unwrap().is_empty());
    }
}
