//! The datapath of a node: everything the agent may ask of the kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use npolicy_common::{
    Config, Direction, EndpointLine, EndpointWord, FlowEvent, config_flags, endpoint_flags, flow_time,
};
use rustc_hash::FxHashMap;

use super::attach::{Attachments, Fault};
use super::clock::Jiffies;
use super::counters::{Counters, EndpointCounters};
use super::error::DatapathError;
use super::flows::Flows;
use super::grace::Grace;
use super::lines::FIRST_GENERATION;
use super::load;
use super::maps::MappedArray;
use super::pin::PinDir;
use super::publish::{PublishReport, Publisher, Settling, TableUsage};
use super::sys::{self, Hook, TestRun};
use super::tables::Limits;
use crate::compile::{Changes, Plan};
use crate::model::PodKey;
use crate::watch::links::HostLink;

/// The lowest kernel on which everything but TCX works.
const LOWEST_KERNEL: (u32, u32) = (5, 15);
/// The loopback interface has this number in every network namespace.
const LOOPBACK: u32 = 1;

/// How a datapath is set up.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory on a BPF file system for maps and links.
    pub pin_dir: PathBuf,
    /// Buckets of each flow table, four flows each; a power of two. Counts when the tables are made; tables that are there
    /// already keep their size.
    pub flow_buckets: u32,
}

impl DatapathConfig {
    /// The usual sizes, pinned in `pin_dir`.
    pub fn new(pin_dir: impl Into<PathBuf>) -> Self {
        Self { pin_dir: pin_dir.into(), flow_buckets: npolicy_common::maps::FLOWS_BUCKETS }
    }
}

/// What an endpoint got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enrolled {
    /// A line and both programs.
    Open,
    /// Both programs, but no line was free: everything on the interface is dropped.
    Closed,
}

/// What a sweep of the flow tables did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SweepReport {
    /// Entries left.
    pub kept: usize,
    /// Entries erased.
    pub erased: usize,
}

/// The datapath of the network namespace in which it is opened. All calls must come from threads of that namespace.
#[derive(Debug)]
pub struct Datapath {
    publisher: Publisher,
    attachments: Attachments,
    flows: Flows,
    counters: Counters,
    config: MappedArray<Config>,
    jiffies: Jiffies,
    is_adopted: bool,
    /// Whether interfaces that come now came under this agent's eyes.
    has_published: bool,
    /// Whether flows are still remembered from before the pods were known.
    has_early_flows: bool,
    // Last: its lock goes when everything else is gone.
    _pin: PinDir,
}

