//! What is granted at the moment: grants from objects and from a file, resolved against the namespaces' labels, and how fresh they are.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use kube::ResourceExt;
use serde::Deserialize;
use thiserror::Error;

use crate::api::v1alpha1::{GrantRef, IdTokenGrant, IdTokenGrantSpec};
use crate::grants::index::{Grant, Namespaces};
use crate::grants::policy::{Denied, GrantSet};
use crate::request::ValidRequest;
use crate::sync::{read, write};

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
        id: GrantRef {
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
    /// Keys of the file's grants in the set.
    file: Vec<String>,
    /// What is known of each object: its spec and UID, and how many requests its status says that it allows.
    objects: HashMap<String, (Grant, Option<i64>)>,
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
pub struct GrantStore(RwLock<Sources>);

impl GrantStore {
    /// Decides whether `request` may have its token, and by which grant; none where the source needs none.
    ///
    /// # Errors
    /// No grant allows it, or the grants are not known to be current.
    pub fn authorize(&self, request: &ValidRequest, now: Timestamp) -> Result<Option<GrantRef>, Denied> {
        self.authorize_account(request, None, now)
    }

    /// The same, where the spec names no account and the source has told it.
    ///
    /// # Errors
    /// No grant allows it, or the grants are not known to be current.
    pub fn authorize_account(
        &self,
        request: &ValidRequest,
        account: Option<&str>,
        now: Timestamp,
    ) -> Result<Option<GrantRef>, Denied> {
        if request.token.source.grant_source().is_none() {
            return Ok(None);
        }
        let mut token = Cow::Borrowed(&request.token);
        if token.service_account.is_none() && account.is_some() {
            token.to_mut().service_account = account.map(str::to_owned);
        }
        let sources = read(&self.0);
        sources
            .set
            .authorize(&request.namespace, &request.name, &token, now)
            .map(Some)
    }

    /// Names of the IdTokenGrants that allow `request`.
    pub fn allowing(&self, request: &ValidRequest) -> Vec<String> {
        let sources = read(&self.0);
        let all = sources.set.allowing(&request.namespace, &request.token);
        let objects = all.into_iter().filter(|grant| grant.uid.is_some());
        objects.map(|grant| grant.name.clone()).collect()
    }

    /// How many IdTokenGrants there are.
    pub fn objects(&self) -> usize {
        let sources = read(&self.0);
        sources.objects.len()
    }

    /// The IdTokenGrants whose status does not say that they allow as many requests as `allowed` has for them, none being 0.
    pub fn untold(&self, allowed: &HashMap<String, i64>) -> Vec<(String, i64)> {
        let sources = read(&self.0);
        let count = |name: &String| allowed.get(name).copied().unwrap_or(0);
        let untold = sources
            .objects
            .iter()
            .filter(|(name, (_, told))| *told != Some(count(name)));
        untold.map(|(name, _)| (name.clone(), count(name))).collect()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Sources) -> T) -> T {
        change(&mut write(&self.0))
    }

    /// A watch is alive at `now`.
    pub fn seen(&self, watched: Watched, now: Timestamp) {
        let mut sources = write(&self.0);
        sources.seen[watched as usize] = Some(now);
        if let Some(oldest) = sources.oldest_seen() {
            sources.set.seen_at(oldest);
        }
    }

    /// Takes the grants of the file.
    pub fn set_file(&self, grants: Vec<Grant>) {
        self.change(|sources| {
            for key in std::mem::take(&mut sources.file) {
                sources.set.remove(&key);
            }
            for (position, grant) in grants.into_iter().enumerate() {
                // No object has a colon in its name, and two of a file may have the same.
                let key = format!("file:{position}");
                sources.set.insert(&key, grant);
                sources.file.push(key);
            }
        });
    }

    /// Takes all IdTokenGrants.
    pub fn set_objects(&self, objects: Vec<IdTokenGrant>) {
        self.change(|sources| {
            let alive: HashSet<String> = objects.iter().map(ResourceExt::name_any).collect();
            let gone: Vec<String> = sources
                .objects
                .keys()
                .filter(|name| !alive.contains(*name))
                .cloned()
                .collect();
            for name in gone {
                sources.drop_object(&name);
            }
            for object in objects {
                sources.take_object(object);
            }
        });
    }

    /// Takes one IdTokenGrant. Says whether anything but its status changed.
    pub fn apply(&self, object: IdTokenGrant) -> bool {
        self.change(|sources| sources.take_object(object))
    }

    /// Drops one IdTokenGrant.
    pub fn delete(&self, name: &str) {
        self.change(|sources| sources.drop_object(name));
    }

    /// Takes all namespaces' labels.
    pub fn set_namespaces(&self, namespaces: Namespaces) {
        self.change(|sources| sources.set.set_namespaces(namespaces));
    }

    /// Takes or drops one namespace's labels. Says whether that changed anything.
    pub fn set_namespace(&self, name: &str, labels: Option<BTreeMap<String, String>>) -> bool {
        self.change(|sources| sources.set.set_namespace(name, labels))
    }
}

