//! Address -> class: what the policies in force on this node can tell apart about a peer.

use npolicy_common::{CLASS6_WAYS, ClassWord, class6_buckets, config_flags};

use crate::tables::{Listing, Tables};

/// Returns the class of an IPv4 address: two to three array loads, however many addresses are listed.
#[inline(always)]
pub fn class_of_ipv4<T: Tables>(tables: T, address: u32) -> ClassWord {
    let [a, b, c, d] = address.to_be_bytes();
    let entry = tables.class4(a as u32, b);
    let Some(chunk) = entry.chunk() else { return entry };
    let entry = tables.class4(chunk, c);
    let Some(chunk) = entry.chunk() else { return entry };
    tables.class4(chunk, d)
}

/// Returns the class of an IPv6 address: listed exactly, else by the longest prefix (asked only where a policy names
/// one), else CONFIG's default.
#[inline(always)]
pub fn class_of_ipv6<T: Tables>(tables: T, address: [u64; 2]) -> ClassWord {
    let (first, second) = class6_buckets(address, tables.secrets()[2]);
    if let Some(entry) = listed(tables, first, address) {
        return entry;
    }
    if let Some(entry) = listed(tables, second, address) {
        return entry;
    }
    if tables.config_flags() & config_flags::PREFIX6_USED != 0
        && let Some(entry) = tables.prefix6(address)
    {
        return entry;
    }
    tables.default_class6()
}

#[inline(always)]
fn listed<T: Tables>(tables: T, bucket: u32, address: [u64; 2]) -> Option<ClassWord> {
    let bucket = tables.class6(bucket)?;
    for way in 0..CLASS6_WAYS {
        let entry = bucket.entry(way);
        if entry.0 & ClassWord::LISTED != 0 && bucket.address(way) == address {
            return Some(entry);
        }
    }
    None
}