impl Datapath {
    /// Opens the datapath: makes the maps, or takes over those that are pinned, together with lines and links. Verdicts on
    /// interfaces that an earlier agent attached do not change.
    ///
    /// # Errors
    ///
    /// - [`DatapathError::OldKernel`]: no TCX (Linux 6.6), or older than 5.15 altogether.
    /// - [`DatapathError::PinDir`]: not on a BPF file system, not root's alone, held by another agent, or made by another
    ///   version.
    /// - [`DatapathError::PinnedMap`]: something else is pinned under one of our names.
    /// - [`DatapathError::Verifier`], [`DatapathError::Object`]: the programs cannot be loaded.
    /// - [`DatapathError::Kernel`]: the kernel refused something else.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        check_kernel()?;
        let pin = PinDir::open(&config.pin_dir)?;
        let opened = load::open(&pin, config)?;
        let config = load::config(&pin)?;
        let attachments = Attachments::adopt(&pin, opened.programs)?;
        let flows = Flows { v4: opened.flows4, v6: opened.flows6 };
        let grace = Grace::new().map_err(DatapathError::kernel("wait for a grace period"))?;
        let publisher = Publisher::new(opened.tables, &Limits::default(), grace, &flows.endpoints())?;
        publisher.write_constants();
        let jiffies = Jiffies::new().map_err(DatapathError::kernel("load the program that reads jiffies"))?;
        let mut datapath = Self {
            publisher,
            attachments,
            flows,
            counters: Counters { rows: opened.counters, events: opened.events },
            config,
            jiffies,
            is_adopted: opened.is_adopted,
            has_published: false,
            has_early_flows: false,
            _pin: pin,
        };
        datapath.drop_lines_without_links()?;
        datapath.clear_free_slots()?;
        Ok(datapath)
    }

    /// A line whose interface went while no agent ran, or whose programs were never attached, is of no use.
    fn drop_lines_without_links(&mut self) -> Result<(), DatapathError> {
        let lines: Vec<u32> = self.publisher.lines.iter().map(|line| line.ifindex).collect();
        for ifindex in lines.into_iter().filter(|&ifindex| !self.attachments.is_known(ifindex)) {
            self.publisher.retire(ifindex)?;
        }
        Ok(())
    }

    /// A slot of COUNTERS that nobody has starts at zero.
    fn clear_free_slots(&mut self) -> Result<(), DatapathError> {
        let taken = self.publisher.lines.slots();
        for slot in (1..npolicy_common::maps::COUNTER_SLOTS as u16).filter(|slot| !taken.contains(slot)) {
            self.counters.clear(slot)?;
        }
        Ok(())
    }

    /// Whether the maps of an earlier agent were taken over.
    pub fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// Interfaces with a program of ours, ascending.
    pub fn interfaces(&self) -> Vec<u32> {
        self.attachments.interfaces()
    }

    /// Gives an interface a line, at ruleset 2, and both programs, first in their chains. For one that has them, notes what
    /// changed about it.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`]; ENODEV where the interface went meanwhile, which is normal. What is missing then is made
    /// by the next call.
    pub fn enroll(&mut self, link: &HostLink) -> Result<Enrolled, DatapathError> {
        let bridged = if link.bridge.is_some() { endpoint_flags::BRIDGED } else { 0 };
        let is_new = self.publisher.lines.get(link.ifindex).is_none();
        let writing = || DatapathError::kernel("write ENDPOINTS_MORE");
        if is_new {
            let older = if link.is_up && !self.has_published { endpoint_flags::SOCKETS_MAY_BE_OLDER } else { 0 };
            self.publisher.lines.add(link.ifindex, bridged | older, link.netns_id).map_err(writing())?;
        }
        let note = |line: &mut EndpointLine| {
            line.flags = line.flags & !endpoint_flags::BRIDGED | bridged;
            line.netns_id = link.netns_id;
            // The first address counts: a pod may change its own.
            if line.mac == [0; 6] {
                line.mac = link.peer_mac;
            }
        };
        self.publisher.lines.change(link.ifindex, note).map_err(writing())?;
        if !self.attachments.is_attached(link.ifindex) {
            self.attachments.attach(link.ifindex, &link.name)?;
        }
        let has_line = self.publisher.lines.get(link.ifindex).is_some();
        Ok(if has_line { Enrolled::Open } else { Enrolled::Closed })
    }

    /// Lets go of an interface that is gone, or that turned out to lead to no pod: pins, links, line.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`].
    pub fn retire(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.attachments.detach(ifindex)?;
        self.publisher.retire(ifindex)
    }

    /// Publishes a plan; see [`PublishReport`]. `owners` names the pod behind each enrolled interface that has one.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`]; then no endpoint has a mixture, and the next publish repairs the rest.
    pub fn publish(&mut self, plan: &Plan, owners: &[(u32, PodKey)]) -> Result<PublishReport, DatapathError> {
        self.has_published = true;
        self.publisher.publish(plan, None, owners)
    }

    /// Says of which interfaces is known that their pod is one of several: each publish from the next on gives them what
    /// all of these may do, and no address; where there is none, the ruleset that denies all. An interface that has an owner
    /// then is not looked at.
    pub fn set_candidates(&mut self, candidates: BTreeMap<u32, Vec<PodKey>>) {
        self.publisher.set_candidates(candidates);
    }

    /// Publishes a plan as [`Self::publish`] does, and looks only at what may differ: `changes` say how the plan differs
    /// from the one that was published last, by the same compiler, completely and without an error.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`]; then the next publish must be a whole one.
    pub fn publish_changes(
        &mut self,
        plan: &Plan,
        changes: &Changes,
        owners: &[(u32, PodKey)],
    ) -> Result<PublishReport, DatapathError> {
        self.publisher.publish(plan, Some(changes), owners)
    }

    /// Whether [`Self::settle`] has anything to do.
    pub fn is_unsettled(&self) -> bool {
        self.publisher.is_unsettled()
    }

    /// Does what may be done only a grace period after the last publish, waiting for it: some ten milliseconds, during
    /// which nothing can be published.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`]; what was waiting keeps waiting.
    pub fn settle(&mut self) -> Result<(), DatapathError> {
        self.publisher.settle()?;
        self.forget_early_flows();
        Ok(())
    }

    /// Begins what [`Self::settle`] does, for a caller that does not want to wait for the grace period itself:
    /// [`Settling::wait`] may be called on any thread, and [`Self::end_settling`] does the rest.
    pub fn begin_settling(&self) -> Settling {
        self.publisher.begin_settling()
    }

    /// Does what [`Self::settle`] does after its wait. Nothing, if something was published since [`Self::begin_settling`]:
    /// then [`Self::is_unsettled`] stays true.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`]; what was waiting keeps waiting.
    pub fn end_settling(&mut self, settling: Settling) -> Result<(), DatapathError> {
        self.publisher.end_settling(settling)?;
        if !self.publisher.is_unsettled() {
            self.forget_early_flows();
        }
        Ok(())
    }

    fn forget_early_flows(&mut self) {
        if std::mem::take(&mut self.has_early_flows) {
            // Both programs are everywhere by now, and nobody judges by a line's first word any more.
            self.flows.forget_openers(FIRST_GENERATION);
        }
    }

    /// Ends the time in which pods that are not identified are accepted; to be called once all known pods are published.
    /// There is no way back, also not by a restart.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`].
    pub fn identify_from_now_on(&mut self) -> Result<(), DatapathError> {
        self.has_early_flows |= self.accepts_unidentified();
        self.publisher.identify_from_now_on()
    }

    /// Lets pods that are not identified be accepted for good, also where an earlier agent had ended that.
    pub fn accept_unidentified(&mut self) {
        self.publisher.accept_unidentified();
    }

    /// Whether pods that are not identified are still accepted.
    pub fn accepts_unidentified(&self) -> bool {
        self.config.load32(0, std::mem::offset_of!(Config, flags) / 4) & config_flags::UNIDENTIFIED_ACCEPTS != 0
    }

    /// Looks whether our programs are attached, first and the right ones everywhere; heals what is not, and says so.
    pub fn verify(&mut self) -> Vec<Fault> {
        self.attachments.verify()
    }

    /// Erases dead entries of the flow tables, and frees numbers of endpoints that are gone. To be called once a minute.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`] if the clock cannot be read.
    pub fn sweep(&mut self) -> Result<SweepReport, DatapathError> {
        let jiffies = self.jiffies.now().map_err(DatapathError::kernel("read jiffies"))?;
        let shift = self.config.load32(0, std::mem::offset_of!(Config, jiffies_shift) / 4);
        let lines = &mut self.publisher.lines;
        let awaiting = lines.awaiting_sweep();
        let generations: FxHashMap<u16, u32> =
            lines.iter().map(|line| (line.endpoint, line.word.generation())).collect();
        let swept = self.flows.sweep(flow_time(jiffies.into(), shift), &generations);
        lines.swept(&awaiting, &swept.endpoints);
        Ok(SweepReport { kept: swept.kept, erased: swept.erased })
    }

    /// Reads what was counted: every endpoint, what has no line, and once the last counts of each endpoint that is gone.
    /// A slot of COUNTERS is given to another endpoint only after that.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`].
    pub fn counters(&mut self) -> Result<Vec<EndpointCounters>, DatapathError> {
        let shared = [(0, 0, 0)];
        let lines = self.publisher.lines.iter().filter(|line| line.slot != 0);
        let slots = lines.map(|line| (line.ifindex, line.endpoint, line.slot)).chain(shared);
        let mut counts = Vec::new();
        for (ifindex, endpoint, slot) in slots {
            for direction in [Direction::Ingress, Direction::Egress] {
                let row = self.counters.row(slot, direction)?;
                counts.push(EndpointCounters { ifindex, endpoint, direction, row });
            }
        }
        for gone in self.publisher.take_gone() {
            for direction in [Direction::Ingress, Direction::Egress] {
                let row = self.counters.row(gone.slot, direction)?;
                let (ifindex, endpoint) = (gone.ifindex, gone.endpoint);
                counts.push(EndpointCounters { ifindex, endpoint, direction, row });
            }
            self.counters.clear(gone.slot)?;
            self.publisher.lines.give_back_slot(gone.slot);
        }
        Ok(counts)
    }

    /// Takes the events that are there, at most some thousands, without waiting. There is no wake-up: the caller polls.
    pub fn events(&mut self) -> Vec<FlowEvent> {
        self.counters.take_events()
    }

    /// The addresses that an interface's line gives its pod.
    pub fn address_of(&self, ifindex: u32) -> Option<impl Iterator<Item = IpAddr> + use<>> {
        self.publisher.lines.get(ifindex).map(addresses)
    }

    /// Whether some line gives its pod this address.
    pub fn is_bound(&self, address: IpAddr) -> bool {
        self.publisher.lines.iter().any(|line| addresses(line).any(|own| own == address))
    }

    /// The endpoint number of an interface, and the word that says its rulesets and generation.
    pub fn endpoint_of(&self, ifindex: u32) -> Option<(u16, EndpointWord)> {
        self.publisher.lines.get(ifindex).map(|line| (line.endpoint, line.word))
    }

    /// Runs the program of one direction over a frame, as if it came by on an enrolled interface: what tests and benches
    /// stand on. It counts, makes flows and events like any packet. `ingress_ifindex` is where the frame came into the
    /// node, 0 if the node made it.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`], ENODEV if this thread's namespace has no such interface.
    pub fn test_run(
        &self,
        direction: Direction,
        frame: &[u8],
        ifindex: u32,
        ingress_ifindex: u32,
        repeat: u32,
    ) -> Result<TestRun, DatapathError> {
        let hook = match direction {
            Direction::Ingress => Hook::Egress,
            Direction::Egress => Hook::Ingress,
        };
        sys::test_run(self.attachments.program(hook), frame, ifindex, ingress_ifindex, repeat)
            .map_err(DatapathError::kernel("run a program over a frame"))
    }

    /// How full every table is.
    pub fn usage(&self) -> Vec<TableUsage> {
        self.publisher.usage()
    }
}

