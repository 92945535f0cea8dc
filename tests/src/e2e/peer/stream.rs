//! Streams of numbered datagrams, and what counts them. Each has a thread: they measure microseconds.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::super::message::Sunk;
use super::now_ns;
use super::probe::own;

/// Sends datagrams until it is dropped.
pub(super) struct Blast {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Blast {
    pub(super) fn start(to: SocketAddr, every: Duration, fresh: bool) -> anyhow::Result<Self> {
        let open = move || -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind(own(to))?;
            socket.connect(to)?;
            Ok(socket)
        };
        let mut socket = open().with_context(|| format!("send to {to}"))?;
        let blast = Self { sent: Arc::default(), stop: Arc::default() };
        let (sent, stop) = (blast.sent.clone(), blast.stop.clone());
        thread::spawn(move || {
            let mut next = Instant::now();
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // An error is an ICMP message about an earlier datagram, or a full queue: the number is missing at the sink.
                let _ = socket.send(&number.to_be_bytes());
                sent.store(number + 1, Ordering::Relaxed);
                if fresh && let Ok(new) = open() {
                    socket = new;
                }
                next += every;
                let now = Instant::now();
                match next.checked_duration_since(now) {
                    Some(rest) => thread::sleep(rest),
                    // Never in bursts: what is late shifts the rest.
                    None => next = now,
                }
            }
        });
        Ok(blast)
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Blast {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Counts datagrams, for as long as the process lives.
pub(super) struct Sink(Arc<Mutex<Sunk>>);

impl Sink {
    pub(super) fn open(addresses: &[IpAddr], port: u16) -> anyhow::Result<Self> {
        let sunk = Arc::<Mutex<Sunk>>::default();
        for &address in addresses {
            let at = SocketAddr::new(address, port);
            let socket = UdpSocket::bind(at).with_context(|| format!("receive at {at} UDP"))?;
            let sunk = sunk.clone();
            thread::spawn(move || {
                let mut buffer = [0; 64];
                loop {
                    match socket.recv(&mut buffer) {
                        Ok(_) => {
                            let now = now_ns();
                            let number = buffer.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
                            let mut sunk = sunk.lock().unwrap_or_else(PoisonError::into_inner);
                            if sunk.arrived.count == 0 {
                                sunk.first_number = number;
                            }
                            sunk.last_number = number;
                            sunk.arrived.add(now);
                        }
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => return,
                    }
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
