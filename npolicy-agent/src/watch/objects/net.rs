//! Addresses and blocks as the API has ever accepted them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::cursor::{At, Report};
use crate::model::Severity;

/// Reads a block. Host bits are masked; leading zeros are decimal; an IPv4-mapped block of /96 and longer is IPv4.
///
/// Older API servers stored such spellings (`ValidateIPBlock` before v1.34), so they are honoured.
///
/// # Errors
/// The problem in words.
pub(super) fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let Some((address, length)) = text.split_once('/') else {
        return Err(match parse_ip(text) {
            Some(IpAddr::V4(_)) => format!("{text:?} has no prefix length, a single address is written {text}/32"),
            Some(IpAddr::V6(_)) => format!("{text:?} has no prefix length, a single address is written {text}/128"),
            None => format!("{text:?} is not a block like 10.0.0.0/8 or fd00::/8"),
        });
    };
    let raw = parse_raw_ip(address).ok_or_else(|| format!("{text:?}: {address:?} is not an IP address"))?;
    let most = if raw.is_ipv4() { 32 } else { 128 };
    let length: u8 = Some(length)
        .filter(|length| !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|length| length.parse().ok())
        .filter(|&length| length <= most)
        .ok_or_else(|| format!("{text:?}: prefix length {length:?} is not a number from 0 to {most}"))?;
    let block = match raw {
        IpAddr::V4(address) => Ipv4Net::new(address, length).expect("the length was checked").into(),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(_) if length < 96 => {
                return Err(format!("{text:?} is IPv4-mapped, its prefix length must be at least 96"));
            }
            Some(address) => Ipv4Net::new(address, length - 96).expect("the length was checked").into(),
            None => IpNet::from(Ipv6Net::new(address, length).expect("the length was checked")),
        },
    };
    Ok(block.trunc())
}

/// Notes a block whose address has host bits: it is larger than whoever meant one address may think.
pub(super) fn note_host_bits(at: &At<'_>, block: &IpNet, report: &mut Report<'_>) {
    let written = at.text().and_then(|text| text.split_once('/'));
    if let Some((address, _)) = written.filter(|(address, _)| parse_ip(address).is_some_and(|ip| ip != block.addr())) {
        report.say(Severity::Note, at, format!("{address} is one address of the block {block}, all of which is meant"));
    }
}

/// Reads an address. Leading zeros are decimal; an IPv4-mapped address is IPv4.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    parse_raw_ip(text).map(|address| address.to_canonical())
}

fn parse_raw_ip(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_ipv4(text).map(IpAddr::V4);
    }
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some(IpAddr::V6(address));
    }
    let (front, back) = text.rsplit_once(':')?;
    let address: Ipv6Addr = format!("{front}:{}", parse_ipv4(back)?).parse().ok()?;
    Some(IpAddr::V6(address))
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.').map(|part| {
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { part.parse::<u8>().ok() } else { None }
    });
    let octets = [parts.next()??, parts.next()??, parts.next()??, parts.next()??];
    if parts.next().is_none() { Some(octets.into()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_normalised() {
        for (written, read) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("010.0.0.0/08", "10.0.0.0/8"),
            ("192.168.001.009/32", "192.168.1.9/32"),
            ("::ffff:10.1.0.0/112", "10.1.0.0/16"),
            ("::ffff:010.001.2.3/96", "0.0.0.0/0"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::1/8", "fd00::/8"),
            ("::/0", "::/0"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(parse_cidr(written).map(|block| block.to_string()), Ok(read.to_owned()), "{written}");
        }
    }

    #[test]
    fn what_is_no_block_is_refused_with_the_reason() {
        for (written, reason) in [
            ("10.0.0.0", "no prefix length"),
            ("fd00::1", "fd00::1/128"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/-1", "from 0 to 32"),
            ("10.0.0.0/", "from 0 to 32"),
            ("10.0.0/8", "not an IP address"),
            ("10.0.0.256/8", "not an IP address"),
            ("10.0.0.0.0/8", "not an IP address"),
            ("0x0a.0.0.0/8", "not an IP address"),
            ("::ffff:10.0.0.0/95", "at least 96"),
            ("fd00::/129", "from 0 to 128"),
            ("", "not a block"),
            ("web", "not a block"),
        ] {
            let refused = parse_cidr(written).expect_err(written);
            assert!(refused.contains(reason), "{written}: {refused}");
        }
    }
}