fn addresses(line: &EndpointLine) -> impl Iterator<Item = IpAddr> + use<> {
    let addresses: [IpAddr; 2] = [line.ipv4.into(), line.ipv6.into()];
    addresses.into_iter().filter(|address| !address.is_unspecified())
}

/// Removes every link and map pinned in a directory: enforcement ends. Nothing if the directory is not there.
///
/// # Errors
///
/// [`DatapathError::PinDir`] if it is not ours to remove or an agent runs; [`DatapathError::Kernel`] if something cannot be
/// removed.
pub fn remove_all(pin_dir: &Path) -> Result<(), DatapathError> {
    if !pin_dir.exists() {
        return Ok(());
    }
    PinDir::open(pin_dir)?.remove_all()
}

/// Whether this kernel has what the programs need. Takes CAP_BPF and CAP_NET_ADMIN.
///
/// # Errors
///
/// [`DatapathError::OldKernel`] says what is missing; any other, that the kernel cannot be asked.
pub fn check_kernel() -> Result<(), DatapathError> {
    let found = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = found.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < LOWEST_KERNEL {
        return Err(DatapathError::OldKernel { found, needed: "5.15", why: "" });
    }
    match sys::links_on(LOOPBACK, Hook::Ingress) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Err(DatapathError::OldKernel { found, needed: "6.6", why: ": it has no TCX hooks" })
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(DatapathError::kernel(
            "ask for programs on the loopback interface (needs root, or CAP_BPF and \
                                       CAP_NET_ADMIN and a seccomp profile that allows bpf)",
        )(error)),
        Err(error) => Err(DatapathError::kernel("ask for programs on the loopback interface")(error)),
    }
}
