//! Objects from files: every document by itself, so that a broken one does not take the others with it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_saphyr::{MessageFormatter, UserMessageFormatter};

use super::backends::derive_slices;
use super::objects::{Backing, NotEnforced, Tree, read_document};
use crate::model::{
    ClusterState, Diagnostic, EndpointSlice, Event, Object, ObjectKey, Place, ServiceKey, Severity, SliceKey,
};

/// File name endings that are read in a directory.
const ENDINGS: &[&str] = &["yaml", "yml", "json"];

/// Whether a file of a directory is read, by its name.
pub(super) fn is_manifest(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
}

/// A path that holds no manifests.
#[derive(Debug, thiserror::Error)]
#[error("read manifests from {}", path.display())]
pub struct ManifestError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Everything read from files at one time.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    objects: BTreeMap<ObjectKey, (Object, Place)>,
    unreadable: BTreeMap<ObjectKey, Place>,
    /// Objects but policies of which a part that bears on verdicts could not be read.
    partial: BTreeSet<ObjectKey>,
    /// What the Services among the objects say of the pods behind them.
    backings: BTreeMap<ServiceKey, Backing>,
    /// Those of the objects that are EndpointSlices which stand in no file.
    derived: BTreeSet<ObjectKey>,
    /// Those of the diagnostics that say so.
    derived_notes: Vec<Diagnostic>,
    files: BTreeSet<Arc<Path>>,
    broken_files: BTreeSet<Arc<Path>>,
    /// Whether the system refused some file: the next time it may not.
    was_refused: bool,
    diagnostics: Vec<Diagnostic>,
    digest: DefaultHasher,
}

impl Manifests {
    /// Reads files and directories, in this order; of a directory (not those below it) the files ending in `.yaml`, `.yml`
    /// and `.json`, sorted by name. Of an object that occurs twice, the later counts.
    ///
    /// # Errors
    /// A path that is named here and cannot be opened. What cannot be read behind it is a diagnostic.
    pub fn read(paths: &[PathBuf]) -> Result<Self, ManifestError> {
        let mut manifests = Self::default();
        let mut not_enforced = BTreeMap::new();
        for path in paths {
            let failed = |source| ManifestError { path: path.clone(), source };
            if path.is_dir() {
                let mut files = Vec::new();
                for entry in std::fs::read_dir(path).map_err(failed)? {
                    let file = entry.map_err(failed)?.path();
                    let is_manifest =
                        file.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
                    if is_manifest && !file.is_dir() {
                        files.push(file);
                    }
                }
                files.sort();
                for file in files {
                    match std::fs::read(&file) {
                        Ok(bytes) => manifests.add_file(file.into(), &bytes, &mut not_enforced),
                        Err(error) => {
                            manifests.was_refused = true;
                            manifests.add_broken_file(file.into(), 0, format!("cannot be read: {error}"));
                        }
                    }
                }
            } else {
                let bytes = std::fs::read(path).map_err(failed)?;
                manifests.add_file(path.as_path().into(), &bytes, &mut not_enforced);
            }
        }
        for (kind, place) in not_enforced {
            let instead = kind.instead.map_or_else(String::new, |instead| format!("; write it as {instead}"));
            manifests.diagnostics.push(Diagnostic {
                place: Some(place),
                severity: kind.severity,
                object: Some(kind.name.into()),
                field: None,
                message: format!("not enforced: objects of this kind are not read{instead}"),
            });
        }
        manifests.derive_slices();
        Ok(manifests)
    }

    /// Reads one text as if it were a file.
    pub fn from_text(file: &str, text: &str) -> Self {
        let mut manifests = Self::default();
        manifests.add_file(Path::new(file).into(), text.as_bytes(), &mut BTreeMap::new());
        manifests.derive_slices();
        manifests
    }

