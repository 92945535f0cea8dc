//! Answers that say no: objects of kind `Status`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{HeaderValue, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use serde_json::{Value, json};

use super::kind::Kind;

/// A refusal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    code: u16,
    reason: &'static str,
    message: String,
    details: Value,
    retry_after_s: Option<u32>,
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: String) -> Self {
        Self { code, reason, message, details: Value::Null, retry_after_s: None }
    }

    /// What a status code says that nobody asked for.
    pub(super) fn injected(code: u16, retry_after_s: Option<u32>) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "access is forbidden"),
            404 => ("NotFound", "the server could not find the requested resource"),
            410 => ("Expired", "The provided continue parameter is too old"),
            422 => ("Invalid", "the request is invalid"),
            429 => ("TooManyRequests", "too many requests, please try again later"),
            500 => ("InternalError", "an error on the server has prevented the request from succeeding"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "the server was unable to return a response in the time allotted"),
            _ => ("", "the server says so"),
        };
        Self { retry_after_s, ..Self::new(code, reason, message.into()) }
    }

    pub(super) fn unauthorized() -> Self {
        Self::injected(401, None)
    }

    pub(super) fn not_found(kind: Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", kind.qualified())).about(kind, name)
    }

    pub(super) fn exists(kind: Kind, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.qualified())).about(kind, name)
    }

    pub(super) fn conflict(kind: Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified());
        Self::new(409, "Conflict", message).about(kind, name)
    }

    pub(super) fn forbidden(kind: Kind, name: &str, why: &str) -> Self {
        Self::new(403, "Forbidden", format!("{} \"{name}\" is forbidden: {why}", kind.qualified())).about(kind, name)
    }

    pub(super) fn invalid(kind: Kind, name: &str, why: &str) -> Self {
        Self::new(422, "Invalid", format!("{} \"{name}\" is invalid: {why}", kind.name())).about(kind, name)
    }

    /// Fields that another applier owns with another value.
    pub(super) fn owned(kind: Kind, name: &str, conflicts: &[(String, String)]) -> Self {
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(field, manager)| {
                json!({"reason": "FieldManagerConflict", "field": field, "message": format!("conflict with \"{manager}\"")})
            })
            .collect();
        let named: Vec<String> =
            conflicts.iter().map(|(field, manager)| format!("conflict with \"{manager}\": {field}")).collect();
        let count = conflicts.len();
        let message = format!("Apply failed with {count} conflict{}: {}", plural(count), named.join(", "));
        let mut failure = Self::new(409, "Conflict", message).about(kind, name);
        failure.details["causes"] = causes.into();
        failure
    }

    /// The options of a watch do not go together, or streaming lists are switched off.
    pub(super) fn invalid_options(kind: Kind, field: &str, why: &str) -> Self {
        let message = format!("{} \"\" is invalid: {field}: {why}", "ListOptions.meta.k8s.io");
        let mut failure = Self::new(422, "Invalid", message).about(kind, "");
        failure.details["causes"] = json!([{"reason": "FieldValueForbidden", "field": field, "message": why}]);
        failure
    }

    /// The revision that a watch or a page is to start at is not kept any more.
    pub(super) fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// A revision that has not been reached.
    pub(super) fn too_large(asked: u64, current: u64) -> Self {
        let mut failure = Self::new(504, "Timeout", format!("Too large resource version: {asked}, current: {current}"));
        failure.details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        });
        failure
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message.into())
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource".into())
    }

    pub(super) fn unsupported(media: &str) -> Self {
        let message = format!("the body of the request was in an unknown format - {media:?}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    fn about(mut self, kind: Kind, name: &str) -> Self {
        self.details = json!({"name": name, "group": kind.group(), "kind": kind.plural()});
        self
    }

    /// The object that says so.
    pub(super) fn object(&self) -> Value {
        let mut object = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            object["details"] = self.details.clone();
        }
        if let Some(seconds) = self.retry_after_s {
            object["details"]["retryAfterSeconds"] = seconds.into();
        }
        object
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).expect("a failure must have a status code");
        let retry_after: Vec<(HeaderName, HeaderValue)> =
            self.retry_after_s.map(|seconds| (RETRY_AFTER, seconds.into())).into_iter().collect();
        let mut response = (code, Json(self.object())).into_response();
        response.headers_mut().extend(retry_after);
        response
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
