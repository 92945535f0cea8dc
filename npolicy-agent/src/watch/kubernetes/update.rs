//! What the watches hand to the assembler.

use super::kind::Kind;
use super::wire::text;
use crate::model::{Diagnostic, Object, ObjectKey, PodKey, PolicyKey, ServiceKey, SliceKey};
use crate::watch::objects::{Reading, Tree, read_listed};

/// One thing that a watch says.
#[derive(Debug)]
pub(super) enum Update {
    /// A list of every object of the kind begins. It may begin again before it has ended; then the earlier one says nothing.
    Listing(Kind),
    /// An object is there, in a list or by itself.
    Object(Box<Observed>),
    /// An object is gone.
    Gone(ObjectKey),
    /// The list that began last is whole.
    Listed(Kind),
    /// The API server does not have the kind.
    Absent(Kind),
    /// The API server has the kind in versions alone that nobody here can read.
    Unreadable(Kind),
    /// What was heard of the kind may be old: its watch has broken off.
    Stale(Kind),
    /// The watch goes on, and what was missed has been heard.
    Current(Kind),
}

/// An object as it was read.
#[derive(Debug)]
pub(super) struct Observed {
    /// What it is called.
    pub(super) key: ObjectKey,
    /// The object; `None`: a policy of which nobody can say when or to whom it applies.
    pub(super) object: Option<Object>,
    /// Whether a part of it that bears on verdicts could not be read.
    pub(super) is_partial: bool,
    /// `metadata.uid` of a namespace.
    pub(super) uid: String,
    /// Whether it has a `metadata.deletionTimestamp`.
    pub(super) is_terminating: bool,
    /// What was found while it was read.
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Observed {
    /// Reads an object. What is not an object of the kind, or has no name, is said why.
    pub(super) fn read(tree: &Tree, kind: Kind) -> Result<Self, String> {
        let Reading { mut objects, mut unreadable, partial, diagnostics, .. } = read_listed(tree, kind.name());
        let (key, object) = match (objects.pop(), unreadable.pop()) {
            (Some((object, _)), _) => (object.key(), Some(object)),
            (None, Some((key, _))) => (key, None),
            (None, None) => {
                let said: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
                return Err(said.join("; "));
            }
        };
        Ok(Self {
            is_partial: !partial.is_empty(),
            uid: if kind == Kind::Namespace {
                text(tree, &["metadata", "uid"]).unwrap_or_default().to_owned()
            } else {
                String::new()
            },
            is_terminating: text(tree, &["metadata", "deletionTimestamp"]).is_some(),
            key,
            object,
            diagnostics,
        })
    }
}

/// What an object is called. `None`: it has no name.
pub(super) fn key_of(tree: &Tree, kind: Kind) -> Option<ObjectKey> {
    let name = text(tree, &["metadata", "name"])?.into();
    let namespace = || text(tree, &["metadata", "namespace"]).map(Into::into);
    Some(match kind {
        Kind::Pod => ObjectKey::Pod(PodKey { namespace: namespace()?, name }),
        Kind::Namespace => ObjectKey::Namespace(name),
        Kind::Node => ObjectKey::Node(name),
        Kind::Service => ObjectKey::Service(ServiceKey { namespace: namespace()?, name }),
        Kind::EndpointSlice => ObjectKey::EndpointSlice(SliceKey { namespace: namespace()?, name }),
        Kind::NetworkPolicy => ObjectKey::Policy(PolicyKey { namespace: namespace()?, name }),
        Kind::ClusterNetworkPolicy => ObjectKey::ClusterPolicy(name),
    })
}
