//! Address translation in a node, as kube-proxy does it: Service addresses to backends, and masquerading.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use ipnet::IpNet;
use npolicy_common::Family;

use super::address::family_of;
use super::error::{Attempt, Result, RigError};
use super::namespace::Namespace;
use super::probe::Protocol;

/// One port of a Service address, and where its packets go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Translation {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The Service's address and port; for a node port, the node's address.
    pub address: SocketAddr,
    /// Backends of the same family; each new connection goes to one of them by chance. Without any it is refused.
    pub backends: Vec<SocketAddr>,
    /// Whether the backend sees an address of the node instead of the client's, as node ports do it.
    pub masquerade: bool,
}

/// Everything that a node translates. The whole is written anew, in one transaction, whenever a part changes; connections
/// keep the translation they began with.
#[derive(Debug, Default)]
pub(super) struct Translator {
    services: Vec<Translation>,
    /// Sources that leave under an address of the node.
    hidden: Vec<(IpNet, IpAddr)>,
    /// The interface to the other nodes, and what lies behind it without masquerading.
    uplink: Option<(String, Vec<IpNet>)>,
}

/// Mark of packets whose source is to be masqueraded, from DNAT to the end of the way.
const MASQUERADE_MARK: &str = "0x4000";

impl Translator {
    pub(super) fn translate(&mut self, at: &Namespace, owner: &str, services: Vec<Translation>) -> Result<()> {
        if self.services == services {
            return Ok(());
        }
        self.services = services;
        self.apply(at, owner)
    }

    pub(super) fn hide(&mut self, at: &Namespace, owner: &str, sources: Vec<(IpNet, IpAddr)>) -> Result<()> {
        self.hidden = sources;
        self.apply(at, owner)
    }

    pub(super) fn masquerade(&mut self, at: &Namespace, owner: &str, link: &str, inside: Vec<IpNet>) -> Result<()> {
        self.uplink = Some((link.into(), inside));
        self.apply(at, owner)
    }

    fn apply(&self, at: &Namespace, owner: &str) -> Result<()> {
        let script = self.script();
        at.run(|| run_nft(&script, owner))?
    }

    /// The rules, for `nft -f`.
    fn script(&self) -> String {
        let (mut chains, mut services, mut refused, mut sources) =
            (String::new(), String::new(), String::new(), String::new());
        for (number, service) in self.services.iter().enumerate() {
            let Translation { protocol, address, backends, masquerade } = service;
            let (ip, family) = words(address.ip());
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
                // It has no ports to translate.
                Protocol::Icmp => continue,
            };
            let mut matched =
                format!("{ip} daddr {} meta l4proto {protocol} th dport {}", address.ip(), address.port());
            if backends.is_empty() {
                line(&mut refused, &format!("{matched} reject"));
                continue;
            }
            if *masquerade {
                // Writing to a string cannot fail, here as below.
                let _ = write!(matched, " meta mark set {MASQUERADE_MARK}");
            }
            let chain = |place| format!("backend-{number}-{place}");
            let choice: Vec<_> = (0..backends.len()).map(|place| format!("{place} : goto {}", chain(place))).collect();
            let choice = choice.join(", ");
            line(&mut services, &format!("{matched} numgen random mod {} vmap {{ {choice} }}", backends.len()));
            for (place, backend) in backends.iter().enumerate() {
                let _ = writeln!(
                    chains,
                    "  chain {} {{ meta l4proto {protocol} dnat {family} to {backend}; }}",
                    chain(place)
                );
                // An answer to itself would never come back here.
                let backend = backend.ip();
                line(&mut sources, &format!("ct status dnat {ip} saddr {backend} {ip} daddr {backend} masquerade"));
            }
        }
        for (range, address) in &self.hidden {
            let (ip, family) = words(*address);
            line(&mut sources, &format!("{ip} saddr {range} snat {family} to {address}"));
        }
        if let Some((link, inside)) = &self.uplink {
            for family in [Family::V4, Family::V6] {
                let inside: Vec<_> = inside.iter().filter(|block| family_of(block.addr()) == family).collect();
                let Some(first) = inside.first() else { continue };
                let (ip, _) = words(first.addr());
                let inside = inside.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                line(&mut sources, &format!("oifname \"{link}\" {ip} daddr != {{ {inside} }} masquerade"));
            }
        }
        format!(
            "table inet rig {{}}\ndelete table inet rig\ntable inet rig {{\n{chains}  \
               chain services {{\n{services}  }}\n  \
               chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n  \
               chain output {{ type nat hook output priority -100; jump services; }}\n  \
               chain postrouting {{\n    type nat hook postrouting priority srcnat;\n    \
                 meta mark {MASQUERADE_MARK} masquerade\n{sources}  }}\n  \
               chain refused {{\n{refused}  }}\n  \
               chain forward {{ type filter hook forward priority filter; jump refused; }}\n  \
               chain own {{ type filter hook output priority filter; jump refused; }}\n}}\n"
        )
    }
}

fn line(chain: &mut String, rule: &str) {
    let _ = writeln!(chain, "    {rule}");
}

/// How nft names the family of an address: in a match, and in a translation.
fn words(address: IpAddr) -> (&'static str, &'static str) {
    match address {
        IpAddr::V4(_) => ("ip", "ip"),
        IpAddr::V6(_) => ("ip6", "ip6"),
    }
}

fn run_nft(script: &str, owner: &str) -> Result<()> {
    let what = || format!("translate addresses in {owner}");
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = match command.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RigError::NoNft),
        started => started.attempt(what)?,
    };
    // A failure here is told by the exit code, with more words.
    let _ = nft.stdin.take().expect("stdin must be piped").write_all(script.as_bytes());
    let ended = nft.wait_with_output().attempt(what)?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    Err(io::Error::other(said)).attempt(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_backends_is_refused_and_not_translated() {
        let address = "10.96.0.1:80".parse().unwrap();
        let service = |backends| Translation { protocol: Protocol::Tcp, address, backends, masquerade: false };
        let script = |service| Translator { services: vec![service], ..Translator::default() }.script();
        let empty = script(service(Vec::new()));
        assert!(empty.contains("ip daddr 10.96.0.1 meta l4proto tcp th dport 80 reject"), "{empty}");
        assert!(!empty.contains("dnat ip"), "{empty}");
        let one = script(service(vec!["10.0.0.1:8080".parse().unwrap()]));
        assert!(one.contains("dnat ip to 10.0.0.1:8080") && !one.contains("reject"), "{one}");
    }
}
