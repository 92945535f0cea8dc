//! Frames, built by name.

use std::net::IpAddr;

use npolicy_common::Protocol;

/// A frame to be built: from one address and port to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) protocol: Protocol,
    /// Source and destination port; type and id of an ICMP message.
    pub(crate) numbers: [u16; 2],
    /// TCP's flags.
    pub(crate) flags: u8,
    /// Link-layer address of the sender.
    pub(crate) mac: [u8; 6],
}

pub(crate) const SYN: u8 = 0x02;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const ACK: u8 = 0x10;

impl Packet {
    /// A packet that may open a flow.
    pub(crate) fn new(from: IpAddr, to: IpAddr, protocol: Protocol, numbers: [u16; 2]) -> Self {
        Self { from, to, protocol, numbers, flags: SYN, mac: [2, 0, 0, 0, 0, 1] }
    }

    pub(crate) fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// What the other side answers to a TCP, UDP or SCTP packet.
    pub(crate) fn answer(self, flags: u8) -> Self {
        Self { from: self.to, to: self.from, numbers: [self.numbers[1], self.numbers[0]], flags, ..self }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let upper = self.upper();
        let mut frame = vec![2, 0, 0, 0, 0, 0xff];
        frame.extend(self.mac);
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend((20 + upper.len() as u16).to_be_bytes());
                // Id, flags and offset, time to live, protocol, a checksum that nobody looks at here.
                frame.extend([0, 1, 0x40, 0, 64, self.protocol.0, 0, 0]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((upper.len() as u16).to_be_bytes());
                frame.extend([self.protocol.0, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            (from, to) => panic!("{from} and {to} are of different families"),
        }
        frame.extend(upper);
        frame
    }

    fn upper(&self) -> Vec<u8> {
        let [first, second] = self.numbers;
        let ports = [first.to_be_bytes(), second.to_be_bytes()].concat();
        let rest: Vec<u8> = match self.protocol {
            // Sequence and acknowledgement, header length, flags, window, checksum, urgent pointer.
            Protocol::TCP => [&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.flags][..], &[0xff; 2], &[0; 4]].concat(),
            // Length, checksum, eight bytes of data.
            Protocol::UDP => [&[0, 16, 0, 0][..], &[7; 8]].concat(),
            // Verification tag, checksum, an INIT chunk.
            Protocol::SCTP => [&[0; 8][..], &[1, 0, 0, 20], &[0; 16]].concat(),
            Protocol::ICMP | Protocol::ICMPV6 => {
                // Type, code, checksum, id, sequence, eight bytes of data.
                let [id_high, id_low] = second.to_be_bytes();
                return [&[first as u8, 0, 0, 0, id_high, id_low, 0, 1][..], &[7; 8]].concat();
            }
            Protocol(other) => panic!("no packets of protocol {other} here"),
        };
        [ports, rest].concat()
    }
}
