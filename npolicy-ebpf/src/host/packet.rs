//! A builder of frames: `packet().ipv4(WEB, DB).tcp(40000, 5432).syn()`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use npolicy_common::Be16;

/// Starts a frame: from one MAC address to another, empty.
pub fn packet() -> Builder {
    Builder {
        source_mac: [0x0a, 0, 0, 0, 0, 1],
        destination_mac: [0x0a, 0, 0, 0, 0, 2],
        tags: Vec::new(),
        ether_type: 0,
        source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        hop_limit: 64,
        options: Vec::new(),
        fragment: 0,
        extensions: Vec::new(),
        protocol: 59,
        upper: Vec::new(),
        length_error: 0,
    }
}

/// A frame being built.
#[derive(Clone, Debug)]
pub struct Builder {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    tags: Vec<(u16, u16)>,
    ether_type: u16,
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
    options: Vec<u8>,
    fragment: u16,
    extensions: Vec<(u8, Vec<u8>)>,
    protocol: u8,
    upper: Vec<u8>,
    length_error: i32,
}

impl Builder {
    /// Sets the sender's MAC address.
    pub fn from_mac(self, mac: [u8; 6]) -> Self {
        Self { source_mac: mac, ..self }
    }

    /// Makes it IPv4.
    pub fn ipv4(self, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        self.ip(source.into(), destination.into())
    }

    /// Makes it IPv6.
    pub fn ipv6(self, source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        self.ip(source.into(), destination.into())
    }

    /// Makes it IP of the source's family.
    pub fn ip(self, source: IpAddr, destination: IpAddr) -> Self {
        let ether_type = if source.is_ipv4() { 0x0800 } else { 0x86dd };
        Self { source, destination, ether_type, ..self }
    }

    /// Makes it a frame that is not IP.
    pub fn ether_type(self, ether_type: u16, payload: &[u8]) -> Self {
        Self { ether_type, upper: payload.to_vec(), ..self }
    }

    /// Makes it ARP from `mac` at `address`, asking for `target`.
    pub fn arp(self, mac: [u8; 6], address: Ipv4Addr, target: Ipv4Addr) -> Self {
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
        body.extend(mac);
        body.extend(address.octets());
        body.extend([0; 6]);
        body.extend(target.octets());
        self.ether_type(0x0806, &body)
    }

    /// Puts a VLAN tag into the data, behind those that are there.
    pub fn tag(mut self, tag_type: u16, vlan: u16) -> Self {
        self.tags.push((tag_type, vlan));
        self
    }

    /// A TCP segment with ACK alone.
    pub fn tcp(self, source: u16, destination: u16) -> Self {
        let mut upper = ports(source, destination);
        upper.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        Self { protocol: 6, upper, ..self }
    }

    /// Sets the TCP flags.
    pub fn flags(mut self, flags: u8) -> Self {
        self.upper[13] = flags;
        self
    }

    /// Makes the TCP segment a SYN.
    pub fn syn(self) -> Self {
        self.flags(0x02)
    }

    /// Makes the TCP segment a SYN-ACK.
    pub fn syn_ack(self) -> Self {
        self.flags(0x12)
    }

    /// A UDP datagram.
    pub fn udp(self, source: u16, destination: u16) -> Self {
        let mut upper = ports(source, destination);
        upper.extend([0, 8, 0, 0]);
        Self { protocol: 17, upper, ..self }
    }

    /// An SCTP packet.
    pub fn sctp(self, source: u16, destination: u16) -> Self {
        let mut upper = ports(source, destination);
        upper.extend([0; 8]);
        Self { protocol: 132, upper, ..self }
    }

    /// An ICMP message of the packet's family.
    pub fn icmp(self, icmp_type: u8, code: u8, body: &[u8]) -> Self {
        let mut upper = vec![icmp_type, code, 0, 0];
        upper.extend(body);
        let protocol = if self.source.is_ipv4() { 1 } else { 58 };
        Self { protocol, upper, ..self }
    }

    /// An echo request.
    pub fn echo_request(self, id: u16) -> Self {
        let icmp_type = if self.source.is_ipv4() { 8 } else { 128 };
        self.echo(icmp_type, id)
    }

    /// An echo reply.
    pub fn echo_reply(self, id: u16) -> Self {
        let icmp_type = if self.source.is_ipv4() { 0 } else { 129 };
        self.echo(icmp_type, id)
    }

    fn echo(self, icmp_type: u8, id: u16) -> Self {
        let [high, low] = id.to_be_bytes();
        self.icmp(icmp_type, 0, &[high, low, 0, 1])
    }

