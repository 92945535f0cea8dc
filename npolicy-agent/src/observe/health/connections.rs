//! A listener whose connections cannot do harm, whoever opens them: there are few at a time, each lives for seconds and
//! brings some kilobytes.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Sleep;

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Open at a time. One more ends the oldest, so that a client that holds many does not keep a probe out.
    pub(super) connections: usize,
    /// From accepting it to its end, whatever happens.
    pub(super) lifetime: Duration,
    /// What a client may send, in bytes.
    pub(super) request_bytes: usize,
}

/// A node has one kubelet, with three probes of one request each.
pub(super) const LIMITS: Limits = Limits { connections: 32, lifetime: Duration::from_secs(5), request_bytes: 4096 };

/// Accepts connections within limits.
#[derive(Debug)]
pub(super) struct Connections {
    listener: TcpListener,
    limits: Limits,
    /// Of the open ones, oldest first; dropping one ends its connection. Those of closed ones are swept when another comes.
    open: VecDeque<oneshot::Sender<()>>,
}

impl Connections {
    pub(super) fn new(listener: TcpListener, limits: Limits) -> Self {
        Self { listener, limits, open: VecDeque::new() }
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The trait's way, which waits where descriptors ran out instead of turning in circles.
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        self.open.retain(|connection| !connection.is_closed());
        while self.open.len() >= self.limits.connections {
            self.open.pop_front();
        }
        let (keep, evicted) = oneshot::channel();
        self.open.push_back(keep);
        let Limits { connections: _, lifetime, request_bytes } = self.limits;
        (
            Connection { stream, evicted, deadline: Box::pin(tokio::time::sleep(lifetime)), left_bytes: request_bytes },
            peer,
        )
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection. Past a limit, reading and writing are errors, and the server closes it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    evicted: oneshot::Receiver<()>,
    deadline: Pin<Box<Sleep>>,
    /// What the client may still send.
    left_bytes: usize,
}

impl Connection {
    /// Ready when it has to end; until then the task is woken for that.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if Pin::new(&mut self.evicted).poll(context).is_ready() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "pushed out by a newer connection"));
        }
        self.deadline.as_mut().poll(context).map(|()| io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(context) {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        match self.left_bytes.checked_sub(buffer.filled().len() - before) {
            Some(left) => self.left_bytes = left,
            None => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the client sends too much"))),
        }
        outcome
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_end(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn pair(limits: Limits) -> (TcpStream, Connection) {
        let mut connections = Connections::new(TcpListener::bind("127.0.0.1:0").await.unwrap(), limits);
        let client = TcpStream::connect(connections.local_addr().unwrap()).await.unwrap();
        let (connection, _) = connections.accept().await;
        // As the server does: with the listener gone, its connections are to end.
        tokio::spawn(async move {
            let _kept = connections;
            std::future::pending::<()>().await;
        });
        (client, connection)
    }

    #[tokio::test]
    async fn ends_at_its_deadline_while_nothing_comes() {
        let lifetime = Duration::from_millis(100);
        let (_client, mut connection) = pair(Limits { lifetime, ..LIMITS }).await;
        let begin = Instant::now();
        let error = connection.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < 20 * lifetime, "{:?}", begin.elapsed());
        assert_eq!(connection.write(&[0]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn deadline_holds_for_a_client_that_never_reads() {
        let (_client, mut connection) = pair(Limits { lifetime: Duration::from_millis(100), ..LIMITS }).await;
        let error = connection.write_all(&vec![0; 64 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn takes_the_last_byte_allowed_and_none_more() {
        let (mut client, mut connection) = pair(Limits { request_bytes: 100, ..LIMITS }).await;
        client.write_all(&[7; 100]).await.unwrap();
        let mut request = [0; 100];
        connection.read_exact(&mut request).await.unwrap();
        assert_eq!(request, [7; 100]);
        client.write_all(&[7]).await.unwrap();
        assert_eq!(connection.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn the_newest_ends_the_oldest() {
        let limits = Limits { connections: 2, ..LIMITS };
        let mut connections = Connections::new(TcpListener::bind("127.0.0.1:0").await.unwrap(), limits);
        let address = connections.local_addr().unwrap();
        let mut accepted = Vec::new();
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
            accepted.push(connections.accept().await.0);
        }
        assert_eq!(accepted[0].read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        for (client, connection) in clients.iter_mut().zip(&mut accepted).skip(1) {
            client.write_all(b"x").await.unwrap();
            assert_eq!(connection.read(&mut [0]).await.unwrap(), 1);
        }
        // One that has ended makes room by itself.
        accepted.remove(2);
        clients.push(TcpStream::connect(address).await.unwrap());
        accepted.push(connections.accept().await.0);
        clients[1].write_all(b"y").await.unwrap();
        assert_eq!(accepted[1].read(&mut [0]).await.unwrap(), 1);
    }
}
