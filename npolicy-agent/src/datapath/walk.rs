//! Reads the tables as the programs do, for tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use npolicy_common::{
    Bundle, CLASS6_WAYS, Class, Class6Bucket, ClassChunk, ClassWord, Config, Direction, EndpointLine, EndpointWord,
    PortsBlock, PortsTop, Prefix6Key, RulesetChunk, RulesetId, class6_buckets, config_flags, maps,
};

use super::maps::MappedArray;
use super::maps::double::{Double, File};
use super::tables::Tables;

/// Ports that [`Walk::mask`] asks about, for each of TCP, UDP and SCTP.
pub(super) const PROBES: [u16; 6] = [0, 79, 80, 443, 8191, 65535];

/// The tables in memory, to be mapped by a publisher and by whoever looks over its shoulder.
#[derive(Debug)]
pub(super) struct Memory {
    config: File,
    endpoints: File,
    endpoints_more: Double<u32, EndpointLine>,
    class4: File,
    class6: File,
    prefix6: Double<Prefix6Key, u32>,
    rulesets: File,
    bundles: File,
    tops: File,
    blocks: File,
}

impl Memory {
    /// Empty tables of full size.
    pub(super) fn new() -> Self {
        let config = File::new::<Config>(1);
        config.map::<Config>().store64(0, 6, 0x1234_5678_9abc_def1);
        Self {
            config,
            endpoints: File::new::<EndpointLine>(maps::ENDPOINTS_ENTRIES),
            endpoints_more: Double::default(),
            class4: File::new::<ClassChunk>(maps::CLASS4_CHUNKS),
            class6: File::new::<Class6Bucket>(maps::CLASS6_BUCKETS),
            prefix6: Double::default(),
            rulesets: File::new::<RulesetChunk>(maps::RULESETS_CHUNKS),
            bundles: File::new::<Bundle>(maps::BUNDLES_ENTRIES),
            tops: File::new::<PortsTop>(maps::PORTS_TOP_ENTRIES),
            blocks: File::new::<PortsBlock>(maps::PORTS_ENTRIES),
        }
    }

    /// The same tables, for a publisher.
    pub(super) fn tables(&self) -> Tables {
        Tables {
            config: self.config.map(),
            endpoints: self.endpoints.map(),
            endpoints_more: Box::new(self.endpoints_more.clone()),
            class4: self.class4.map(),
            class6: self.class6.map(),
            prefix6: Box::new(self.prefix6.clone()),
            rulesets: self.rulesets.map(),
            bundles: self.bundles.map(),
            tops: self.tops.map(),
            blocks: self.blocks.map(),
        }
    }

    /// The same tables, to be read as the programs read them.
    pub(super) fn walk(&self) -> Walk {
        Walk {
            config: self.config.map(),
            endpoints: self.endpoints.map(),
            endpoints_more: self.endpoints_more.clone(),
            class4: self.class4.map(),
            class6: self.class6.map(),
            prefix6: self.prefix6.clone(),
            rulesets: self.rulesets.map(),
            bundles: self.bundles.map(),
            tops: self.tops.map(),
            blocks: self.blocks.map(),
        }
    }
}

/// The tables as the programs see them.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) config: MappedArray<Config>,
    endpoints: MappedArray<EndpointLine>,
    endpoints_more: Double<u32, EndpointLine>,
    class4: MappedArray<ClassChunk>,
    class6: MappedArray<Class6Bucket>,
    prefix6: Double<Prefix6Key, u32>,
    rulesets: MappedArray<RulesetChunk>,
    bundles: MappedArray<Bundle>,
    tops: MappedArray<PortsTop>,
    blocks: MappedArray<PortsBlock>,
}

impl Walk {
    /// The word of an interface's line.
    pub(super) fn word(&self, ifindex: u32) -> Option<EndpointWord> {
        let entry = ifindex & 0xffff;
        if self.endpoints.load32(entry, 2) == ifindex {
            return Some(EndpointWord(self.endpoints.load64(entry, 0)));
        }
        self.endpoints_more.0.lock().unwrap().get(&ifindex).map(|line| line.word)
    }

