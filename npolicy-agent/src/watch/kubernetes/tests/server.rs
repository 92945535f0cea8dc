//! A server that answers by a script.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, Response, StatusCode};
use futures_util::StreamExt;
use futures_util::stream;
use kube::Client;
use serde_json::{Value, json};

use super::super::request::Timing;

/// What the server answers to one request.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// A body, at once.
    Body(u16, Value),
    /// The same, with `Retry-After` in seconds.
    RetryAfter(u16, u64),
    /// Lines, and then the end.
    Lines(Vec<String>),
    /// Lines, and then nothing for ever.
    Held(Vec<String>),
    /// Bytes, and then a broken connection.
    Broken(String),
    /// Lines, each after a pause.
    Slowly(Duration, Vec<String>),
    /// Nothing for ever, not even a status.
    Silence,
}

/// How a list asks no more than whether the server has come as far as a version.
pub(super) const DOUBT: &str = "?limit=1&resourceVersionMatch=NotOlderThan";

/// The server. What is not scripted is an empty cluster without the custom resource.
#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    script: Arc<Mutex<HashMap<String, VecDeque<Answer>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        let router = axum::Router::new().fallback(move |request: Request<Body>| {
            let server = server.clone();
            async move { server.answer(request).await }
        });
        Client::new(router, "default")
    }

    /// Adds answers to requests for a path; the last is given for ever.
    pub(super) fn script(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().entry(path.to_owned()).or_default().extend(answers);
    }

    /// Replaces the answers to requests for a path.
    pub(super) fn replace(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().insert(path.to_owned(), answers.into_iter().collect());
    }

    /// The queries for a path so far.
    pub(super) fn asked(&self, path: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let of_path = asked.iter().filter_map(|uri| uri.strip_prefix(path));
        of_path.filter(|rest| rest.is_empty() || rest.starts_with('?')).map(str::to_owned).collect()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let uri = request.uri().to_string();
        let path = request.uri().path().to_owned();
        // Whether the server has gone back is asked beside all else, and has a script of its own.
        let is_doubt = uri.contains(DOUBT);
        if !is_doubt {
            self.asked.lock().unwrap().push(uri.clone());
        }
        let scripted = {
            let mut script = self.script.lock().unwrap();
            script
                .get_mut(&if is_doubt { format!("{path}{DOUBT}") } else { path.clone() })
                .and_then(|answers| if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() })
        };
        let answer = scripted.unwrap_or_else(|| {
            if is_doubt {
                page(1, "", &[])
            } else if path.starts_with("/apis/policy.networking.k8s.io") {
                status(404, "NotFound", "the server could not find the requested resource")
            } else if uri.contains("sendInitialEvents") {
                Answer::Held(vec![listed(1)])
            } else {
                Answer::Silence
            }
        });
        let respond = |status: u16| Response::builder().status(StatusCode::from_u16(status).unwrap());
        let lines =
            |lines: Vec<String>| stream::iter(lines).map(|line| Ok::<_, Infallible>(Bytes::from(format!("{line}\n"))));
        match answer {
            Answer::Body(code, body) => respond(code).body(Body::from(body.to_string())).unwrap(),
            Answer::RetryAfter(code, seconds) => {
                respond(code).header("Retry-After", seconds).body(Body::from("later")).unwrap()
            }
            Answer::Lines(all) => respond(200).body(Body::from_stream(lines(all))).unwrap(),
            Answer::Held(all) => respond(200).body(Body::from_stream(lines(all).chain(stream::pending()))).unwrap(),
            Answer::Broken(text) => {
                let parts = [Ok(Bytes::from(text)), Err(std::io::Error::other("connection reset"))];
                respond(200).body(Body::from_stream(stream::iter(parts))).unwrap()
            }
            Answer::Slowly(pause, all) => {
                let slow = lines(all).then(move |line| async move {
                    tokio::time::sleep(pause).await;
                    line
                });
                respond(200).body(Body::from_stream(slow.chain(stream::pending()))).unwrap()
            }
            Answer::Silence => std::future::pending().await,
        }
    }
}

/// The times of the real thing.
pub(super) fn timing() -> Timing {
    Timing::default()
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Answer {
    Answer::Body(code, json!({"kind": "Status", "code": code, "reason": reason, "message": message}))
}

/// A line of a watch.
pub(super) fn line(kind: &str, object: &Value) -> String {
    json!({"type": kind, "object": object}).to_string()
}

pub(super) fn bookmark(version: u64) -> String {
    line("BOOKMARK", &json!({"kind": "Any", "metadata": {"resourceVersion": version.to_string()}}))
}

/// The end of a streamed list.
pub(super) fn listed(version: u64) -> String {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
    line("BOOKMARK", &json!({"kind": "Any", "metadata": metadata}))
}

pub(super) fn page(version: u64, next: &str, items: &[Value]) -> Answer {
    let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
    Answer::Body(200, json!({"kind": "AnyList", "metadata": metadata, "items": items}))
}

pub(super) fn policy(name: &str, version: u64) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "resourceVersion": version.to_string()},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

pub(super) fn cluster_policy(name: &str, version: u64) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": version.to_string()},
        "spec": {
            "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
        },
    })
}
