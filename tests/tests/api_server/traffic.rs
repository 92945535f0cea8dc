//! Numbered probes without pause: what may pass must arrive, all of it, and what may not must never.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use npolicy_agent::rig::{Namespace, Outcome};

use crate::world::{PORT, World};

/// The first port at which probes are received: each pair of pods has its own.
const FIRST_PORT: u16 = 20_000;
/// Time between two probes of a pair over one family.
const EVERY: Duration = Duration::from_millis(4);
/// How long a socket of the receiver waits, and what is still under way at the end.
const WAIT: Duration = Duration::from_millis(300);
/// How long an echo over a running connection may take on a busy machine.
const ECHO_WITHIN: Duration = Duration::from_secs(10);

/// Probes between pairs of pods, over both families: datagrams from a new socket each, so that each is a new flow; and
/// where they are to pass, a TCP connection too that goes on all the time.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    lanes: Vec<Lane>,
    streams: Vec<(String, JoinHandle<npolicy_agent::rig::Result<io::Result<u64>>>)>,
}

/// The probes of one pair over one family.
struct Lane {
    what: String,
    outcome: Outcome,
    sender: JoinHandle<npolicy_agent::rig::Result<u64>>,
    receiver: JoinHandle<npolicy_agent::rig::Result<BTreeSet<u64>>>,
}

impl Traffic {
    /// Starts probes of these pairs.
    pub(crate) fn start(world: &World, pairs: &[(&str, &str, Outcome)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut lanes, mut streams) = (Vec::new(), Vec::new());
        for ((from, to, outcome), port) in pairs.iter().zip(FIRST_PORT..) {
            for address in world.sockets(to, port) {
                let what = format!("{from} to {to} {address}");
                let receiver = receive(&world.pod(to).namespace, address, stop.clone());
                let sender = send(&world.pod(from).namespace, address, stop.clone());
                lanes.push(Lane { what, outcome: *outcome, sender, receiver });
            }
            if *outcome == Outcome::Accept {
                for address in world.sockets(to, PORT) {
                    let stream = echo(&world.pod(from).namespace, address, stop.clone());
                    streams.push((format!("{from} to {to} {address}"), stream));
                }
            }
        }
        Self { stop, lanes, streams }
    }

    /// Stops, and says how many probes of each outcome there were.
    ///
    /// # Panics
    ///
    /// If one that may not pass arrived, or one that may did not.
    #[track_caller]
    pub(crate) fn stop(self) -> Counts {
        let (counts, wrong) = self.end();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        counts
    }

    /// Stops, and says how many probes of each outcome there were and what went wrong with them, a line each.
    pub(crate) fn end(self) -> (Counts, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut counts = Counts::default();
        let mut wrong = Vec::new();
        for Lane { what, outcome, sender, receiver } in self.lanes {
            let sent = sender.join().expect("a sender").expect("a namespace");
            let received = receiver.join().expect("a receiver").expect("a namespace");
            if outcome == Outcome::Accept {
                counts.accepted += sent;
                let lost: Vec<u64> = (0..sent).filter(|number| !received.contains(number)).collect();
                if !lost.is_empty() {
                    wrong.push(format!(
                        "{what}: {} of {sent} lost, the first {:?}",
                        lost.len(),
                        &lost[..lost.len().min(9)]
                    ));
                }
            } else {
                counts.denied += sent;
                if let Some(first) = received.first() {
                    wrong.push(format!("{what}: {} of {sent} delivered, the first {first}", received.len()));
                }
            }
        }
        for (what, stream) in self.streams {
            match stream.join().expect("a stream").expect("a namespace") {
                Ok(echoes) => counts.echoes += echoes,
                Err(error) => wrong.push(format!("{what}: a running connection: {error}")),
            }
        }
        (counts, wrong)
    }
}

/// How many probes there were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) denied: u64,
    pub(crate) echoes: u64,
}

fn receive(
    namespace: &Namespace,
    at: SocketAddr,
    stop: Arc<AtomicBool>,
) -> JoinHandle<npolicy_agent::rig::Result<BTreeSet<u64>>> {
    let socket = namespace.run(|| UdpSocket::bind(at)).expect("a namespace").expect("a socket");
    socket.set_read_timeout(Some(WAIT)).expect("a timeout");
    let work = move || {
        let (mut received, mut buffer) = (BTreeSet::new(), [0; 8]);
        loop {
            match socket.recv(&mut buffer) {
                Ok(_) => drop(received.insert(u64::from_be_bytes(buffer))),
                // Silence after the last sender has stopped.
                Err(_silence) if stop.load(Ordering::Relaxed) => return Ok(received),
                Err(_silence) => {}
            }
        }
    };
    namespace.spawn("receiver", work).expect("a thread")
}

fn send(namespace: &Namespace, to: SocketAddr, stop: Arc<AtomicBool>) -> JoinHandle<npolicy_agent::rig::Result<u64>> {
    let work = move || {
        let mut number = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.send_to(&number.to_be_bytes(), to).expect("a datagram");
            number += 1;
            thread::sleep(EVERY);
        }
        Ok(number)
    };
    namespace.spawn("sender", work).expect("a thread")
}

/// Sends a number again and again over one connection, and waits for its echo each time.
fn echo(
    namespace: &Namespace,
    to: SocketAddr,
    stop: Arc<AtomicBool>,
) -> JoinHandle<npolicy_agent::rig::Result<io::Result<u64>>> {
    let work = move || {
        let exchange = || {
            let mut stream = TcpStream::connect_timeout(&to, ECHO_WITHIN)?;
            stream.set_read_timeout(Some(ECHO_WITHIN))?;
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(&number.to_be_bytes())?;
                let mut answer = [0; 8];
                stream.read_exact(&mut answer)?;
                if u64::from_be_bytes(answer) != number {
                    return Err(io::Error::new(ErrorKind::InvalidData, "an echo out of order"));
                }
                number += 1;
                thread::sleep(5 * EVERY);
            }
            Ok(number)
        };
        Ok(exchange())
    };
    namespace.spawn("stream", work).expect("a thread")
}
