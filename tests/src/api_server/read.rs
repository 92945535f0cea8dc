//! Reading: one object, or all of them in pages.

use serde_json::{Value, json};

use super::failure::Failure;
use super::fault::{Fault, Faults};
use super::kind::Kind;
use super::selector::Scope;
use super::store::{Expired, Key, Store};
use super::target::{Resource, Target, Verb};

/// What a list is asked to be.
struct Request<'a> {
    kind: Kind,
    version: &'a str,
    /// The moment whose objects it holds.
    revision: u64,
    /// Where it goes on from, if an earlier page said so.
    after: Option<Key>,
    limit: Option<usize>,
}

/// Hands over one object.
pub(super) fn get(store: &Store, target: &Target, resource: &Resource) -> Result<Value, Failure> {
    let key = resource.key();
    let object = store.get(&key).ok_or_else(|| Failure::not_found(key.0, &key.2))?;
    Ok(target.shape.one(resource.kind, &resource.version, object))
}

/// Hands over every object of a kind that is asked for, or a page of them.
pub(super) fn list(store: &Store, faults: &Faults, target: &Target, resource: &Resource) -> Result<Value, Failure> {
    let kind = resource.kind;
    let scope = Scope::parse(resource.namespace.clone(), target.value("labelSelector"), target.value("fieldSelector"))?;
    let mut request = request(store, target, resource)?;
    let fault = faults.take(Some(kind), Verb::List, |fault| {
        matches!(fault, Fault::StaleList { .. } | Fault::EmptyList | Fault::PartialPage { .. }).then_some(fault)
    });
    match fault {
        Some(Fault::PartialPage { .. }) if request.after.is_some() => return Err(Failure::injected(410, None)),
        Some(Fault::PartialPage { items }) => request.limit = Some(items.max(1)),
        // A page that goes on is of its own moment. Nobody may be given less than a resourceVersion that they name.
        Some(Fault::StaleList { changes }) if request.after.is_none() && floor(target)?.is_none() => {
            request.revision = store.back(changes);
        }
        Some(Fault::EmptyList) => {
            let metadata = json!({"resourceVersion": store.revision().to_string()});
            return Ok(target.shape.list(kind, request.version, [].into_iter(), metadata));
        }
        _ => {}
    }
    page(store, target, &scope, &request)
}

fn page(store: &Store, target: &Target, scope: &Scope, request: &Request) -> Result<Value, Failure> {
    let Request { kind, version, revision, after, limit } = request;
    let expired = |Expired(oldest)| Failure::expired(*revision, oldest);
    let objects =
        if *revision == store.revision() { store.objects().clone() } else { store.at(*revision).map_err(expired)? };
    let is_next = |key: &Key| key.0 == *kind && after.as_ref().is_none_or(|after| key > after);
    let mut chosen = objects.iter().filter(|(key, object)| is_next(key) && scope.holds(object));
    let page: Vec<_> = chosen.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let (Some((_, namespace, name)), Some(_)) = (page.last().map(|(key, _)| key), chosen.next()) {
        metadata["continue"] = format!("{revision}/{namespace}/{name}").into();
    }
    Ok(target.shape.list(*kind, version, page.into_iter().map(|(_, object)| &**object), metadata))
}

/// The meaning of `resourceVersion`, `resourceVersionMatch`, `limit` and `continue`, as the API's concepts define them.
fn request<'a>(store: &Store, target: &Target, resource: &'a Resource) -> Result<Request<'a>, Failure> {
    let (kind, version) = (resource.kind, resource.version.as_str());
    // A server's cache, which version 0 is answered from, knows no pages.
    let limit = target.number("limit")?.filter(|&limit| limit > 0 && target.value("resourceVersion") != "0");
    let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut request = Request { kind, version, revision: store.revision(), after: None, limit };
    let token = target.value("continue");
    if !token.is_empty() {
        let parts: Vec<&str> = token.split('/').collect();
        let &[revision, namespace, name] = &parts[..] else {
            return Err(Failure::bad_request(format!("continue key is not valid: {token:?}")));
        };
        request.revision = revision.parse().map_err(|_| Failure::bad_request("continue key is not valid"))?;
        request.after = Some((kind, namespace.into(), name.into()));
        return Ok(request);
    }
    let Some(asked) = target.number("resourceVersion")? else { return Ok(request) };
    match target.value("resourceVersionMatch") {
        "Exact" if asked > store.revision() => Err(Failure::too_large(asked, store.revision())),
        "Exact" => Ok(Request { revision: asked, ..request }),
        "" | "NotOlderThan" if asked > store.revision() => Err(Failure::too_large(asked, store.revision())),
        "" | "NotOlderThan" => Ok(request),
        other => Err(Failure::invalid_options(kind, "resourceVersionMatch", &format!("unsupported value {other:?}"))),
    }
}

/// The resourceVersion that an answer must not be older than.
fn floor(target: &Target) -> Result<Option<u64>, Failure> {
    Ok(target.number("resourceVersion")?.filter(|&revision| revision > 0))
}

impl Resource {
    /// The name of the object that the path names.
    pub(super) fn key(&self) -> Key {
        (self.kind, self.namespace.clone().unwrap_or_default(), self.name.clone().unwrap_or_default())
    }
}
