//! Tells the BPF linker how to expand copies.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // Otherwise small fills become calls, and the kernel allows eight nested ones.
        println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
