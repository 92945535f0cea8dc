//! What a test pod does on and on: connections that must live, probes without pause, streams.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, spawn_local};

use super::super::message::{Answer, Outcome, Target, Watched};
use super::now_ns;
use super::probe::attempt;
use super::stream::Blast;

/// One of them; it ends when this is dropped.
pub(super) enum Background {
    Hold { held: Rc<RefCell<Held>>, tasks: Vec<AbortHandle> },
    Watch { watched: Rc<RefCell<Watched>>, task: AbortHandle },
    Blast(Blast),
}

/// How a connection fares.
pub(super) struct Held {
    sent: u64,
    echoed: u64,
    last: Instant,
    longest: Duration,
    ended: Option<String>,
}

impl Held {
    fn end(&mut self, why: String) {
        self.ended.get_or_insert(why);
    }
}

/// How long a connection may take to open.
const OPENING: Duration = Duration::from_secs(10);

impl Background {
    /// Opens a connection and keeps it busy.
    pub(super) async fn hold(to: SocketAddr, every_ms: u64) -> anyhow::Result<Self> {
        let connect = tokio::time::timeout(OPENING, TcpStream::connect(to));
        let stream = connect.await.with_context(|| format!("connect to {to}: silence"))?;
        let stream = stream.with_context(|| format!("connect to {to}"))?;
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
        let held = Held { sent: 0, echoed: 0, last: Instant::now(), longest: Duration::ZERO, ended: None };
        let held = Rc::new(RefCell::new(held));
        let sender = held.clone();
        let sending = spawn_local(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(every_ms));
            loop {
                ticks.tick().await;
                let number = sender.borrow().sent;
                if let Err(error) = writer.write_all(format!("{number}\n").as_bytes()).await {
                    sender.borrow_mut().end(format!("number {number} cannot be sent: {error}"));
                    return;
                }
                sender.borrow_mut().sent += 1;
            }
        });
        let receiver = held.clone();
        let receiving = spawn_local(async move {
            let mut lines = BufReader::new(reader).lines();
            loop {
                let line = lines.next_line().await;
                let mut held = receiver.borrow_mut();
                let expected = held.echoed.to_string();
                match line {
                    Ok(Some(line)) if line.split_whitespace().nth(1) == Some(&expected) => {
                        held.echoed += 1;
                        held.longest = held.longest.max(held.last.elapsed());
                        held.last = Instant::now();
                    }
                    Ok(Some(line)) => return held.end(format!("{line:?} came back for number {expected}")),
                    Ok(None) => return held.end("the server closed it".into()),
                    Err(error) => return held.end(error.to_string()),
                }
            }
        });
        Ok(Self::Hold { held, tasks: vec![sending.abort_handle(), receiving.abort_handle()] })
    }

    /// Probes a target on and on. A probe does not wait for the one before.
    pub(super) fn watch(target: Target, every_ms: u64, patience_ms: u64) -> Self {
        let watched = Rc::new(RefCell::new(Watched::default()));
        let shared = watched.clone();
        let task = spawn_local(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(every_ms));
            loop {
                ticks.tick().await;
                let shared = shared.clone();
                spawn_local(async move {
                    let began = now_ns();
                    let outcome = attempt(target, Duration::from_millis(patience_ms)).await;
                    let mut watched = shared.borrow_mut();
                    match outcome {
                        Ok((Outcome::Accept, _)) => watched.accepted.add(now_ns()),
                        Ok((Outcome::Deny, _)) => watched.denied.add(began),
                        Ok((Outcome::Refused, _)) | Err(_) => watched.refused.add(began),
                    }
                });
            }
        });
        Self::Watch { watched, task: task.abort_handle() }
    }

    /// Sends datagrams on and on.
    pub(super) fn blast(to: SocketAddr, every_us: u64, fresh: bool) -> anyhow::Result<Self> {
        Ok(Self::Blast(Blast::start(to, Duration::from_micros(every_us), fresh)?))
    }

    /// Writes records to a connection on and on.
    pub(super) async fn pour(to: SocketAddr, every_us: u64) -> anyhow::Result<Self> {
        let connect = tokio::time::timeout(OPENING, TcpStream::connect(to));
        let stream = connect.await.with_context(|| format!("connect to {to}: silence"))?;
        let stream = stream.with_context(|| format!("connect to {to}"))?.into_std()?;
        Ok(Self::Blast(Blast::pour(stream, Duration::from_micros(every_us))?))
    }

    /// When a stream sent this number.
    pub(super) fn sent_ns(&self, number: u64) -> anyhow::Result<Option<u64>> {
        match self {
            Self::Blast(blast) => Ok(blast.sent_ns(number)),
            Self::Hold { .. } | Self::Watch { .. } => bail!("it is no stream"),
        }
    }

    /// How it fares.
    pub(super) fn report(&self) -> Answer {
        match self {
            Self::Hold { held, tasks: _ } => {
                let held = held.borrow();
                let longest = held.longest.max(held.last.elapsed());
                let longest_gap_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
                Answer::Held { sent: held.sent, echoed: held.echoed, longest_gap_ms, ended: held.ended.clone() }
            }
            Self::Watch { watched, task: _ } => Answer::Watched(watched.borrow().clone()),
            Self::Blast(blast) => Answer::Blasted { sent: blast.sent() },
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        match self {
            Self::Hold { held: _, tasks } => tasks.iter().for_each(AbortHandle::abort),
            Self::Watch { watched: _, task } => task.abort(),
            Self::Blast(_) => {}
        }
    }
}
