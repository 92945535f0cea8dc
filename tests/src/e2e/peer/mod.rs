//! The program of the test pods: it serves ports, reaches others, and says what came of it.
//!
//! ```text
//! runner -- kubectl exec -i --> peer ask == /peer.sock ==> peer serve (process 1 of the pod) -- sockets --> other pods
//! ```
//!
//! Everything runs in process 1: connections and streams live on when the runner's `kubectl exec` is cut.

mod background;
mod probe;
mod raw;
mod serve;
mod stream;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::thread;

use anyhow::{Context as _, bail};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{LocalSet, spawn_local};

use self::background::Background;
use super::message::{Answer, Ask, Request, Response};

/// Where process 1 takes questions, in the file system of its container.
const SOCKET: &str = "/peer.sock";

/// Runs `peer serve NAME`, which also needs the addresses of its pod in `POD_IPS`, or `peer ask`.
///
/// # Errors
///
/// Other arguments, or sockets that cannot be opened.
pub fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", name] => {
            let addresses = env::var("POD_IPS").context("POD_IPS names no addresses")?;
            let addresses: Result<Vec<IpAddr>, _> = addresses.split(',').map(str::parse).collect();
            serve(name, addresses.context("POD_IPS is no list of addresses")?)
        }
        ["ask"] => relay(),
        _ => bail!("usage: peer serve NAME | peer ask"),
    }
}

/// CLOCK_MONOTONIC in nanoseconds, which all processes of a machine share.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value| u64::try_from(value).expect("the monotonic clock must not be negative");
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// What process 1 knows of itself.
struct Peer {
    name: String,
    addresses: Vec<IpAddr>,
    served: Mutex<serve::Served>,
    background: Mutex<BTreeMap<String, Background>>,
    sinks: Mutex<BTreeMap<u16, stream::Sink>>,
}

fn serve(name: &str, addresses: Vec<IpAddr>) -> anyhow::Result<()> {
    let peer = Rc::new(Peer {
        name: name.to_owned(),
        addresses,
        served: Mutex::default(),
        background: Mutex::default(),
        sinks: Mutex::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A container that is started again keeps no files, but one that was stopped hard may have left the socket.
    let _ = fs::remove_file(SOCKET);
    LocalSet::new().block_on(&runtime, async {
        let listener = UnixListener::bind(SOCKET).with_context(|| format!("listen at {SOCKET}"))?;
        loop {
            let (connection, _) = listener.accept().await?;
            spawn_local(converse(peer.clone(), connection));
        }
    })
}

/// Answers the questions of one connection, each as soon as its answer is known.
async fn converse(peer: Rc<Peer>, connection: UnixStream) {
    let (reader, mut writer) = connection.into_split();
    let (answers, mut answered) = mpsc::unbounded_channel::<Response>();
    spawn_local(async move {
        while let Some(response) = answered.recv().await {
            let mut line = serde_json::to_string(&response).expect("an answer is JSON");
            line.push('\n');
            // Whoever asked is gone.
            if writer.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
    });
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let (peer, answers) = (peer.clone(), answers.clone());
        spawn_local(async move {
            let (id, answer) = match serde_json::from_str::<Request>(&line) {
                Ok(Request { id, ask }) => (id, peer.answer(ask).await),
                Err(error) => (0, Answer::Failed(format!("{line:?} is no question: {error}"))),
            };
            let _ = answers.send(Response { id, answer });
        });
    }
}

impl Peer {
    async fn answer(&self, ask: Ask) -> Answer {
        match self.try_answer(ask).await {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(format!("{error:#}")),
        }
    }

    async fn try_answer(&self, ask: Ask) -> anyhow::Result<Answer> {
        match ask {
            Ask::Facts => {
                let sctp = raw::has_sctp();
                Ok(Answer::Facts { addresses: self.addresses.clone(), sctp, now_ns: now_ns() })
            }
            Ask::Serve { ports } => {
                self.served.lock().await.add(&self.name, &self.addresses, &ports)?;
                Ok(Answer::Done)
            }
            Ask::Probe { target, attempts_ms } => probe::probe(target, &attempts_ms).await,
            Ask::Hold { name, to, every_ms } => self.begin(name, Background::hold(to, every_ms).await?).await,
            Ask::Watch { name, target, every_ms, patience_ms } => {
                self.begin(name, Background::watch(target, every_ms, patience_ms)).await
            }
            Ask::Blast { name, to, every_us, fresh } => self.begin(name, Background::blast(to, every_us, fresh)?).await,
            Ask::Sink { port } => {
                let mut sinks = self.sinks.lock().await;
                if let std::collections::btree_map::Entry::Vacant(place) = sinks.entry(port) {
                    place.insert(stream::Sink::open(&self.addresses, port)?);
                }
                Ok(Answer::Done)
            }
            Ask::Sunk { port, reset } => {
                let sinks = self.sinks.lock().await;
                let sink = sinks.get(&port).with_context(|| format!("port {port} is no sink"))?;
                Ok(Answer::Sunk(sink.read(reset)))
            }
            Ask::Report { name } => {
                let background = self.background.lock().await;
                Ok(background.get(&name).with_context(|| format!("there is no {name}"))?.report())
            }
            Ask::Stop { name } => {
                let ended = self.background.lock().await.remove(&name);
                Ok(ended.with_context(|| format!("there is no {name}"))?.report())
            }
        }
    }

    async fn begin(&self, name: String, background: Background) -> anyhow::Result<Answer> {
        // One of that name ends with its handle.
        self.background.lock().await.insert(name, background);
        Ok(Answer::Done)
    }
}

/// Hands lines from standard input to process 1, and its answers to standard output.
fn relay() -> anyhow::Result<()> {
    let mut socket = StdUnixStream::connect(SOCKET).with_context(|| format!("connect to {SOCKET}"))?;
    let mut to_server = socket.try_clone()?;
    thread::spawn(move || {
        // Whatever ends the questions, the answers to those asked are still to come.
        let _ = hand_on(&mut io::stdin().lock(), &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let mut output = io::stdout().lock();
    hand_on(&mut socket, &mut output)
}

/// Copies whatever comes, at once. The library's own copy splices between pipe and socket, and then a question may stay in
/// between until another one comes.
fn hand_on(from: &mut impl io::Read, to: &mut impl io::Write) -> anyhow::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => to.write_all(&buffer[..length])?,
        }
        to.flush()?;
    }
}
