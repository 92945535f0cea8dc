//! Streams of numbered and stamped records, and what counts them: datagrams, or bytes of a TCP connection. Each has a
//! thread: they measure microseconds.
//!
//! A record is its number and when it was sent, on CLOCK_MONOTONIC in nanoseconds, 8 bytes each, big-endian.

use std::io::{self, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::super::message::Sunk;
use super::now_ns;
use super::probe::own;

/// Records whose time of sending is kept: 13 seconds at 5,000 a second.
const KEPT: u64 = 1 << 16;
/// The first source port of fresh flows, which take each in turn; those below take a capability.
const FIRST_PORT: u16 = 1024;

type Record = [u8; 16];

fn record(number: u64, sent_ns: u64) -> Record {
    (u128::from(number) << 64 | u128::from(sent_ns)).to_be_bytes()
}

/// Sends until it is dropped.
pub(super) struct Blast {
    sent: Arc<Sent>,
    stop: Arc<AtomicBool>,
}

/// What was sent, and when.
struct Sent {
    count: AtomicU64,
    /// By number, modulo [`KEPT`].
    at_ns: Vec<AtomicU64>,
}

impl Blast {
    /// Sends datagrams. Fresh ones take one source port after the other, of all from 1024 on.
    pub(super) fn start(to: SocketAddr, every: Duration, fresh: bool) -> anyhow::Result<Self> {
        let mut socket = connected(own(to), to).with_context(|| format!("send to {to}"))?;
        let mut port = FIRST_PORT;
        Ok(Self::run(every, move |record| {
            // An error is an ICMP message about an earlier datagram, or a full queue: the number is missing at the sink.
            let _ = socket.send(record);
            if fresh {
                port = port.checked_add(1).unwrap_or(FIRST_PORT);
                // A port that another socket has is left out.
                if let Ok(new) = connected(SocketAddr::new(own(to).ip(), port), to) {
                    socket = new;
                }
            }
            true
        }))
    }

    /// Writes to a connection, each record at once. It is reset at the end: nothing is sent after that.
    pub(super) fn pour(mut stream: TcpStream, every: Duration) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        // A record that does not fit whole ends the stream: it was silent for very long.
        Ok(Self::run(every, move |record| matches!(stream.write(record), Ok(length) if length == record.len())))
    }

    /// Sends at this pace until `send` says that it is over.
    fn run(every: Duration, mut send: impl FnMut(&Record) -> bool + Send + 'static) -> Self {
        let sent = Sent { count: AtomicU64::new(0), at_ns: (0..KEPT).map(|_| AtomicU64::new(0)).collect() };
        let blast = Self { sent: Arc::new(sent), stop: Arc::default() };
        let (sent, stop) = (blast.sent.clone(), blast.stop.clone());
        thread::spawn(move || {
            // By default the kernel may add 50 microseconds to a sleep. Without it the pace is a little slower.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            let mut next = Instant::now();
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let sent_ns = now_ns();
                if !send(&record(number, sent_ns)) {
                    return;
                }
                sent.add(number, sent_ns);
                next += every;
                let now = Instant::now();
                match next.checked_duration_since(now) {
                    Some(rest) => thread::sleep(rest),
                    // Never in bursts: what is late shifts the rest.
                    None => next = now,
                }
            }
        });
        blast
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.count.load(Ordering::Acquire)
    }

    /// When this number was sent; none if it was not, or is no longer known.
    pub(super) fn sent_ns(&self, number: u64) -> Option<u64> {
        self.sent.get(number)
    }
}

impl Sent {
    fn add(&self, number: u64, sent_ns: u64) {
        self.place(number).store(sent_ns, Ordering::Release);
        self.count.store(number + 1, Ordering::Release);
    }

    fn get(&self, number: u64) -> Option<u64> {
        let count = self.count.load(Ordering::Acquire);
        // The oldest is left out: it may be overwritten just now.
        let is_known = number < count && count - number < KEPT;
        is_known.then(|| self.place(number).load(Ordering::Acquire))
    }

    fn place(&self, number: u64) -> &AtomicU64 {
        &self.at_ns[usize::try_from(number % KEPT).expect("it is below KEPT")]
    }
}

