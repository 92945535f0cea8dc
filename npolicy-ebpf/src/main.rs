//! The two hooks.
//!
//! They sit on the host-side veth of a pod, so what leaves the pod enters the interface: `from_endpoint` is on TC
//! *ingress* and enforces the pod's egress policy, `to_endpoint` on TC *egress* and enforces its ingress policy.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod maps;

/// The programs are for the BPF target; `cargo xtask ebpf` builds them.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod hooks {
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
    use aya_ebpf::macros::classifier;
    use aya_ebpf::programs::TcContext;
    use npolicy_common::Verdict;

    use crate::maps::Kernel;

    /// Judges a pod's egress, on TC *ingress* of the host-side veth.
    #[classifier]
    fn from_endpoint(context: TcContext) -> i32 {
        action(Kernel::new(context.skb.skb).map(npolicy_ebpf::from_endpoint))
    }

    /// Judges a pod's ingress, on TC *egress* of the host-side veth.
    #[classifier]
    fn to_endpoint(context: TcContext) -> i32 {
        action(Kernel::new(context.skb.skb).map(npolicy_ebpf::to_endpoint))
    }

    /// Accepting is "next program", never "ok": no other program on the hook is switched off.
    #[inline(always)]
    fn action(verdict: Option<Verdict>) -> i32 {
        match verdict {
            Some(Verdict::Accept) => TC_ACT_UNSPEC,
            Some(Verdict::Deny) | None => TC_ACT_SHOT,
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    /// Kernel helpers are for GPL-compatible programs.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
