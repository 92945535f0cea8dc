//! What a request is about: its path, its method and its query.

use std::collections::HashMap;

use axum::extract::Query;
use http::request::Parts;
use http::{Method, header};

use super::failure::Failure;
use super::kind::Kind;
use super::shape::Shape;

/// What is done with objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verb {
    /// Reads one.
    Get,
    /// Reads all, or a page of them.
    List,
    /// Follows changes.
    Watch,
    /// Makes one.
    Create,
    /// Replaces one.
    Update,
    /// Changes one, by whichever kind of patch.
    Patch,
    /// Deletes one, or all that are selected.
    Delete,
    /// Asks what the server serves: versions, groups, kinds.
    Discover,
}

/// A request, read.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) verb: Verb,
    /// None: the request is about the server.
    pub(super) resource: Option<Resource>,
    /// The parts of the path.
    pub(super) path: Vec<String>,
    pub(super) shape: Shape,
    pub(super) content_type: String,
    query: HashMap<String, String>,
}

/// Objects, by their path.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    pub(super) version: String,
    /// None: every namespace, or the kind has none.
    pub(super) namespace: Option<String>,
    /// None: all of them.
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

impl Target {
    /// Reads a request's head.
    pub(super) fn parse(head: &Parts) -> Result<Self, Failure> {
        let path: Vec<String> = head.uri.path().split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let Ok(Query(query)) = Query::<HashMap<String, String>>::try_from_uri(&head.uri) else {
            return Err(Failure::bad_request(format!("the query of {} cannot be read", head.uri)));
        };
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let resource = Resource::parse(&path);
        let is_watch = query.get("watch").is_some_and(|value| ["true", "1"].contains(&value.as_str()));
        let names_one = resource.as_ref().is_some_and(|resource| resource.name.is_some());
        let verb = match (&head.method, &resource) {
            (&Method::GET, None) => Verb::Discover,
            (&Method::GET, Some(_)) if is_watch => Verb::Watch,
            (&Method::GET, Some(_)) if names_one => Verb::Get,
            (&Method::GET, Some(_)) => Verb::List,
            (&Method::POST, Some(_)) if !names_one => Verb::Create,
            (&Method::PUT, Some(_)) if names_one => Verb::Update,
            (&Method::PATCH, Some(_)) if names_one => Verb::Patch,
            (&Method::DELETE, Some(_)) => Verb::Delete,
            _ => return Err(Failure::method_not_allowed()),
        };
        let shape = Shape::parse(text(header::ACCEPT));
        let content_type = text(header::CONTENT_TYPE);
        let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
        Ok(Self { verb, resource, path, shape, content_type, query })
    }

    /// A value of the query; empty if it is not there.
    pub(super) fn value(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// Whether a value of the query says yes.
    pub(super) fn is_set(&self, name: &str) -> bool {
        ["true", "1"].contains(&self.value(name))
    }

    /// A number of the query, if it is there.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        match self.value(name) {
            "" => Ok(None),
            text => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Failure::bad_request(format!("{name} is {text:?}, which is no number"))),
            },
        }
    }
}

impl Resource {
    fn parse(path: &[String]) -> Option<Self> {
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts[..] {
            ["api", version, ref rest @ ..] => ("", version, rest),
            ["apis", group, version, ref rest @ ..] => (group, version, rest),
            _ => return None,
        };
        let find = |plural: &str| Kind::ALL.into_iter().find(|kind| kind.group() == group && kind.plural() == plural);
        let owned = |text: &str| Some(text.to_owned());
        let (kind, namespace, rest) = match *rest {
            // A namespace's own subresources are not kinds.
            ["namespaces", namespace, plural, ref rest @ ..] if find(plural).is_some_and(Kind::is_namespaced) => {
                (find(plural)?, owned(namespace), rest)
            }
            [plural, ref rest @ ..] => (find(plural)?, None, rest),
            [] => return None,
        };
        let (name, subresource) = match *rest {
            [] => (None, None),
            [name] => (owned(name), None),
            [name, subresource] => (owned(name), owned(subresource)),
            _ => return None,
        };
        Some(Self { kind, version: version.into(), namespace, name, subresource })
    }
}
