//! The cgroups of the machines: what makes their processes findable, also after a crash.
//!
//! Every hierarchy gets `npolicy-cluster/MACHINE`. The machine's own processes are in `MACHINE/sys`; the kubelet
//! makes its pods' groups beside it.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::machine::Machine;

/// The group of all that is ours, in every hierarchy.
const GROUP: &str = "npolicy-cluster";
/// Where hierarchies are mounted.
pub(super) const MOUNT: &str = "/sys/fs/cgroup";
/// The controllers without which the kubelet does not start.
const NEEDED: &[&str] = &["cpu", "cpuset", "memory", "pids"];
/// How long processes have to end by themselves.
const GRACE: Duration = Duration::from_millis(1500);
/// How long until they must be gone, once killed.
const LIMIT: Duration = Duration::from_secs(15);

/// A mounted hierarchy: of version 1, or the unified one beside them, which has no controller then.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    controllers: Vec<String>,
}

/// Refuses a machine whose cgroups a cluster cannot use.
///
/// # Errors
///
/// The layout is another one; with what was found.
pub(super) fn check() -> anyhow::Result<()> {
    judge(&mounts()?)
}

fn mounts() -> anyhow::Result<String> {
    fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")
}

fn judge(mounts: &str) -> anyhow::Result<()> {
    let found = hierarchies(mounts);
    let missing: Vec<_> = NEEDED.iter().filter(|controller| holder(&found, controller).is_none()).copied().collect();
    if missing.is_empty() && mounts.lines().any(|line| line.starts_with(&format!("tmpfs {MOUNT} "))) {
        return Ok(());
    }
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(MOUNT) && line.contains(" cgroup2 ")) {
        bail!(
            "{MOUNT} is the unified hierarchy (cgroups version 2): this cluster was tried on version 1 hierarchies only, \
             because it makes a group beside the system's own. Boot with `systemd.unified_cgroup_hierarchy=0 \
             SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1` on the kernel's command line, or use `cargo xtask kind up`"
        );
    }
    bail!(
        "cgroups: expected a tmpfs at {MOUNT} with a version 1 hierarchy below it for each of {}; missing: {}",
        NEEDED.join(", "),
        if missing.is_empty() { "the tmpfs".to_owned() } else { missing.join(", ") }
    )
}

fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let is_one = matches!(kind, "cgroup" | "cgroup2") && Path::new(mount).parent() == Some(Path::new(MOUNT));
        is_one.then(|| Hierarchy { mount: mount.into(), controllers: options.split(',').map(str::to_owned).collect() })
    };
    mounts.lines().filter_map(hierarchy).collect()
}

fn holder<'a>(hierarchies: &'a [Hierarchy], controller: &str) -> Option<&'a Hierarchy> {
    hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
}

/// The kubelet's `cgroupRoot` on `machine`.
pub(super) fn kubelet_root(machine: Machine) -> String {
    format!("/{GROUP}/{}", machine.name())
}

/// Makes the groups of `machine`; those that are there stay.
///
/// # Errors
///
/// A group cannot be made.
pub(super) fn make(machine: Machine) -> anyhow::Result<()> {
    for Hierarchy { mount, controllers } in hierarchies(&mounts()?) {
        let parts = [GROUP, machine.name(), "sys"];
        let mut group = mount.clone();
        for part in parts {
            let parent = group.clone();
            group.push(part);
            fs::create_dir_all(&group).with_context(|| format!("make cgroup {}", group.display()))?;
            if controllers.iter().any(|controller| controller == "cpuset") {
                // A new group has no processor and no memory, and then can have no process.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let value = fs::read_to_string(parent.join(file)).with_context(|| format!("read {file}"))?;
                    fs::write(group.join(file), value).with_context(|| format!("fill in {file}"))?;
                }
            }
        }
    }
    Ok(())
}

/// The files into which a process writes itself to belong to `machine`.
///
/// # Errors
///
/// The mounts cannot be read.
pub(super) fn entries(machine: Machine) -> anyhow::Result<Vec<PathBuf>> {
    let hierarchies = hierarchies(&mounts()?);
    let of = |controller: &&str| holder(&hierarchies, controller);
    let path = |hierarchy: &Hierarchy| own(hierarchy, machine).join("sys/cgroup.procs");
    Ok(["pids", "memory"].iter().filter_map(of).map(path).collect())
}

