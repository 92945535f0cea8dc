//! The cgroups of the machines: what makes their processes findable, also after a crash.
//!
//! Every hierarchy gets `npolicy-cluster/MACHINE`. The machine's own processes are in `MACHINE/sys`; the kubelet makes its
//! pods' groups beside it. Both layouts are known: a hierarchy for each controller (version 1), and one for all
//! (version 2), where a group has those controllers that the group above it passes on.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    command,
    machine::{self, Machine},
};

/// The group of all that is ours, in every hierarchy.
const GROUP: &str = "npolicy-cluster";
/// Where hierarchies are mounted.
pub(super) const MOUNT: &str = "/sys/fs/cgroup";
/// The controllers without which the kubelet does not start.
const NEEDED: &[&str] = &["cpu", "cpuset", "memory", "pids"];
/// Those that it uses where they are.
const USED: &[&str] = &["io", "hugetlb"];
/// How long processes have to end by themselves.
const GRACE: Duration = Duration::from_millis(1500);
/// How long until they must be gone, once killed.
const LIMIT: Duration = Duration::from_secs(15);

/// A mounted hierarchy. The unified one beside those of version 1 has no controller.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    controllers: Vec<String>,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// Refuses a machine whose cgroups a cluster cannot use.
///
/// # Errors
///
/// The layout is another one; with what was found.
pub(super) fn check() -> anyhow::Result<()> {
    judge(&mounted()?)
}

fn judge(hierarchies: &[Hierarchy]) -> anyhow::Result<()> {
    let missing: Vec<_> = NEEDED.iter().filter(|name| holder(hierarchies, name).is_none()).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "cgroups: expected at {MOUNT} either the unified hierarchy with the controllers {needed}, or below it a version 1 \
         hierarchy with each of them; missing: {}",
        missing.join(", "),
        needed = NEEDED.join(", "),
    )
}

/// The hierarchies of this machine.
fn mounted() -> anyhow::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    // There is no such file where controllers have hierarchies of their own.
    let unified = fs::read_to_string(Path::new(MOUNT).join("cgroup.controllers")).unwrap_or_default();
    Ok(parse(&mounts, &unified))
}

/// The hierarchies in `mounts`; `unified` are the controllers of one that is mounted at [`MOUNT`] itself.
fn parse(mounts: &str, unified: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let is_below = Path::new(mount).parent() == Some(Path::new(MOUNT));
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let (version, controllers) = match kind {
            "cgroup" if is_below => (Version::V1, owned(&options.split(',').collect::<Vec<_>>())),
            "cgroup2" if is_below => (Version::V2, Vec::new()),
            "cgroup2" if mount == MOUNT => (Version::V2, owned(&unified.split_whitespace().collect::<Vec<_>>())),
            _ => return None,
        };
        Some(Hierarchy { mount: mount.into(), controllers, version })
    };
    mounts.lines().filter_map(hierarchy).collect()
}

fn holder<'a>(hierarchies: &'a [Hierarchy], controller: &str) -> Option<&'a Hierarchy> {
    hierarchies.iter().find(|hierarchy| hierarchy.has(controller))
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
    for hierarchy in mounted()? {
        if hierarchy.version == Version::V2 && !hierarchy.controllers.is_empty() {
            remember_passed_on(&hierarchy)?;
        }
        let mut group = hierarchy.mount.clone();
        for part in [GROUP, machine.name(), "sys"] {
            let parent = group.clone();
            group.push(part);
            fs::create_dir_all(&group).with_context(|| format!("make cgroup {}", group.display()))?;
            match hierarchy.version {
                Version::V1 if hierarchy.has("cpuset") => fill_in(&parent, &group)?,
                Version::V1 => {}
                Version::V2 => pass_on(&hierarchy, &parent)?,
            }
        }
    }
    Ok(())
}

/// A new group of version 1 has no processor and no memory, and then can have no process: it gets its parent's.
fn fill_in(parent: &Path, group: &Path) -> anyhow::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = fs::read_to_string(parent.join(file)).with_context(|| format!("read {file}"))?;
        fs::write(group.join(file), value).with_context(|| format!("fill in {file}"))?;
    }
    Ok(())
}

/// Lets the groups below `parent` have the controllers that a cluster uses. No process may be in `parent` itself, but
/// in the root.
fn pass_on(hierarchy: &Hierarchy, parent: &Path) -> anyhow::Result<()> {
    let wanted = NEEDED.iter().chain(USED).filter(|name| hierarchy.has(name));
    let wanted = wanted.map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    let file = parent.join(PASSED_ON);
    if wanted.is_empty() {
        Ok(())
    } else {
        fs::write(&file, &wanted).with_context(|| format!("write {wanted} to {}", file.display()))
    }
}

