//! Puts the eBPF object where `datapath` embeds it: the committed one, or the file named by NPOLICY_BPF_OBJECT.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=NPOLICY_BPF_OBJECT");
    let committed = || PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo names it")).join("bpf/npolicy.o");
    let object = env::var_os("NPOLICY_BPF_OBJECT").map_or_else(committed, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let copy = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names it")).join("npolicy.o");
    if let Err(error) = fs::copy(&object, &copy) {
        println!("cargo::error=eBPF object {}: {error}; `cargo xtask ebpf` builds it", object.display());
    }
}
