//! A line to a test pod, through a `kubectl exec` that is kept open.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::api::Api;
use super::message::{Answer, Ask, Request, Response};

/// Questions under way by their numbers; none once the line is cut.
type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

/// A line to a pod. It is opened when it is first used, and again where it was cut.
pub struct Channel {
    api: Api,
    namespace: String,
    pod: String,
    line: AsyncMutex<Option<Line>>,
}

struct Line {
    stdin: ChildStdin,
    pending: Pending,
    next: u64,
    /// What kubectl said, for errors.
    errors: Arc<Mutex<String>>,
    _child: Child,
}

impl Channel {
    /// A line to this pod.
    pub fn new(api: &Api, namespace: &str, pod: &str) -> Self {
        let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
        Self { api: api.clone(), namespace, pod, line: AsyncMutex::default() }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// The pod cannot be reached, does not answer in time, or says that it cannot be done.
    pub async fn ask(&self, ask: Ask, within: Duration) -> anyhow::Result<Answer> {
        let named = || format!("ask {}/{}", self.namespace, self.pod);
        let answer = tokio::time::timeout(within, self.send_and_wait(ask)).await;
        match answer.with_context(|| format!("no answer within {within:.0?}")).and_then(|answer| answer) {
            Ok(Answer::Failed(reason)) => bail!("{}: {reason}", named()),
            Ok(answer) => Ok(answer),
            Err(error) => Err(error).with_context(named),
        }
    }

    async fn send_and_wait(&self, ask: Ask) -> anyhow::Result<Answer> {
        let mut line = self.line.lock().await;
        if line.as_ref().is_none_or(Line::is_cut) {
            *line = Some(self.open()?);
        }
        let open = line.as_mut().expect("it was opened");
        let answer = open.send(ask).await;
        let errors = open.errors.clone();
        drop(line);
        let answer = match answer {
            Ok(answer) => answer.await.context("the line was cut"),
            Err(error) => Err(error),
        };
        answer.with_context(|| errors.lock().unwrap_or_else(PoisonError::into_inner).trim_end().to_owned())
    }

    fn open(&self) -> anyhow::Result<Line> {
        let mut command = self.api.kubectl(&["exec", "-i", "-n", &self.namespace, &self.pod, "--", "/peer", "ask"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut stderr = child.stderr.take().expect("it is piped");
        let pending: Pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let errors = Arc::<Mutex<String>>::default();
        let said = errors.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                if said.len() < 4096 {
                    said.push_str(&String::from_utf8_lossy(&buffer[..length]));
                }
            }
        });
        let waiting = pending.clone();
        let stdout = stdout.expect("it is piped");
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(Response { id, answer }) = serde_json::from_str(&line) else { continue };
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(waiting) = waiting.as_mut().and_then(|waiting| waiting.remove(&id)) {
                    // Whoever asked has given up.
                    let _ = waiting.send(answer);
                }
            }
            // Dropping the senders tells those who wait.
            waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        });
        Ok(Line { stdin: stdin.expect("it is piped"), pending, next: 1, errors, _child: child })
    }
}

impl Line {
    fn is_cut(&self) -> bool {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    async fn send(&mut self, ask: Ask) -> anyhow::Result<oneshot::Receiver<Answer>> {
        let id = self.next;
        self.next += 1;
        let (sender, receiver) = oneshot::channel();
        match self.pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => bail!("the line is cut"),
        };
        let mut line = serde_json::to_string(&Request { id, ask })?;
        line.push('\n');
        self.stdin.write_all(line.as_bytes()).await.context("write to kubectl")?;
        Ok(receiver)
    }
}
