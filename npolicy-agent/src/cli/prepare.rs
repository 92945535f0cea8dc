//! `npolicy prepare-node`: what `npolicy install --mount-bpffs` runs on a node before the agent.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{StatVfsMountFlags, statfs, statvfs};
use rustix::mount::{MountFlags, mount};

use super::exit;
use crate::datapath::check_kernel;

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Flags of `npolicy prepare-node`.
#[derive(clap::Args)]
#[command(after_help = "\
Run as often as you like: what is there already stays as it is. It takes root.

Exit code: 0 the node is fit; 2 it is not, and the message says what is missing.")]
pub struct Args {
    /// Where the BPF file system belongs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    path: PathBuf,

    /// Refuse to mount where the node would not see it: in a container, whose mounts reach the node only with the mount
    /// propagation Bidirectional
    #[arg(long)]
    shared: bool,
}

/// Mounts bpffs where it is missing, and checks the kernel; says both.
///
/// # Errors
///
/// The kernel lacks what the agent needs, or there is no file system to pin on and none can be mounted. Nothing is mounted
/// for a kernel that is unfit.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let Args { path, shared } = args;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    check_kernel().with_context(|| format!("see whether kernel {release} is fit"))?;
    anstream::println!("kernel {release} is fit: it has TCX hooks");
    if mount_bpffs(path, *shared)? {
        anstream::println!("{}: mounted a BPF file system", path.display());
    } else {
        anstream::println!("{}: a BPF file system already", path.display());
    }
    Ok(exit::OK)
}

/// Makes `path` a BPF file system; returns whether it was none before.
fn mount_bpffs(path: &Path, shared: bool) -> anyhow::Result<bool> {
    let shown = path.display();
    let is_there = || -> anyhow::Result<bool> {
        let found = statfs(path).map_err(io::Error::from);
        let found = found.with_context(|| {
            format!(
                "{shown} cannot be looked at; it is there where /sys is mounted and the kernel has CONFIG_BPF_SYSCALL"
            )
        })?;
        // The kernel's word for the type is signed on some machines; a magic number has 32 bits.
        Ok(u64::from(found.f_type as u32) == BPF_FS_MAGIC)
    };
    if is_there()? {
        let flags = statvfs(path).map_err(io::Error::from).with_context(|| format!("look at {shown}"))?.f_flag;
        ensure!(
            !flags.contains(StatVfsMountFlags::RDONLY),
            "{shown} is a BPF file system that is read-only: mount -o remount,rw {shown}"
        );
        return Ok(false);
    }
    if shared {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts of this process")?;
        let real = path.canonicalize().with_context(|| format!("resolve {shown}"))?;
        ensure!(
            is_shared(&mounts, &real),
            "{shown} is not on a shared mount, so the node would not see what is mounted here: the container's volumeMount \
             wants mountPropagation: Bidirectional, and the node's own mount must be shared (mount --make-rshared /sys)"
        );
    }
    // As systemd mounts it.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = CString::from(c"mode=0700");
    match mount("bpf", path, "bpf", flags, options.as_c_str()).map_err(io::Error::from) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(error).with_context(|| format!("mount a BPF file system at {shown}: it takes CAP_SYS_ADMIN"));
        }
        Err(error) => return Err(error).with_context(|| format!("mount a BPF file system at {shown}")),
    }
    if !is_there()? {
        bail!("{shown} is no BPF file system, although one was just mounted there: something covers it");
    }
    Ok(true)
}

/// Whether the mount that `path` lies on passes what is mounted on it to others, by the text of `/proc/self/mountinfo`
/// (Documentation/filesystems/proc.rst, 3.5): the fields before ` - ` are number, parent, device, root, mount point, options
/// and tags, of which `shared:N` is the one.
fn is_shared(mountinfo: &str, path: &Path) -> bool {
    let mounts = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').take_while(|field| *field != "-").skip(4);
        let point = fields.next()?;
        let is_shared = fields.skip(1).any(|tag| tag.starts_with("shared:"));
        path.starts_with(point).then_some((Path::new(point).components().count(), is_shared))
    });
    // The longest has it; of several at one place, the last covers the others.
    mounts.max_by_key(|(length, _)| *length).is_some_and(|(_, is_shared)| is_shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
21 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 21 0:27 / /sys/fs/cgroup rw master:9 - cgroup2 cgroup2 rw
40 28 0:30 / /mnt rw shared:12 - tmpfs tmpfs rw
41 40 0:31 / /mnt rw - tmpfs shared:fake rw
";

    #[test]
    fn the_innermost_mount_says_whether_it_is_shared() {
        let check = |path: &str| is_shared(MOUNTINFO, Path::new(path));
        assert!(check("/sys/fs/bpf"));
        assert!(check("/sysfs"), "another name is on the root");
        assert!(!check("/sys/fs/cgroup/x"), "a slave receives only");
        assert!(!check("/mnt/x"), "the second mount covers the first");
        assert!(!is_shared("", Path::new("/")));
    }

    #[test]
    fn refuses_a_place_that_is_not_there() {
        let error = mount_bpffs(Path::new("/no-such-place"), false).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("/no-such-place cannot be looked at; it is there where /sys is mounted"), "{text}");
    }
}
