//! The objects, and every change to them since the last compaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::kind::Kind;

/// Names an object: its kind, its namespace (empty where its kind has none) and its name. Ordered as lists are.
pub(super) type Key = (Kind, String, String);
/// Objects by name.
pub(super) type Objects = BTreeMap<Key, Arc<Value>>;

/// A change to one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// The resourceVersion it made.
    pub(super) revision: u64,
    pub(super) key: Key,
    /// What was there before, if anything.
    pub(super) before: Option<Arc<Value>>,
    /// What is there now, if anything.
    pub(super) after: Option<Arc<Value>>,
}

/// Every object at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    revision: u64,
    objects: Objects,
}

/// A revision that is not kept any more; holds the oldest that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Expired(pub(super) u64);

/// The objects and their history.
#[derive(Debug)]
pub(super) struct Store {
    revision: u64,
    /// Nothing before this revision is kept.
    oldest: u64,
    objects: Objects,
    /// Ascending by revision.
    history: Vec<Change>,
    /// The versions in which ClusterNetworkPolicies are served; none: their CRD is not installed.
    cluster_policy_versions: Vec<String>,
    random: fastrand::Rng,
}

/// The first resourceVersion; a real server's is never near 0 either, which means "any" in a request.
const FIRST_REVISION: u64 = 1_000;

impl Store {
    pub(super) fn new() -> Self {
        Self {
            revision: FIRST_REVISION,
            oldest: FIRST_REVISION,
            objects: Objects::new(),
            history: Vec::new(),
            cluster_policy_versions: Vec::new(),
            random: fastrand::Rng::with_seed(0),
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The versions in which a kind is served now; none if it is not.
    pub(super) fn versions(&self, kind: Kind) -> Vec<&str> {
        match kind {
            Kind::ClusterNetworkPolicy => self.cluster_policy_versions.iter().map(String::as_str).collect(),
            _ => vec!["v1"],
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Creates or replaces an object as it is; what only the server may say (uid, resourceVersion, generation, time of
    /// creation) is filled in. An object that is there already in this form stays, without a new resourceVersion.
    pub(super) fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        let before = self.objects.get(&key).cloned();
        let metadata = &mut object["metadata"];
        let old = before.as_deref().map_or(&Value::Null, |before| &before["metadata"]);
        for field in ["uid", "creationTimestamp"] {
            if metadata[field].is_null() {
                metadata[field] = match (&old[field], field) {
                    (Value::Null, "uid") => uid(&mut self.random).into(),
                    (Value::Null, _) => now().into(),
                    (kept, _) => kept.clone(),
                };
            }
        }
        if let Some(before) = &before {
            let is_respecified = before["spec"] != object["spec"];
            let generation = before["metadata"]["generation"].as_u64().unwrap_or(1);
            object["metadata"]["generation"] = (generation + u64::from(is_respecified)).into();
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if object == **before {
                return before.clone();
            }
        } else {
            object["metadata"]["generation"] = 1.into();
        }
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let after = Arc::new(object);
        self.objects.insert(key.clone(), after.clone());
        self.history.push(Change { revision: self.revision, key, before, after: Some(after.clone()) });
        after
    }

    /// Takes an object away and hands it over as it was last.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        self.revision += 1;
        self.history.push(Change {
            revision: self.revision,
            key: key.clone(),
            before: Some(before.clone()),
            after: None,
        });
        Some(before)
    }

    /// Serves ClusterNetworkPolicies in these versions; none: their CRD and all of them go.
    pub(super) fn serve_cluster_policies(&mut self, versions: &[&str]) {
        self.cluster_policy_versions = versions.iter().map(|&version| version.to_owned()).collect();
        if self.cluster_policy_versions.is_empty() {
            let keys: Vec<Key> =
                self.objects.keys().filter(|key| key.0 == Kind::ClusterNetworkPolicy).cloned().collect();
            for key in keys {
                self.remove(&key);
            }
        }
    }

    /// The objects as they were at a revision that is kept.
    pub(super) fn at(&self, revision: u64) -> Result<Objects, Expired> {
        let mut objects = self.objects.clone();
        for change in self.since(revision)?.iter().rev() {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }

    /// The changes after a revision that is kept, or after one that has not been reached, which are none.
    pub(super) fn since(&self, revision: u64) -> Result<&[Change], Expired> {
        if revision < self.oldest {
            return Err(Expired(self.oldest));
        }
        Ok(&self.history[self.history.partition_point(|change| change.revision <= revision)..])
    }

    /// A revision that is so many changes old, or as old as any that is kept.
    pub(super) fn back(&self, changes: u64) -> u64 {
        self.revision.saturating_sub(changes).max(self.oldest)
    }

    /// Forgets every change.
    pub(super) fn compact(&mut self) {
        self.oldest = self.revision;
        self.history.clear();
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { revision: self.revision, objects: self.objects.clone() }
    }

    /// Makes everything what it was, the revision too, as if from a backup: nothing else is known afterwards.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        let Snapshot { revision, objects } = snapshot.clone();
        self.revision = revision;
        self.objects = objects;
        self.compact();
    }
}

/// The time, as objects say it.
pub(super) fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).expect("now must be a time").to_string()
}

fn uid(random: &mut fastrand::Rng) -> String {
    let bits = random.u128(..);
    let part = |shift: u32, digits: usize| {
        format!("{:0digits$x}", (bits >> shift) & ((1_u128 << (4 * digits)) - 1), digits = digits)
    };
    format!("{}-{}-4{}-8{}-{}", part(96, 8), part(80, 4), part(68, 3), part(56, 3), part(0, 12))
}
