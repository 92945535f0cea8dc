//! (ruleset, class, port) -> whether it is accepted.

use npolicy_common::{Class, FlowProtocol, RulesetId};

use crate::tables::Tables;

/// Whether a ruleset accepts a class on a port: row, bundle, port bit; five array loads at most, however many rules made it.
#[inline(always)]
pub fn accepts<T: Tables>(tables: T, ruleset: RulesetId, class: Class, protocol: FlowProtocol, port: u16) -> bool {
    // No entry of the address tables holds a class beyond the limit; the mask says so to the verifier.
    let class = class.0 & (Class::LIMIT - 1);
    let chunk = tables.ruleset_row(ruleset.0, class >> 9);
    let bundle = match tables.ruleset_row(chunk, class & 511) {
        0 => return false,
        1 => return true,
        number => tables.bundle(number),
    };
    let set = match protocol {
        FlowProtocol::Tcp => bundle.ports[0].0,
        FlowProtocol::Udp => bundle.ports[1].0,
        FlowProtocol::Sctp => bundle.ports[2].0,
        FlowProtocol::Other => return bundle.other == 1,
    };
    let block = match set {
        0 => return false,
        1 => return true,
        set => tables.ports_block(set, (port >> 8) as u8),
    };
    match block {
        0 => false,
        1 => true,
        block => tables.ports_bits(block, (port >> 6) as u32 & 3) >> (port & 63) & 1 == 1,
    }
}