/// The file of a group that names the controllers of the groups below it.
const PASSED_ON: &str = "cgroup.subtree_control";

fn record() -> PathBuf {
    machine::run().join("cgroup-controllers")
}

/// Writes down which controllers the root passed on before us.
fn remember_passed_on(hierarchy: &Hierarchy) -> anyhow::Result<()> {
    if record().exists() {
        return Ok(());
    }
    let before = fs::read_to_string(hierarchy.mount.join(PASSED_ON)).context("read the root's controllers")?;
    fs::write(record(), before).with_context(|| format!("write {}", record().display()))
}

/// Stops passing on what was not before us.
fn restore_passed_on(hierarchy: &Hierarchy) {
    let Ok(before) = fs::read_to_string(record()) else { return };
    let now = fs::read_to_string(hierarchy.mount.join(PASSED_ON)).unwrap_or_default();
    for name in now.split_whitespace().filter(|name| !before.split_whitespace().any(|other| other == *name)) {
        // Refused where another group has come to use it meanwhile: then it is to stay.
        let _ = fs::write(hierarchy.mount.join(PASSED_ON), format!("-{name}"));
    }
}

/// The files into which a process writes itself to belong to `machine`.
///
/// # Errors
///
/// The mounts cannot be read.
pub(super) fn entries(machine: Machine) -> anyhow::Result<Vec<PathBuf>> {
    let hierarchies = mounted()?;
    let of = |controller: &&str| holder(&hierarchies, controller);
    let path = |hierarchy: &Hierarchy| own(hierarchy, machine).join("sys/cgroup.procs");
    let mut entries: Vec<_> = ["pids", "memory"].iter().filter_map(of).map(path).collect();
    entries.dedup();
    Ok(entries)
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
    let hierarchies = mounted().unwrap_or_default();
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
    for hierarchy in mounted()? {
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
    for hierarchy in mounted()? {
        remove(&hierarchy.mount.join(GROUP))?;
        restore_passed_on(&hierarchy);
    }
    Ok(())
}

fn remove(group: &Path) -> anyhow::Result<()> {
    for inner in groups_below(group) {
        // The last process may still be leaving.
        command::wait_for("remove a cgroup", Duration::from_secs(5), || {
            fs::remove_dir(&inner).with_context(|| format!("remove cgroup {}", inner.display()))
        })?;
    }
    Ok(())
}

/// Bytes of memory of `machine`: of its processes, and cached for them.
pub(super) fn memory(machine: Machine) -> Option<(u64, u64)> {
    let hierarchies = mounted().ok()?;
    let holder = holder(&hierarchies, "memory")?;
    let text = fs::read_to_string(own(holder, machine).join("memory.stat")).ok()?;
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
    };
    match holder.version {
        Version::V1 => Some((value("total_rss")?, value("total_cache")?)),
        Version::V2 => Some((value("anon")?, value("file")?)),
    }
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
    const VERSION_2: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";

    #[test]
    fn hierarchies_of_version_1_beside_an_empty_unified_one_will_do() {
        let found = parse(VERSION_1, "");
        judge(&found).expect("this is how systemd mounts them in its hybrid mode");
        assert_eq!(found.len(), 5);
        assert_eq!(holder(&found, "cpuacct").map(|h| h.mount.as_path()), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert!(found.iter().filter(|h| h.version == Version::V2).all(|h| h.controllers.is_empty()));
    }

    #[test]
    fn a_unified_hierarchy_with_every_controller_will_do() {
        let found = parse(VERSION_2, "cpuset cpu io memory pids\n");
        judge(&found).expect("this is what most machines have");
        assert_eq!(holder(&found, "pids"), holder(&found, "memory"));
        assert_eq!(holder(&found, "pids").map(|h| h.version), Some(Version::V2));
    }

    #[test]
    fn a_missing_controller_is_named_in_both_versions() {
        let told = |found: &[Hierarchy]| judge(found).expect_err("the kubelet needs it").to_string();
        let mounts = VERSION_1.replace("cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n", "");
        assert!(told(&parse(&mounts, "")).ends_with("missing: pids"));
        assert!(told(&parse(VERSION_2, "cpu io memory pids")).ends_with("missing: cpuset"));
        assert!(told(&[]).ends_with("missing: cpu, cpuset, memory, pids"));
    }
}
