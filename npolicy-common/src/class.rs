//! Classes and the tables from an address to its class.
//!
//! ```text
//! IPv4 a.b.c.d:  CLASS4[a][b] -> class, or chunk -> [c] -> class, or chunk -> [d] -> class
//! IPv6:          CLASS6[one of two buckets].five addresses -> class, else PREFIX6 (longest match), else CONFIG's default
//! ```

/// All that the policies in force on this node can tell apart about a peer address, as a number of 18 bits.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Class(pub u32);

impl Class {
    /// An address that no policy distinguishes.
    pub const PLAIN: Self = Self(0);
    /// Packets that this node itself makes.
    pub const NODE_SELF: Self = Self(1);
    /// The pod reaching itself through a Service.
    pub const POD_SELF: Self = Self(2);
    /// An address that does not fit the tables. Every governed row denies it.
    pub const UNKNOWN: Self = Self(3);
    /// The first class that a policy can give rise to.
    pub const FIRST: Self = Self(4);
    /// Classes a ruleset has room for: 512 leaf chunks of 512 rows.
    pub const LIMIT: u32 = 512 * 512;
}

/// An entry of the address tables: a class and two facts about the address, or the number of the next chunk.
///
/// Bits 0 to 19: class or chunk. Bit 31: a chunk follows. Bit 30: an address of this node. Bit 29: a Service's address.
/// Bit 28: the address is listed (CLASS6 only, so that a used entry is never zero).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ClassWord(pub u32);

impl ClassWord {
    /// A chunk follows.
    pub const CHUNK: u32 = 1 << 31;
    /// The address is one of this node's own.
    pub const NODE: u32 = 1 << 30;
    /// The address is a Service's.
    pub const SERVICE: u32 = 1 << 29;
    /// The entry is used (CLASS6).
    pub const LISTED: u32 = 1 << 28;
    const NUMBER: u32 = (1 << 20) - 1;

    /// An entry that gives the class itself.
    #[inline(always)]
    pub const fn class_entry(class: Class, bits: u32) -> Self {
        Self((class.0 & Self::NUMBER) | bits)
    }

    /// An entry that leads to another chunk.
    #[inline(always)]
    pub const fn chunk_entry(chunk: u32) -> Self {
        Self((chunk & Self::NUMBER) | Self::CHUNK)
    }

    /// The class; meaningless for an entry that leads to a chunk.
    #[inline(always)]
    pub const fn class(self) -> Class {
        Class(self.0 & Self::NUMBER)
    }

    /// The next chunk, if one follows.
    #[inline(always)]
    pub const fn chunk(self) -> Option<u32> {
        if self.0 & Self::CHUNK != 0 { Some(self.0 & Self::NUMBER) } else { None }
    }

    /// Whether the address is one of this node's own.
    #[inline(always)]
    pub const fn is_node(self) -> bool {
        self.0 & Self::NODE != 0
    }

    /// Whether the address is a Service's.
    #[inline(always)]
    pub const fn is_service(self) -> bool {
        self.0 & Self::SERVICE != 0
    }
}

/// Value of CLASS4: 256 entries for one byte of an address. Roots are chunks 0 to 255, by the address's first byte.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct ClassChunk {
    /// Entry by the next byte of the address.
    pub entries: [ClassWord; 256],
}
const _: () = assert!(size_of::<ClassChunk>() == 1024);

/// Addresses a bucket of CLASS6 holds.
pub const CLASS6_WAYS: usize = 5;

/// Value of CLASS6. A way is free while its class word is zero; the address is written first, the class word last.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Class6Bucket {
    /// Addresses as two words each, read from the packet's bytes in host order.
    pub addresses: [[u64; 2]; CLASS6_WAYS],
    /// Class words, [`ClassWord::LISTED`] set where the way is used.
    pub classes: [ClassWord; CLASS6_WAYS],
    /// Always zero.
    pub reserved: [u32; 7],
}
const _: () = assert!(size_of::<Class6Bucket>() == 128);

/// Returns the two buckets of CLASS6 that may hold an address; they can be the same.
#[inline(always)]
pub const fn class6_buckets(address: [u64; 2], secret: u64) -> (u32, u32) {
    let mut x = (address[0] ^ secret).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 32;
    x = (x ^ address[1]).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    x ^= x >> 32;
    x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((x >> 48) as u32, (x >> 32) as u32 & 0xffff)
}

/// Key of PREFIX6, as the kernel's LPM trie wants it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Prefix6Key {
    /// Bits of `address` that count, 0 to 128.
    pub bits: u32,
    /// Network byte order.
    pub address: [u8; 16],
}
const _: () = assert!(size_of::<Prefix6Key>() == 20);