    /// The objects, each once, ascending by kind and name.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values().map(|(object, _)| object)
    }

    /// What was found, in the order of files and lines.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// Notes NetworkPolicies of namespaces that nothing else speaks of: they select nobody, be it for a mistyped namespace or
    /// for none.
    pub fn diagnose_namespaces(&self) -> Vec<Diagnostic> {
        let mut known = BTreeSet::new();
        for object in self.objects() {
            match object {
                Object::Namespace(namespace) => known.insert(&namespace.name),
                Object::Pod(pod) => known.insert(&pod.key.namespace),
                _ => false,
            };
        }
        let lone = self.objects.iter().filter_map(|(key, (_, place))| match key {
            ObjectKey::Policy(policy) if !known.contains(&policy.namespace) => Some((key, &policy.namespace, place)),
            _ => None,
        });
        let diagnose = |(key, namespace, place): (&ObjectKey, &Arc<str>, &Place)| Diagnostic {
            place: Some(place.clone()),
            severity: Severity::Note,
            object: Some(key.to_string().into()),
            field: Some("metadata.namespace".into()),
            message: match &**namespace {
                "default" => {
                    "namespace default, which is meant where none is written, has no Namespace and no pod here: \
                              the policy selects nobody"
                        .to_owned()
                }
                _ => format!("namespace {namespace} has no Namespace and no pod here: the policy selects nobody"),
            },
        };
        lone.map(diagnose).collect()
    }

    /// Whether a directory held a file to read.
    pub fn has_file_in(&self, directory: &Path) -> bool {
        self.files.iter().any(|file| file.parent() == Some(directory))
    }

    /// Tells readings of different files apart: a digest of what was read, names and bytes, in order.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// Policies that are there, but nobody can say to whom or when they apply.
    pub fn unreadable_policies(&self) -> impl Iterator<Item = &ObjectKey> {
        self.unreadable.keys()
    }

    /// Whether there was any file to read. A directory that was emptied, or is not mounted any more, has none.
    pub fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Whether the system refused to let some file be read, which is worth another try.
    pub fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// Whether every object was read, so that answers do not depend on one that was not.
    pub fn is_certain(&self) -> bool {
        self.diagnostics.iter().all(|diagnostic| diagnostic.severity < Severity::Error)
    }

    /// The cluster that these objects make up.
    pub fn state(&self) -> ClusterState {
        let mut state = ClusterState::default();
        for object in self.objects() {
            state.apply(Event::Upsert(object.clone()));
        }
        state
    }

    /// The changes from an earlier reading to this one.
    pub fn events_since(&self, previous: &Self) -> Vec<Event> {
        let gone = previous.objects.keys().filter(|key| !self.objects.contains_key(key)).cloned().map(Event::Delete);
        let changed = self
            .objects
            .iter()
            .filter(|(key, (object, _))| previous.objects.get(key).is_none_or(|(known, _)| known != object))
            .map(|(_, (object, _))| Event::Upsert(object.clone()));
        gone.chain(changed).collect()
    }

    /// Takes over the last good version of what cannot be read now: of a policy of which nobody can say to whom or when it
    /// applies, of another object that can be read in part alone, and of everything missing from a file of which
    /// something could not be read. An editing mistake thus opens nothing.
    #[must_use]
    pub fn or_last_good(mut self, previous: &Self) -> Self {
        self.forget_derived();
        for (key, (object, place)) in previous.objects.iter().filter(|(key, _)| !previous.derived.contains(key)) {
            let is_missing = !self.objects.contains_key(key)
                && (self.unreadable.contains_key(key) || self.broken_files.contains(&place.file));
            let is_better = self.partial.contains(key) && !previous.partial.contains(key);
            if !is_missing && !is_better {
                continue;
            }
            self.partial.remove(key);
            if let ObjectKey::Service(service) = key {
                match previous.backings.get(service) {
                    Some(backing) => self.backings.insert(service.clone(), backing.clone()),
                    None => self.backings.remove(service),
                };
            }
            self.diagnostics.push(Diagnostic {
                place: Some(place.clone()),
                severity: Severity::Warning,
                object: Some(key.to_string().into()),
                field: None,
                message: "its last good version stays in force".to_owned(),
            });
            self.objects.insert(key.clone(), (object.clone(), place.clone()));
        }
        self.derive_slices();
        self
    }

    fn forget_derived(&mut self) {
        for key in std::mem::take(&mut self.derived) {
            self.objects.remove(&key);
        }
        let notes = std::mem::take(&mut self.derived_notes);
        self.diagnostics.retain(|diagnostic| !notes.contains(diagnostic));
    }

    /// Gives backends to each Service that selects pods and has no EndpointSlice, and names each that has no backends for
    /// want of both.
    fn derive_slices(&mut self) {
        let mut given = BTreeSet::new();
        for object in self.objects() {
            if let Object::EndpointSlice(EndpointSlice { key, service: Some(name), .. }) = object {
                given.insert(ServiceKey { namespace: key.namespace.clone(), name: name.clone() });
            }
        }
        let mut derived = Vec::new();
        for (key, (object, place)) in &self.objects {
            let Object::Service(service) = object else { continue };
            if given.contains(&service.key) {
                continue;
            }
            let (severity, message) = match self.backings.get(&service.key) {
                Some(backing) => {
                    let pods = self.objects.values().filter_map(|(object, _)| match object {
                        Object::Pod(pod) => Some(pod),
                        _ => None,
                    });
                    let is_taken = |slice: &SliceKey| {
                        let key = ObjectKey::EndpointSlice(slice.clone());
                        self.objects.contains_key(&key) || derived.iter().any(|(known, _, _)| *known == key)
                    };
                    let found = derive_slices(&service.key, backing, pods, is_taken);
                    let message = found.to_string();
                    for slice in found.slices.into_iter().map(Object::EndpointSlice) {
                        derived.push((slice.key(), slice, place.clone()));
                    }
                    (Severity::Note, message)
                }
                None if service.has_address() => {
                    let message =
                        "no EndpointSlice of it is given and it selects no pods: it counts as having no backends";
                    (Severity::Warning, message.to_owned())
                }
                None => continue,
            };
            self.derived_notes.push(Diagnostic {
                place: Some(place.clone()),
                severity,
                object: Some(key.to_string().into()),
                field: None,
                message,
            });
        }
        for (key, slice, place) in derived {
            self.derived.insert(key.clone());
            self.objects.insert(key, (slice, place));
        }
        self.diagnostics.extend(self.derived_notes.iter().cloned());
    }

    fn add_file(&mut self, file: Arc<Path>, bytes: &[u8], not_enforced: &mut BTreeMap<&'static NotEnforced, Place>) {
        (&file, bytes).hash(&mut self.digest);
        self.files.insert(file.clone());
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let line = bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() as u32 + 1;
                return self.add_broken_file(file, line, "is not UTF-8; the file is ignored".to_owned());
            }
        };
        for (lines_before, document) in documents(text) {
            let mut tree = match parse(document) {
                Ok(Some(tree)) => tree,
                Ok(None) => continue,
                Err((line, problem)) => {
                    let message = format!("{problem}; the document is ignored");
                    self.add_broken_file(file.clone(), lines_before + line, message);
                    continue;
                }
            };
            tree.move_down(lines_before);
            let reading = read_document(&tree, Some(&file));
            if reading.diagnostics.iter().any(|found| found.severity >= Severity::Error) {
                self.broken_files.insert(file.clone());
            }
            self.diagnostics.extend(reading.diagnostics);
            for (object, line) in reading.objects {
                self.add_object(object, Place { file: file.clone(), line });
            }
            self.partial.extend(reading.partial);
            for (service, backing) in reading.backings {
                match backing {
                    Some(backing) => self.backings.insert(service, backing),
                    None => self.backings.remove(&service),
                };
            }
            for (key, line) in reading.unreadable {
                self.objects.remove(&key);
                self.unreadable.insert(key, Place { file: file.clone(), line });
            }
            for (kind, line) in reading.not_enforced {
                not_enforced.entry(kind).or_insert(Place { file: file.clone(), line });
            }
        }
    }

    fn add_object(&mut self, object: Object, place: Place) {
        let key = object.key();
        self.unreadable.remove(&key);
        self.partial.remove(&key);
        let name = key.to_string();
        if let Some((_, earlier)) = self.objects.insert(key, (object, place.clone())) {
            self.diagnostics.push(Diagnostic {
                place: Some(place),
                severity: Severity::Warning,
                object: Some(name.into()),
                field: None,
                message: format!("replaces the object of the same name at {earlier}"),
            });
        }
    }

    fn add_broken_file(&mut self, file: Arc<Path>, line: u32, message: String) {
        self.files.insert(file.clone());
        self.broken_files.insert(file.clone());
        let place = Some(Place { file, line });
        self.diagnostics.push(Diagnostic { place, severity: Severity::Error, object: None, field: None, message });
    }
}