impl Sources {
    fn oldest_seen(&self) -> Option<Timestamp> {
        self.seen.iter().flatten().min().copied()
    }

    fn take_object(&mut self, object: IdTokenGrant) -> bool {
        let told = object.status.as_ref().and_then(|status| status.allowed_requests);
        let (name, grant) = named(object);
        let same = self
            .objects
            .get(&name)
            .is_some_and(|(known, _)| known.id == grant.id && known.spec == grant.spec);
        if !same {
            self.set.insert(&name, grant.clone());
        }
        self.objects.insert(name, (grant, told));
        !same
    }

    fn drop_object(&mut self, name: &str) {
        self.objects.remove(name);
        self.set.remove(name);
    }
}

fn named(object: IdTokenGrant) -> (String, Grant) {
    let name = object.metadata.name.unwrap_or_default();
    let id = GrantRef {
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

    fn object(name: &str, audience: &str, allowed: Option<i64>) -> IdTokenGrant {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenGrant", "metadata": {"name": name, "uid": name},
            "spec": {"from": [{"namespace": "shop"}], "to": [{"serviceAccounts": ["a@p.example"], "audiences": [audience]}]},
            "status": {"allowedRequests": allowed},
        }))
        .unwrap()
    }

    #[test]
    fn a_status_is_told_once_and_wakes_nobody() {
        let grants = GrantStore::default();
        let counts: HashMap<String, i64> = [("a".to_owned(), 2), ("gone".to_owned(), 1)].into();
        grants.set_objects(vec![object("a", "aud", None), object("b", "aud", Some(0))]);
        assert_eq!(grants.untold(&counts), [("a".to_owned(), 2)]);
        assert!(!grants.apply(object("a", "aud", Some(2))));
        assert_eq!(grants.untold(&counts), []);
        assert!(grants.apply(object("a", "other", Some(2))));
        grants.set_objects(vec![object("b", "aud", Some(0))]);
        assert_eq!(grants.untold(&HashMap::new()), []);
    }

    #[test]
    fn both_watches_must_be_alive() {
        let grants = GrantStore::default();
        let request = crate::fixtures::request(serde_json::json!({}));
        let spec = &request.token;
        let mut grant = object("a", &spec.audience, None);
        grant.spec.from[0].namespace = Some(request.namespace.clone());
        grant.spec.to[0].service_accounts = spec.service_account.clone().into_iter().collect();
        grants.set_objects(vec![grant]);
        let at = |seconds| Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(seconds);
        let decide = |now| {
            grants
                .authorize(&request, at(now))
                .map_err(|denied| denied.reason())
        };
        grants.seen(Watched::Grants, at(0));
        grants.seen(Watched::Namespaces, at(0));
        assert!(decide(300).is_ok());
        for (watched, other) in [
            (Watched::Grants, Watched::Namespaces),
            (Watched::Namespaces, Watched::Grants),
        ] {
            grants.seen(watched, at(0));
            grants.seen(other, at(1000));
            assert_eq!(decide(1001).unwrap_err(), "GrantsUnavailable");
            grants.seen(watched, at(1000));
            assert!(decide(1001).is_ok());
        }
    }
}
