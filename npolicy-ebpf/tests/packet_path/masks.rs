//! Entries that two writers mixed decode to nothing.

use npolicy_common::{Direction, FlowData, FlowEntry4, FlowEntry6, FlowProtocol, Origin, Tuple4, Tuple6};

const SECRETS: [u64; 4] = [0x9b97_57c6_1a9b_e3c5, 0xd6e8_feb8_6659_fd93, 0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db];

/// Numbers without order (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

fn key(bits: u64) -> FlowData {
    let direction = Direction::from_index(bits as u32);
    let protocol = FlowProtocol::from_bits(bits >> 1);
    FlowData::new(
        (bits >> 48) as u16,
        protocol,
        direction,
        Origin((bits >> 3) as u8 % 3),
        bits as u32,
        (bits >> 8) as u32,
    )
}

/// Pairs of keys that differ in one field's highest bit, in a lower one, or in all.
fn pairs(random: &mut Random) -> Vec<(FlowData, FlowData)> {
    let mut pairs = Vec::new();
    for _ in 0..2_000 {
        let bits = random.next();
        let one = key(bits);
        for changed in [1 << 63, 1 << 62, 1 << 48, 1 << 2, 1, 1 << 31, 1 << 8, random.next()] {
            pairs.push((one, key(bits ^ changed)));
        }
    }
    pairs
}

#[test]
fn a_mixed_ipv4_entry_decodes_to_no_key_that_was_written_or_lies_near() {
    let mut random = Random(1);
    for (one, two) in pairs(&mut random) {
        if one.mixed_bits() == two.mixed_bits() {
            continue;
        }
        let word = random.next();
        // The tuples differ in the top bit, below it, or not at all: what an attacker would choose.
        for other in [word, word ^ 1 << 63, word ^ 1 << 62, word ^ 1 << 31, word ^ 1] {
            let stored = FlowEntry4::mask(two, other, &SECRETS);
            let decoded = FlowEntry4::mask(one, stored, &SECRETS);
            let difference = (decoded ^ other).count_ones();
            assert!(difference > 4, "{one:?} reads what {two:?} wrote with {difference} bits changed");
        }
    }
}

#[test]
fn an_entrys_own_words_decode_whatever_its_time_and_mark() {
    let mut random = Random(2);
    for _ in 0..10_000 {
        let one = key(random.next());
        let word = random.next();
        let stored = FlowEntry4::mask(one, word, &SECRETS);
        let extended = one.with_time(random.next() as u32).with_mark();
        assert_eq!(FlowEntry4::mask(extended, stored, &SECRETS), word);
        assert_eq!(one.with_time(one.time()), one);
        assert_eq!(extended.generation(), one.generation());
    }
}

#[test]
fn a_mixed_ipv6_entry_holds_no_tuple_of_either_writer() {
    let mut random = Random(3);
    for (one, two) in pairs(&mut random) {
        let mut tuple = || Tuple6 {
            remote: [random.next(), random.next()],
            remote_port: random.next() as u16,
            local_port: random.next() as u16,
        };
        let (a, b) = (tuple(), tuple());
        // Half of one tuple and half of the other are tuples that somebody may ask for.
        let halves =
            [Tuple6 { remote: [a.remote[0], b.remote[1]], ..a }, Tuple6 { remote: [b.remote[0], a.remote[1]], ..a }];
        let (words_a, words_b) = (FlowEntry6::mask(one, a, &SECRETS), FlowEntry6::mask(two, b, &SECRETS));
        for mixture in 1..7 {
            let word = |index: usize| if mixture >> index & 1 == 0 { words_a[index] } else { words_b[index] };
            let stored = [word(0), word(1), word(2)];
            for key in [one, two] {
                for asked in [a, b, halves[0], halves[1]] {
                    assert_ne!(FlowEntry6::mask(key, asked, &SECRETS), stored, "mixture {mixture:03b}");
                }
            }
        }
    }
}

#[test]
fn an_ipv4_tuple_is_one_word() {
    let tuple = Tuple4 { remote: 0x0a00_0107, remote_port: 80, local_port: 40_000 };
    assert_eq!(tuple.word(), 0x0a00_0107_0050_9c40);
}