fn own(hierarchy: &Hierarchy, machine: Machine) -> PathBuf {
    hierarchy.mount.join(GROUP).join(machine.name())
}

/// The processes of `machine` itself, without those of pods.
pub(super) fn own_processes(machine: Machine) -> Vec<i32> {
    let entry = entries(machine).ok().and_then(|entries| entries.into_iter().next());
    entry.map(|entry| processes_in(&entry)).unwrap_or_default()
}

/// Every process of `machine`, with those of its pods.
pub(super) fn processes(machine: Machine) -> Vec<i32> {
    let hierarchies = mounts().map(|mounts| hierarchies(&mounts)).unwrap_or_default();
    let Some(pids) = holder(&hierarchies, "pids") else { return Vec::new() };
    groups_below(&own(pids, machine)).iter().flat_map(|group| processes_in(&group.join("cgroup.procs"))).collect()
}

/// A group that vanished has none.
fn processes_in(file: &Path) -> Vec<i32> {
    fs::read_to_string(file).map(|text| text.lines().filter_map(|line| line.parse().ok()).collect()).unwrap_or_default()
}

/// `group` and all below it, those inside first.
fn groups_below(group: &Path) -> Vec<PathBuf> {
    let mut groups = Vec::new();
    if !group.is_dir() {
        return groups;
    }
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            groups.extend(groups_below(&entry.path()));
        }
    }
    groups.push(group.to_owned());
    groups
}

/// Ends every process of `machine`, and removes its groups.
///
/// # Errors
///
/// A process or a group stays.
pub(super) fn end(machine: Machine) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut asked: Vec<i32> = Vec::new();
    loop {
        let left = processes(machine);
        if left.is_empty() {
            break;
        }
        if begin.elapsed() > LIMIT {
            bail!("processes of {} do not end: {left:?}", machine.name());
        }
        for &pid in &left {
            let Some(process) = Pid::from_raw(pid) else { continue };
            // One that is gone meanwhile needs no signal.
            if begin.elapsed() > GRACE {
                let _ = kill_process(process, Signal::KILL);
            } else if !asked.contains(&pid) {
                let _ = kill_process(process, Signal::TERM);
                asked.push(pid);
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    for hierarchy in hierarchies(&mounts()?) {
        remove(&own(&hierarchy, machine))?;
    }
    Ok(())
}

/// Removes the group above the machines'.
///
/// # Errors
///
/// It stays.
pub(super) fn remove_all() -> anyhow::Result<()> {
    hierarchies(&mounts()?).iter().try_for_each(|hierarchy| remove(&hierarchy.mount.join(GROUP)))
}

fn remove(group: &Path) -> anyhow::Result<()> {
    for inner in groups_below(group) {
        // The last process may still be leaving.
        super::command::wait_for("remove a cgroup", Duration::from_secs(5), || {
            fs::remove_dir(&inner).with_context(|| format!("remove cgroup {}", inner.display()))
        })?;
    }
    Ok(())
}

/// Bytes of memory of `machine`: of its processes, and cached for them.
pub(super) fn memory(machine: Machine) -> Option<(u64, u64)> {
    let hierarchies = hierarchies(&mounts().ok()?);
    let text = fs::read_to_string(own(holder(&hierarchies, "memory")?, machine).join("memory.stat")).ok()?;
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
    };
    Some((value("total_rss")?, value("total_cache")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_1: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                             cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                             cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
                             cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                             cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n\
                             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                             cgroup /elsewhere/cgroup/pids cgroup rw,pids 0 0\n";

    #[test]
    fn hierarchies_of_version_1_beside_an_empty_unified_one_will_do() {
        judge(VERSION_1).expect("this is how systemd mounts them in its hybrid mode");
        let found = hierarchies(VERSION_1);
        assert_eq!(found.len(), 5);
        assert_eq!(holder(&found, "cpuacct").map(|h| h.mount.as_path()), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
    }

    #[test]
    fn a_missing_controller_is_named() {
        let mounts = VERSION_1.replace("cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n", "");
        let told = judge(&mounts).expect_err("the kubelet needs it").to_string();
        assert!(told.ends_with("missing: pids"), "{told}");
    }

    #[test]
    fn the_unified_hierarchy_is_refused_with_a_way_out() {
        let told = judge("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").expect_err("not supported").to_string();
        assert!(told.contains("version 2") && told.contains("cargo xtask kind up"), "{told}");
    }
}