impl Drop for Blast {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn connected(from: SocketAddr, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(from)?;
    socket.connect(to)?;
    Ok(socket)
}

/// Counts what arrives, for as long as the process lives.
pub(super) struct Sink(Arc<Mutex<Sunk>>);

impl Sink {
    pub(super) fn open(addresses: &[IpAddr], port: u16) -> anyhow::Result<Self> {
        let sunk = Arc::<Mutex<Sunk>>::default();
        for &address in addresses {
            let at = SocketAddr::new(address, port);
            let socket = UdpSocket::bind(at).with_context(|| format!("receive at {at} UDP"))?;
            let listener = TcpListener::bind(at).with_context(|| format!("receive at {at} TCP"))?;
            let (of_socket, of_listener) = (sunk.clone(), sunk.clone());
            thread::spawn(move || count_datagrams(&socket, &of_socket));
            thread::spawn(move || {
                // A connection that ended before it was accepted counts nothing.
                for stream in listener.incoming().flatten() {
                    let sunk = of_listener.clone();
                    thread::spawn(move || count_records(stream, &sunk));
                }
            });
        }
        Ok(Self(sunk))
    }

    pub(super) fn read(&self, reset: bool) -> Sunk {
        let mut sunk = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reset { std::mem::take(&mut *sunk) } else { *sunk }
    }
}

fn count_datagrams(socket: &UdpSocket, sunk: &Mutex<Sunk>) {
    let mut record = Record::default();
    loop {
        match socket.recv(&mut record) {
            Ok(length) if length == record.len() => count(&record, sunk),
            // Not of a stream.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn count_records(stream: TcpStream, sunk: &Mutex<Sunk>) {
    let mut stream = BufReader::new(stream);
    let mut record = Record::default();
    // The end, of whatever kind, is the sender's to tell.
    while stream.read_exact(&mut record).is_ok() {
        count(&record, sunk);
    }
}

fn count(record: &Record, sunk: &Mutex<Sunk>) {
    let now_ns = now_ns();
    let (number, sent_ns) = record.split_at(8);
    let part = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("a record has two parts of 8 bytes"));
    let (number, sent_ns) = (part(number), part(sent_ns));
    let mut sunk = sunk.lock().unwrap_or_else(PoisonError::into_inner);
    if sunk.arrived.count == 0 {
        (sunk.first_number, sunk.first_sent_ns) = (number, sent_ns);
    }
    (sunk.last_number, sunk.last_sent_ns) = (number, sent_ns);
    sunk.arrived.add(now_ns);
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A port that nobody has.
    fn free_port() -> u16 {
        let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a socket on loopback");
        socket.local_addr().expect("it is bound").port()
    }

    #[track_caller]
    fn check(begin: impl Fn(SocketAddr) -> anyhow::Result<Blast>) {
        let port = free_port();
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            let sink = Sink::open(&[address], port).expect("a sink on loopback");
            let before = now_ns();
            let blast = begin(SocketAddr::new(address, port)).expect("a stream on loopback");
            wait("100 records arrive", || sink.read(false).arrived.count >= 100);
            let sunk = sink.read(true);
            // A machine that is busy with other things may lose some, but never make any.
            assert!(sunk.first_number < 100 && sunk.arrived.count <= sunk.last_number + 1, "{sunk:?}");
            assert!(before <= sunk.first_sent_ns && sunk.first_sent_ns <= sunk.arrived.first_ns, "{sunk:?}");
            // It is noted when it is on its way.
            wait("the last is noted", || blast.sent_ns(sunk.last_number) == Some(sunk.last_sent_ns));
            assert_eq!(blast.sent_ns(u64::MAX), None);
            drop(blast);
            wait("it ends", || {
                sink.read(true);
                thread::sleep(Duration::from_millis(50));
                sink.read(false).arrived.count == 0
            });
        }
    }

    #[track_caller]
    fn wait(what: &str, is_so: impl Fn() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:.0?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn counts_datagrams_of_running_and_fresh_flows() {
        check(|to| Blast::start(to, Duration::from_micros(200), false));
        check(|to| Blast::start(to, Duration::from_micros(200), true));
    }

    #[test]
    fn counts_records_of_a_connection() {
        check(|to| Blast::pour(TcpStream::connect(to)?, Duration::from_micros(200)));
    }
}
