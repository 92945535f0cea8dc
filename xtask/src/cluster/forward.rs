//! The way from this machine's network namespace to the API server.
//!
//! A process listens on a port of 127.0.0.1 here, then moves into the control plane's network namespace. A socket stays
//! in the namespace that it was made in, so that what it accepts comes from here and what it connects goes there.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    daemon,
    machine::{API_PORT, CONTROL_PLANE, Machine},
};

/// Listens until it is ended; writes the port where [`port`] finds it.
///
/// # Errors
///
/// It cannot listen, or not enter the namespace.
pub(super) fn run() -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on 127.0.0.1")?;
    let port = listener.local_addr().context("ask for our port")?.port();
    let path = Machine::ControlPlane.namespace_file();
    let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    // The only thread so far; those made later inherit its namespace.
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {}", path.display()))?;
    let written = port_file().with_extension("new");
    fs::write(&written, port.to_string()).context("write the port")?;
    fs::rename(&written, port_file()).context("publish the port")?;
    for client in listener.incoming() {
        match client {
            Ok(client) => drop(thread::spawn(move || relay(&client))),
            Err(error) => {
                eprintln!("accept: {error}");
                // Out of descriptors, say: the next attempt would fail at once too.
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
    Ok(())
}

/// The port that the running forwarder listens on.
///
/// # Errors
///
/// It does not run.
pub(super) fn port() -> anyhow::Result<u16> {
    daemon::wait_for((Machine::ControlPlane, "forwarder"), "the forwarder's port", Duration::from_secs(30), || {
        let text = fs::read_to_string(port_file()).with_context(|| format!("read {}", port_file().display()))?;
        text.trim().parse().with_context(|| format!("read {}", port_file().display()))
    })
}

/// Starts the forwarder, unless it runs.
///
/// # Errors
///
/// It does not start.
pub(super) fn start() -> anyhow::Result<()> {
    if !daemon::is_running(Machine::ControlPlane, "forwarder") {
        // A port of a former one would be believed.
        match fs::remove_file(port_file()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("forget the former port")?,
            _ => {}
        }
    }
    daemon::start(Machine::ControlPlane, "forwarder", &daemon::ourselves(&["forward"])?)
}

fn port_file() -> PathBuf {
    Machine::ControlPlane.folder().join("forwarder.port")
}

/// Carries bytes both ways until both ends are done.
fn relay(client: &TcpStream) {
    let [address, _] = CONTROL_PLANE;
    // Until the API server listens, a client sees its connection closed and tries again.
    let Ok(server) = TcpStream::connect((address, API_PORT)) else { return };
    // Without these a watch event would wait for the acknowledgement of the one before.
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let carry = |mut from: &TcpStream, mut to: &TcpStream| {
        // An end that resets ends the other.
        if io::copy(&mut from, &mut to).is_err() {
            let _ = from.shutdown(Shutdown::Both);
        }
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| carry(client, &server));
        carry(&server, client);
    });
}
