//! The `bpf(2)` calls that aya does not offer: TCX links by interface index, what runs on a hook, and a map of maps.
//!
//! Every attribute block is the beginning of the kernel's `union bpf_attr` for that command (`include/uapi/linux/bpf.h`,
//! v6.6); the kernel takes what follows as zero.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_OBJ_PIN: i64 = 6;
const BPF_OBJ_GET: i64 = 7;
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
const BPF_PROG_QUERY: i64 = 16;
const BPF_LINK_CREATE: i64 = 28;
const BPF_LINK_UPDATE: i64 = 29;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
const BPF_F_BEFORE: u32 = 1 << 3;

/// A TCX hook (Linux 6.6) of an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub(super) enum Hook {
    /// What comes in on the interface.
    Ingress = 46,
    /// What goes out on it.
    Egress = 47,
}

fn bpf<T>(command: i64, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: `attributes` is a block of exactly this size, and every caller's pointers in it are to memory that outlives
    // the call and is as large as the block says.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn bpf_fd<T>(command: i64, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)? as i32;
    // SAFETY: the command made this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

/// Attaches a program to a hook, before every other program there. The index is looked up in this thread's network
/// namespace.
pub(super) fn link_first(program: impl AsFd, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        ifindex: u32,
        hook: u32,
        flags: u32,
        relative: u32,
        pad: u32,
        expected_revision: u64,
    }
    let mut attributes = Attributes {
        program: raw(program),
        ifindex,
        hook: hook as u32,
        flags: BPF_F_BEFORE,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// Makes a link run another program from now on.
pub(super) fn update_link(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let mut attributes = Attributes { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// What a TCX link connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(super) struct LinkInfo {
    kind: u32,
    /// The link's own id.
    pub id: u32,
    /// The program's id.
    pub program: u32,
    pad: u32,
    /// The interface; 0 once that is gone.
    pub ifindex: u32,
    /// The hook's number.
    pub hook: u32,
}

/// Asks what a TCX link connects.
pub(super) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attributes {
        fd: u32,
        bytes: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let mut attributes = Attributes {
        fd: raw(link),
        bytes: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

/// The link ids on a hook, in the order they run; 0 for a program that is attached without a link.
pub(super) fn links_on(ifindex: u32, hook: Hook) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attributes {
        ifindex: u32,
        hook: u32,
        query_flags: u32,
        attach_flags: u32,
        program_ids: u64,
        count: u32,
        pad: u32,
        program_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    /// The kernel takes no more programs on one hook (`BPF_MPROG_MAX`).
    const MOST: usize = 64;
    let mut programs = [0_u32; MOST];
    let mut links = [0_u32; MOST];
    let mut attributes = Attributes {
        ifindex,
        hook: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        program_ids: programs.as_mut_ptr().expose_provenance() as u64,
        count: MOST as u32,
        pad: 0,
        program_attach_flags: 0,
        link_ids: links.as_mut_ptr().expose_provenance() as u64,
        link_attach_flags: 0,
        revision: 0,
    };
    match bpf(BPF_PROG_QUERY, &mut attributes) {
        Ok(_) => Ok(links[..(attributes.count as usize).min(MOST)].to_vec()),
        // Nothing was ever attached there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Keeps an object at a path of a BPF file system.
pub(super) fn pin(object: impl AsFd, at: &Path) -> io::Result<()> {
    let at = path(at)?;
    let mut attributes = Pin { path: at.as_ptr().expose_provenance() as u64, fd: raw(object), flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Opens what is kept at a path of a BPF file system.
pub(super) fn open_pin(at: &Path) -> io::Result<OwnedFd> {
    let at = path(at)?;
    let mut attributes = Pin { path: at.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 };
    bpf_fd(BPF_OBJ_GET, &mut attributes)
}

/// Makes an array of `entries` values of four bytes: plain ones, or maps like `inner`.
pub(super) fn create_array(entries: u32, inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        key_bytes: u32,
        value_bytes: u32,
        entries: u32,
        flags: u32,
        inner: u32,
    }
    let mut attributes = Attributes {
        kind: if inner.is_some() { BPF_MAP_TYPE_ARRAY_OF_MAPS } else { BPF_MAP_TYPE_ARRAY },
        key_bytes: 4,
        value_bytes: 4,
        entries,
        flags: 0,
        inner: inner.map_or(0, raw),
    };
    bpf_fd(BPF_MAP_CREATE, &mut attributes)
}

/// Puts a map into an array of maps; returns after a grace period (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c).
pub(super) fn put_map(outer: &OwnedFd, entry: u32, inner: &OwnedFd) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let value = raw(inner);
    let mut attributes = Attributes {
        map: raw(outer),
        pad: 0,
        key: std::ptr::from_ref(&entry).expose_provenance() as u64,
        value: std::ptr::from_ref(&value).expose_provenance() as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Loads a classifier that returns what `bpf_jiffies64` says (Linux 5.6).
pub(super) fn load_jiffies_program() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
    }
    const BPF_PROG_LOAD: i64 = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    /// `call 118` (BPF_FUNC_jiffies64), `exit`.
    const INSTRUCTIONS: [[u8; 8]; 2] = if cfg!(target_endian = "little") {
        [[0x85, 0, 0, 0, 118, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]]
    } else {
        [[0x85, 0, 0, 0, 0, 0, 0, 118], [0x95, 0, 0, 0, 0, 0, 0, 0]]
    };
    let mut attributes = Attributes {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        instruction_count: INSTRUCTIONS.len() as u32,
        instructions: INSTRUCTIONS.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
    };
    bpf_fd(BPF_PROG_LOAD, &mut attributes)
}

/// What a classifier said about a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TestRun {
    /// What it returned, of the last run.
    pub answer: u32,
    /// How long a run took on average.
    pub run_ns: u32,
}

/// Runs a classifier over a frame `repeat` times, as if the frame came by on interface `ifindex` of this thread's
/// namespace, having come into it on `ingress_ifindex` (0: made here).
pub(super) fn test_run(
    program: impl AsFd,
    frame: &[u8],
    ifindex: u32,
    ingress_ifindex: u32,
    repeat: u32,
) -> io::Result<TestRun> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        answer: u32,
        bytes_in: u32,
        bytes_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        run_ns: u32,
        context_bytes_in: u32,
        context_bytes_out: u32,
        context_in: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
        batch: u32,
        pad: u32,
    }
    const BPF_PROG_TEST_RUN: i64 = 10;
    // The beginning of `struct __sk_buff`; the kernel wants every other field to be zero.
    let mut context = [0_u32; 11];
    context[9] = ingress_ifindex;
    context[10] = ifindex;
    let mut attributes = Attributes {
        program: raw(program),
        answer: 0,
        bytes_in: frame.len() as u32,
        bytes_out: 0,
        data_in: frame.as_ptr().expose_provenance() as u64,
        data_out: 0,
        repeat,
        run_ns: 0,
        context_bytes_in: size_of_val(&context) as u32,
        context_bytes_out: 0,
        context_in: context.as_ptr().expose_provenance() as u64,
        context_out: 0,
        flags: 0,
        cpu: 0,
        batch: 0,
        pad: 0,
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes)?;
    Ok(TestRun { answer: attributes.answer, run_ns: attributes.run_ns })
}