/// Splits at the lines that start a document (`---` at the margin, YAML 1.2 section 9.1.2); gives each with the number of
/// lines before it. Those without content are left out.
fn documents(text: &str) -> Vec<(u32, &str)> {
    let mut starts = vec![(0, 0)];
    let mut offset = 0;
    for (line, content) in text.split_inclusive('\n').enumerate() {
        let rest = content.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            starts.push((line as u32, offset));
        }
        offset += content.len();
    }
    let ends = starts.iter().skip(1).map(|&(_, offset)| offset).chain([text.len()]).collect::<Vec<_>>();
    starts
        .into_iter()
        .zip(ends)
        .map(|((line, start), end)| (line, &text[start..end]))
        .filter(|(_, document)| document.split(['\n', '\r']).any(has_content))
        .collect()
}

fn has_content(line: &str) -> bool {
    let line = line.trim();
    !(line.is_empty() || line == "---" || line == "..." || line.starts_with('#') || line.starts_with('%'))
}

#[cfg(test)]
impl Tree {
    /// Parses one document of a test.
    pub(super) fn from_yaml(document: &str) -> Self {
        parse(document).unwrap_or_else(|(line, problem)| panic!("{line}: {problem}\n{document}")).expect("content")
    }
}

/// Parses one document; `None`: it holds nothing. An error comes with its line.
fn parse(document: &str) -> Result<Option<Tree>, (u32, String)> {
    let mut budget = serde_saphyr::Budget::default();
    // A cluster's objects make a long document; the reader's limits on depth and on what aliases expand to stay.
    budget.max_events = usize::MAX;
    budget.max_nodes = usize::MAX;
    budget.max_total_scalar_bytes = usize::MAX;
    let mut options = serde_saphyr::Options::default();
    options.budget = Some(budget);
    options.with_snippet = false;
    // As in YAML 1.2 and JSON: a pod may be called `y`, and what YAML 1.1 took for a truth value is text.
    options.strict_booleans = true;
    match serde_saphyr::from_str_with_options::<Tree>(document, options) {
        Ok(tree) if tree.value == super::objects::Value::Null => Ok(None),
        Ok(tree) => Ok(Some(tree)),
        Err(error) => {
            let line = error.location().map_or(1, |place| u32::try_from(place.line()).unwrap_or(u32::MAX)).max(1);
            // The message alone: it would name lines of the document, not of the file.
            Err((line, UserMessageFormatter.format_message(&error).replace(char::is_control, " ")))
        }
    }
}

#[cfg(test)]
mod tests;