    /// The class word of an address.
    pub(super) fn class(&self, address: IpAddr) -> ClassWord {
        match address {
            IpAddr::V4(address) => self.class_v4(address),
            IpAddr::V6(address) => self.class_v6(address),
        }
    }

    fn class_v4(&self, address: Ipv4Addr) -> ClassWord {
        let [a, rest @ ..] = address.octets();
        let mut chunk = a.into();
        for byte in rest {
            let word = ClassWord(self.class4.load32(chunk, byte.into()));
            match word.chunk() {
                Some(below) => chunk = below,
                None => return word,
            }
        }
        panic!("a chunk below {address}");
    }

    fn class_v6(&self, address: Ipv6Addr) -> ClassWord {
        let number = u128::from(address);
        let halves = [(number >> 64) as u64, number as u64];
        let (one, other) = class6_buckets(halves, self.config.load64(0, 6));
        for bucket in [one, other] {
            for way in 0..CLASS6_WAYS {
                let word = self.class6.load32(bucket, 4 * CLASS6_WAYS + way);
                let stands = [0, 1].map(|half| self.class6.load64(bucket, 2 * way + half));
                if word != 0 && stands == halves {
                    return ClassWord(word);
                }
            }
        }
        if self.config.load32(0, 1) & config_flags::PREFIX6_USED != 0 {
            let prefixes = self.prefix6.0.lock().unwrap();
            let contains = |key: &Prefix6Key| {
                let network = u128::from_be_bytes(key.address);
                key.bits == 0 || (network ^ number) >> (128 - key.bits) == 0
            };
            if let Some((_, &word)) = prefixes.iter().filter(|(key, _)| contains(key)).max_by_key(|(key, _)| key.bits) {
                return ClassWord(word);
            }
        }
        ClassWord(self.config.load32(0, 5))
    }

    /// What a ruleset accepts from a class: a bit for each of [`PROBES`] and protocol, and one for the other protocols.
    pub(super) fn mask(&self, ruleset: RulesetId, class: Class) -> u32 {
        if ruleset == RulesetId::ACCEPT_ALL {
            return ACCEPT_ALL_MASK;
        }
        let leaf = self.rulesets.load32(ruleset.0, (class.0 >> 9) as usize);
        let bundle = self.rulesets.load32(leaf, (class.0 & 511) as usize);
        let word = self.bundles.load64(bundle, 0).to_ne_bytes();
        let number = |at: usize| u32::from(u16::from_ne_bytes([word[2 * at], word[2 * at + 1]]));
        let bit = |set: u32, port: u16| {
            let four = self.tops.load64(set, usize::from(port >> 8) / 4).to_ne_bytes();
            let at = usize::from(port >> 8) % 4;
            let block = u16::from_ne_bytes([four[2 * at], four[2 * at + 1]]);
            self.blocks.load64(block.into(), usize::from((port >> 6) & 3)) >> (port & 63) & 1 == 1
        };
        mask(|protocol, port| if protocol == 3 { number(3) == 1 } else { bit(number(protocol), port) })
    }

    /// What an endpoint accepts from an address, or sends to it.
    pub(super) fn verdict(&self, ifindex: u32, direction: Direction, address: IpAddr) -> u32 {
        let word = self.word(ifindex).expect("the endpoint has a line");
        self.mask(word.ruleset(direction), self.class(address).class())
    }
}

/// [`Walk::mask`] of what accepts everything.
pub(super) const ACCEPT_ALL_MASK: u32 = (1 << (3 * PROBES.len() + 1)) - 1;

/// Asks about every probe; protocol 3 is every other protocol.
pub(super) fn mask(accepts: impl Fn(usize, u16) -> bool) -> u32 {
    let asked = (0..3).flat_map(|protocol| PROBES.map(|port| (protocol, port))).chain([(3, 0)]);
    asked.enumerate().map(|(at, (protocol, port))| u32::from(accepts(protocol, port)) << at).sum()
}

/// A walk that several closures share.
pub(super) type SharedWalk = Arc<Walk>;
