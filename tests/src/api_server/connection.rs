//! Connections that can be ended from outside, and bytes that go wrong on their way.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use futures_util::stream;
use tokio::sync::mpsc;

use super::fault::Fault;

/// One client's connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    stream: Arc<TcpStream>,
}

impl Peer {
    /// Ends the connection at once, in both directions.
    pub(super) fn cut(&self) {
        // It may be gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Every connection that there is.
#[derive(Clone, Debug, Default)]
pub(super) struct Connections(Arc<Mutex<Vec<Weak<TcpStream>>>>);

impl Connections {
    /// Ends all of them.
    pub(super) fn cut(&self) {
        for stream in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(stream) = stream.upgrade() {
                Peer { stream }.cut();
            }
        }
    }

    fn note(&self, stream: &Arc<TcpStream>) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(stream));
    }
}

/// Takes connections, and remembers them.
pub(super) struct Door {
    pub(super) listener: tokio::net::TcpListener,
    pub(super) connections: Connections,
}

impl Door {
    async fn try_accept(&self) -> io::Result<(tokio::net::TcpStream, Peer)> {
        let (stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let twin = Arc::new(stream.try_clone()?);
        self.connections.note(&twin);
        Ok((tokio::net::TcpStream::from_std(stream)?, Peer { stream: twin }))
    }
}

impl Listener for Door {
    type Io = tokio::net::TcpStream;
    type Addr = (SocketAddr, Option<Peer>);

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.try_accept().await {
                Ok((stream, peer)) => match stream.peer_addr() {
                    Ok(address) => return (stream, (address, Some(peer))),
                    // It ended before it was taken.
                    Err(_) => continue,
                },
                // The machine may be out of descriptors for a moment.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok((self.listener.local_addr()?, None))
    }
}

impl Connected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.remote_addr().1.clone().expect("a connection must have a peer")
    }
}

/// The body of an answer, while it is being sent.
#[derive(Debug)]
pub(super) struct Pipe {
    sender: mpsc::Sender<Bytes>,
    peer: Peer,
}

/// The time that bytes get to leave before their connection is ended.
const BEFORE_CUT: Duration = Duration::from_millis(20);

impl Pipe {
    /// A pipe and the body that comes out of it. The body ends with the pipe.
    pub(super) fn new(peer: Peer) -> (Self, Body) {
        let (sender, mut receiver) = mpsc::channel(1);
        let bytes =
            stream::poll_fn(move |context| receiver.poll_recv(context).map(|bytes| bytes.map(Ok::<_, io::Error>)));
        (Self { sender, peer }, Body::from_stream(bytes))
    }

    /// Sends bytes, with what a fault makes of them. Breaks where nothing may follow.
    pub(super) async fn send(&self, bytes: Vec<u8>, fault: Option<Fault>) -> ControlFlow<()> {
        match fault {
            Some(Fault::StallWithin { bytes: count }) => {
                self.deliver(first(&bytes, count)).await?;
                self.stall().await
            }
            Some(Fault::DropWithin { bytes: count }) => {
                self.deliver(first(&bytes, count)).await?;
                tokio::time::sleep(BEFORE_CUT).await;
                self.cut()
            }
            Some(Fault::Truncate { bytes: count }) => {
                self.deliver(first(&bytes, count)).await?;
                ControlFlow::Break(())
            }
            Some(Fault::Slow { bytes: count, every }) => {
                for part in bytes.chunks(count.max(1)) {
                    self.deliver(part).await?;
                    tokio::time::sleep(every).await;
                }
                ControlFlow::Continue(())
            }
            Some(Fault::Duplicate) => {
                self.deliver(&bytes).await?;
                self.deliver(&bytes).await
            }
            _ => self.deliver(&bytes).await,
        }
    }

    /// Ends the connection.
    pub(super) fn cut(&self) -> ControlFlow<()> {
        self.peer.cut();
        ControlFlow::Break(())
    }

    /// Sends nothing until the client goes away.
    pub(super) async fn stall(&self) -> ControlFlow<()> {
        self.sender.closed().await;
        ControlFlow::Break(())
    }

    /// Returns when the client is gone.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }

    async fn deliver(&self, bytes: &[u8]) -> ControlFlow<()> {
        match self.sender.send(Bytes::copy_from_slice(bytes)).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(_gone) => ControlFlow::Break(()),
        }
    }
}

/// Fewer than all bytes, so that what is cut off is never whole.
fn first(bytes: &[u8], count: usize) -> &[u8] {
    &bytes[..count.min(bytes.len().saturating_sub(2))]
}