    /// An ICMP error (port unreachable) that quotes `bytes` of another packet from its network header on.
    pub fn unreachable(self, quoted: &Self, bytes: usize) -> Self {
        let (icmp_type, code) = if self.source.is_ipv4() { (3, 3) } else { (1, 4) };
        let network = quoted.network();
        let mut body = vec![0; 4];
        body.extend(&network[..bytes.min(network.len())]);
        self.icmp(icmp_type, code, &body)
    }

    /// A packet of another protocol.
    pub fn protocol(self, protocol: u8, payload: &[u8]) -> Self {
        Self { protocol, upper: payload.to_vec(), ..self }
    }

    /// Appends to the upper protocol's payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.upper.extend(payload);
        self
    }

    /// Sets the time to live or hop limit.
    pub fn hop_limit(self, hop_limit: u8) -> Self {
        Self { hop_limit, ..self }
    }

    /// Sets the IPv4 options; a multiple of four bytes.
    pub fn options(self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4), "options come in words");
        Self { options: options.to_vec(), ..self }
    }

    /// Sets the IPv4 flags and fragment offset.
    pub fn fragment(self, flags_and_offset: u16) -> Self {
        Self { fragment: flags_and_offset, ..self }
    }

    /// Puts an IPv6 extension header between the IPv6 header and the upper one: its number, and what follows its next
    /// header field.
    pub fn extension(mut self, number: u8, body: &[u8]) -> Self {
        assert_eq!(body.len() % 8, 7, "extension headers come in eights");
        self.extensions.push((number, body.to_vec()));
        self
    }

    /// Puts a hop-by-hop header with a router alert before what follows.
    pub fn router_alert(self) -> Self {
        self.extension(0, &[0, 5, 2, 0, 0, 1, 0])
    }

    /// Makes the length field of the IP header say so much more than is true.
    pub fn length_error(self, length_error: i32) -> Self {
        Self { length_error, ..self }
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        for (tag_type, vlan) in &self.tags {
            frame.extend(tag_type.to_be_bytes());
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend(self.ether_type.to_be_bytes());
        frame.extend(self.network());
        frame
    }

    /// The bytes from the network header on.
    fn network(&self) -> Vec<u8> {
        match (self.source, self.destination, self.ether_type) {
            (IpAddr::V4(source), IpAddr::V4(destination), 0x0800) => self.ipv4_bytes(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination), 0x86dd) => self.ipv6_bytes(source, destination),
            _ => self.upper.clone(),
        }
    }

    fn ipv4_bytes(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = (header + self.upper.len()) as i32 + self.length_error;
        let mut bytes = vec![0x40 | (header / 4) as u8, 0];
        bytes.extend((total as u16).to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.hop_limit, self.protocol, 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(&self.options);
        bytes.extend(&self.upper);
        bytes
    }

    fn ipv6_bytes(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let extensions: usize = self.extensions.iter().map(|(_, body)| 1 + body.len()).sum();
        let payload = (extensions + self.upper.len()) as i32 + self.length_error;
        let numbers: Vec<u8> = self.extensions.iter().map(|(number, _)| *number).chain([self.protocol]).collect();
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((payload as u16).to_be_bytes());
        bytes.extend([numbers[0], self.hop_limit]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        for ((_, body), next) in self.extensions.iter().zip(&numbers[1..]) {
            bytes.push(*next);
            bytes.extend(body);
        }
        bytes.extend(&self.upper);
        bytes
    }
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

/// A frame at a hook.
#[derive(Clone, Debug)]
pub struct HostFrame {
    pub(super) bytes: Vec<u8>,
    pub(super) pairs: Vec<Be16>,
    pub(super) ifindex: u32,
    pub(super) ingress_ifindex: u32,
    pub(super) has_outer_tag: bool,
}

impl HostFrame {
    /// A frame that lies in the linear part, at the hook of `ifindex`, having entered the node by `ingress_ifindex`.
    pub fn new(bytes: Vec<u8>, ifindex: u32, ingress_ifindex: u32) -> Self {
        let linear = bytes.len();
        Self { bytes, pairs: Vec::new(), ifindex, ingress_ifindex, has_outer_tag: false }.with_linear(linear)
    }

    /// The same, with no more than so many bytes in the linear part.
    pub fn with_linear(mut self, bytes: usize) -> Self {
        let linear = &self.bytes[..bytes.min(self.bytes.len())];
        self.pairs = linear.chunks_exact(2).map(|pair| Be16::from_bytes([pair[0], pair[1]])).collect();
        self
    }

    /// The same, with a VLAN tag beside the data.
    pub fn with_outer_tag(mut self) -> Self {
        self.has_outer_tag = true;
        self
    }
}
