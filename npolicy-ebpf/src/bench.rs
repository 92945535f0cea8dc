//! Programs that the benchmark measures the packet path against; BPF target only, never shipped.
//!
//! Every run starts in `vary`, which gives the packet another remote address and port and calls the program measured, so
//! that each packet is another flow. What `vary` costs is in every row, and `parse_only` behind it is the floor that is
//! taken off. The `unit_*` programs are the kernel's own units: what any connection tracking on kernel maps pays at least.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

/// The programs are for the BPF target; `cargo xtask bench` builds them.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::{__sk_buff, BPF_RB_NO_WAKEUP, TC_ACT_SHOT, TC_ACT_UNSPEC};
    use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
    use aya_ebpf::macros::{classifier, map};
    use aya_ebpf::maps::{Array, LruHashMap, ProgramArray, RingBuf};
    use aya_ebpf::programs::TcContext;
    use npolicy_common::Be16;
    use npolicy_ebpf::{Frame, plain4, plain6};

    /// Flows that `vary` draws from, and the bits of the source port that are random beside that.
    #[map]
    static FLOWS: Array<u32> = Array::with_max_entries(2, 0);
    /// The program measured.
    #[map]
    static JUMP: ProgramArray = ProgramArray::with_max_entries(1, 0);
    #[map]
    static UNIT4: LruHashMap<[u32; 4], u64> = LruHashMap::with_max_entries(524_288, 0);
    #[map]
    static UNIT6: LruHashMap<[u32; 10], u64> = LruHashMap::with_max_entries(524_288, 0);
    #[map]
    static UNIT_INSERT: LruHashMap<[u32; 4], u64> = LruHashMap::with_max_entries(524_288, 0);
    #[map]
    static UNIT_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    /// Kernel helpers are for GPL-compatible programs.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[derive(Clone, Copy)]
    struct Skb(*mut __sk_buff);

    /// The plain parsers ask for the length and the linear part; nothing else is measured here.
    impl Frame for Skb {
        #[inline(always)]
        fn length(self) -> u32 {
            // SAFETY: the kernel hands every classifier a valid context.
            unsafe { (*self.0).len }
        }

        fn ifindex(self) -> u32 {
            0
        }

        fn ingress_ifindex(self) -> u32 {
            0
        }

        fn has_outer_tag(self) -> bool {
            false
        }

        #[inline(always)]
        fn linear<'a, const N: usize>(self) -> Option<&'a [Be16; N]>
        where
            Self: 'a,
        {
            // SAFETY: as above.
            let data = unsafe { (*self.0).data } as usize;
            // SAFETY: as above.
            let end = unsafe { (*self.0).data_end } as usize;
            // SAFETY: the bytes up to `end` belong to the packet, which starts at an even address.
            if data + 2 * N > end { None } else { Some(unsafe { &*(data as *const [Be16; N]) }) }
        }

        fn load<const N: usize>(self, _offset: u32) -> Option<[u32; N]> {
            None
        }

        fn forget(self, number: u32) -> u32 {
            number
        }
    }

    /// Gives the packet the remote side of a random flow: its number is added to the lower half of the source address, and
    /// chooses the source port.
    #[classifier]
    fn vary(context: TcContext) -> i32 {
        let skb = context.skb.skb;
        let (Some(count), Some(port_bits)) = (FLOWS.get(0), FLOWS.get(1)) else { return TC_ACT_SHOT };
        // SAFETY: the helper takes nothing.
        let random = unsafe { bpf_get_prandom_u32() };
        let flow = ((random as u64 * *count as u64) >> 32) as u32;
        // SAFETY: the kernel hands every classifier a valid context.
        let data = unsafe { (*skb).data } as usize;
        // SAFETY: as above.
        let end = unsafe { (*skb).data_end } as usize;
        if data + 64 > end {
            return TC_ACT_SHOT;
        }
        // SAFETY: the frame has 64 bytes.
        let version = unsafe { *((data + 14) as *const u8) } >> 4;
        let (address, port) = if version == 4 { (data + 26, data + 34) } else { (data + 34, data + 54) };
        // SAFETY: as above; the low 24 bits follow the first byte of four.
        unsafe { *((address + 1) as *mut u8) = (flow >> 16) as u8 };
        // SAFETY: as above.
        unsafe { *((address + 2) as *mut u8) = (flow >> 8) as u8 };
        // SAFETY: as above.
        unsafe { *((address + 3) as *mut u8) = flow as u8 };
        let source = 20_000 + (flow & 0x3fff) + (random & *port_bits);
        // SAFETY: as above.
        unsafe { *(port as *mut u16) = (source as u16).to_be() };
        // SAFETY: only programs of this type are put there. It comes back only if there is none.
        unsafe { JUMP.tail_call(&context, 0) };
        TC_ACT_SHOT
    }

    #[classifier]
    fn empty(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    /// Parses, and makes the verdict depend on what was parsed.
    #[classifier]
    fn parse_only(context: TcContext) -> i32 {
        let skb = Skb(context.skb.skb);
        if let Some(packet) = plain4(skb) {
            return action(packet.source[1] as u16 ^ packet.source_port ^ packet.destination_port);
        }
        match plain6(skb) {
            Some(packet) => action(packet.source[1] as u16 ^ packet.source_port ^ packet.destination_port),
            None => TC_ACT_SHOT,
        }
    }

    /// Uses what was parsed, so that the parser is not left out; 0xffff does not occur.
    #[inline(always)]
    fn action(used: u16) -> i32 {
        if used == 0xffff { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
    }

    #[inline(always)]
    fn key4(context: &TcContext) -> [u32; 4] {
        match plain4(Skb(context.skb.skb)) {
            Some(packet) => [
                packet.source[1] as u32,
                packet.destination[1] as u32,
                (packet.source_port as u32) << 16 | packet.destination_port as u32,
                packet.protocol.0 as u32,
            ],
            None => [0; 4],
        }
    }

    /// One lookup in an LRU hash with a key of 16 bytes.
    #[classifier]
    fn unit_lru_lookup(context: TcContext) -> i32 {
        let key = key4(&context);
        if UNIT4.get_ptr(key).is_some() { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
    }

    /// One lookup in an LRU hash with a key of 40 bytes.
    #[classifier]
    fn unit_lru_lookup_v6(context: TcContext) -> i32 {
        let Some(packet) = plain6(Skb(context.skb.skb)) else { return TC_ACT_SHOT };
        let half = |word: u64| [(word >> 32) as u32, word as u32];
        let ([a, b], [c, d]) = (half(packet.source[0]), half(packet.source[1]));
        let ([e, f], [g, h]) = (half(packet.destination[0]), half(packet.destination[1]));
        let ports = (packet.source_port as u32) << 16 | packet.destination_port as u32;
        let key = [a, b, c, d, e, f, g, h, ports, packet.protocol.0 as u32];
        if UNIT6.get_ptr(key).is_some() { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
    }

    /// One insert of a new key into an LRU hash, full once it has run long enough.
    #[classifier]
    fn unit_lru_insert(context: TcContext) -> i32 {
        let key = key4(&context);
        if UNIT_INSERT.insert(key, 1, 0).is_ok() { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
    }

    /// One event of 32 bytes, without a wake-up.
    #[classifier]
    fn unit_event(context: TcContext) -> i32 {
        let [a, b, c, d] = key4(&context);
        let Some(mut record) = UNIT_EVENTS.reserve::<[u32; 8]>(0) else { return TC_ACT_SHOT };
        record.write([a, b, c, d, 1, 2, 3, 4]);
        record.submit(BPF_RB_NO_WAKEUP as u64);
        TC_ACT_UNSPEC
    }
}
