//! Loads the programs and makes the maps, or takes over those that an earlier agent left.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::EbpfLoader;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, SchedClassifier};
use npolicy_common::{
    Config, CounterRow, EndpointLine, FlowBucket4, FlowBucket6, LAYOUT_VERSION, Prefix6Key, config_flags, maps,
};
use rustix::rand::{GetRandomFlags, getrandom};

use super::clock;
use super::error::DatapathError;
use super::maps::{Keyed, MappedArray};
use super::node::DatapathConfig;
use super::pin::PinDir;
use super::schema::{OPTIONAL, REQUIRED};
use super::sys::Hook;
use super::tables::Tables;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/npolicy.o"));

/// Lines of a verifier's log that an error shows.
const SHOWN_LOG_LINES: usize = 12;
/// Events of one endpoint in one burst.
const EVENT_BURST: u32 = 100;
/// Events of one endpoint a second, after a burst.
const EVENTS_PER_SECOND: u32 = 10;

/// One copy of both programs in the kernel.
#[derive(Debug)]
pub(super) struct Programs {
    from_endpoint: OwnedFd,
    to_endpoint: OwnedFd,
}

impl Programs {
    /// The program for a hook of the host's side: what comes in there left the pod.
    pub(super) fn on(&self, hook: Hook) -> BorrowedFd<'_> {
        match hook {
            Hook::Ingress => self.from_endpoint.as_fd(),
            Hook::Egress => self.to_endpoint.as_fd(),
        }
    }

    /// Loads a copy over the maps pinned in a directory. Maps that are not there are made, with this many buckets in each
    /// flow table.
    pub(super) fn load(dir: &Path, flow_buckets: Option<u32>) -> Result<Self, DatapathError> {
        let object = |problem: String| DatapathError::Object { problem };
        let mut loader = EbpfLoader::new();
        for (name, buckets) in [maps::FLOWS4, maps::FLOWS6].into_iter().zip(flow_buckets.into_iter().cycle()) {
            loader.map_max_entries(name, buckets);
        }
        for schema in REQUIRED.iter().chain(&OPTIONAL) {
            loader.map_pin_path(schema.name, dir.join(schema.name));
        }
        let mut loaded = loader.load(OBJECT).map_err(|error| object(chain(&error)))?;
        let mut load = |name: &'static str| {
            let program = loaded.program_mut(name).ok_or_else(|| object(format!("has no program `{name}`")))?;
            let program: &mut SchedClassifier =
                program.try_into().map_err(|_| object(format!("`{name}` is not a classifier")))?;
            program.load().map_err(|error| refused(name, error))?;
            let fd = program.fd().map_err(|error| object(chain(&error)))?;
            fd.as_fd().try_clone_to_owned().map_err(DatapathError::kernel(format!("keep `{name}`")))
        };
        Ok(Self { from_endpoint: load("from_endpoint")?, to_endpoint: load("to_endpoint")? })
    }
}

fn refused(program: &'static str, error: ProgramError) -> DatapathError {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return DatapathError::Object { problem: format!("load `{program}`: {}", chain(&error)) };
    };
    let log = verifier_log.to_string();
    tracing::debug!(program, %log, "verifier log");
    if log.trim().is_empty() {
        let hint = match io_error.raw_os_error() {
            Some(libc::EPERM) => {
                " (needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and a seccomp profile that allows bpf)"
            }
            _ => "",
        };
        return DatapathError::Kernel { doing: format!("load `{program}`{hint}"), source: io_error };
    }
    let lines: Vec<&str> = log.lines().collect();
    let left_out = lines.len().saturating_sub(SHOWN_LOG_LINES);
    DatapathError::Verifier { program, errno: io_error, left_out, log: lines[left_out..].join("\n") }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Everything [`open`] gives.
pub(super) struct Opened {
    pub(super) programs: Programs,
    pub(super) tables: Tables,
    pub(super) flows4: MappedArray<FlowBucket4>,
    pub(super) flows6: MappedArray<FlowBucket6>,
    pub(super) counters: PerCpuArray<MapData, CounterRow>,
    pub(super) events: RingBuf<MapData>,
    /// Whether the maps were there already.
    pub(super) is_adopted: bool,
}

/// Opens the maps of this layout, making them if there are none, and loads one copy of the programs over them. A set of
/// maps appears under its name when it is complete: an agent that stops in between leaves nothing that counts.
pub(super) fn open(pin: &PinDir, config: &DatapathConfig) -> Result<Opened, DatapathError> {
    if !config.flow_buckets.is_power_of_two() {
        let problem = format!("{} flow buckets asked for, expected a power of two", config.flow_buckets);
        return Err(DatapathError::Object { problem });
    }
    let layout = pin.layout();
    pin.remove_unfinished()?;
    let is_adopted = layout.exists();
    let programs = if is_adopted {
        check(&layout)?;
        Programs::load(&layout, None)?
    } else {
        let unfinished = pin.unfinished();
        fs::create_dir(&unfinished).map_err(DatapathError::kernel(format!("create {}", unfinished.display())))?;
        fs::create_dir(unfinished.join("links")).map_err(DatapathError::kernel("create the directory of links"))?;
        let programs = Programs::load(&unfinished, Some(config.flow_buckets))?;
        for schema in &REQUIRED {
            schema.check(&unfinished)?;
        }
        fill_config(&unfinished)?;
        fs::rename(&unfinished, &layout).map_err(DatapathError::kernel(format!("rename {}", unfinished.display())))?;
        programs
    };
    let map = |name: &str| typed_map(&layout, name);
    let events = RingBuf::try_from(map(maps::EVENTS)?).map_err(read_error(maps::EVENTS))?;
    let counters = PerCpuArray::try_from(map(maps::COUNTERS)?).map_err(read_error(maps::COUNTERS))?;
    Ok(Opened {
        programs,
        tables: tables(&layout)?,
        flows4: array(&layout, maps::FLOWS4)?,
        flows6: array(&layout, maps::FLOWS6)?,
        counters,
        events,
        is_adopted,
    })
}

/// Checks every pinned map, and whether CONFIG names this layout.
fn check(dir: &Path) -> Result<(), DatapathError> {
    for schema in &REQUIRED {
        schema.check(dir)?;
    }
    for schema in OPTIONAL.iter().filter(|schema| dir.join(schema.name).exists()) {
        schema.check(dir)?;
    }
    let config = array::<Config>(dir, maps::CONFIG)?;
    let version = config.load32(0, std::mem::offset_of!(Config, layout_version) / 4);
    if version != LAYOUT_VERSION {
        let problem = format!("says layout version {version}, expected {LAYOUT_VERSION}");
        return Err(DatapathError::PinnedMap { path: dir.join(maps::CONFIG), problem });
    }
    Ok(())
}

/// CONFIG of an opened set of maps.
pub(super) fn config(pin: &PinDir) -> Result<MappedArray<Config>, DatapathError> {
    array(&pin.layout(), maps::CONFIG)
}

/// Fills CONFIG, once in the life of the maps.
fn fill_config(dir: &Path) -> Result<(), DatapathError> {
    let buckets = |name| Ok::<_, DatapathError>(pinned(dir, name)?.1);
    let (flows4, flows6) = (buckets(maps::FLOWS4)?, buckets(maps::FLOWS6)?);
    let hertz = clock::hertz();
    let map = array::<Config>(dir, maps::CONFIG)?;
    for word in 0..4 {
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty())
            .map_err(|error| DatapathError::kernel("draw random numbers")(error.into()))?;
        map.store64(0, super::tables::CONFIG_SECRETS_WORD + word, u64::from_ne_bytes(random) | 1);
    }
    let fields = [
        (std::mem::offset_of!(Config, flags), config_flags::UNIDENTIFIED_ACCEPTS),
        (std::mem::offset_of!(Config, jiffies_shift), clock::jiffies_shift(hertz)),
        (std::mem::offset_of!(Config, flow4_mask), flows4 - 1),
        (std::mem::offset_of!(Config, flow6_mask), flows6 - 1),
        (std::mem::offset_of!(Config, event_burst), EVENT_BURST),
        (std::mem::offset_of!(Config, event_interval), (hertz / EVENTS_PER_SECOND).max(1)),
    ];
    for (offset, value) in fields {
        map.store32(0, offset / 4, value);
    }
    map.flip32(0, std::mem::offset_of!(Config, layout_version) / 4, LAYOUT_VERSION);
    Ok(())
}

fn pinned(dir: &Path, name: &str) -> Result<(MapData, u32), DatapathError> {
    let data = MapData::from_pin(dir.join(name)).map_err(read_error(name))?;
    let entries = data.info().map_err(read_error(name))?.max_entries();
    Ok((data, entries))
}

fn typed_map(dir: &Path, name: &str) -> Result<Map, DatapathError> {
    Map::from_map_data(pinned(dir, name)?.0).map_err(read_error(name))
}

fn array<T>(dir: &Path, name: &str) -> Result<MappedArray<T>, DatapathError> {
    let (data, entries) = pinned(dir, name)?;
    MappedArray::of_map(data.fd(), entries).map_err(DatapathError::kernel(format!("map {name} into memory")))
}

fn tables(dir: &Path) -> Result<Tables, DatapathError> {
    let more = HashMap::try_from(typed_map(dir, maps::ENDPOINTS_MORE)?).map_err(read_error(maps::ENDPOINTS_MORE))?;
    let prefix6 = LpmTrie::try_from(typed_map(dir, maps::PREFIX6)?).map_err(read_error(maps::PREFIX6))?;
    Ok(Tables {
        config: array(dir, maps::CONFIG)?,
        endpoints: array(dir, maps::ENDPOINTS)?,
        endpoints_more: Box::new(KernelHash(more)),
        class4: array(dir, maps::CLASS4)?,
        class6: array(dir, maps::CLASS6)?,
        prefix6: Box::new(KernelTrie(prefix6)),
        rulesets: array(dir, maps::RULESETS)?,
        bundles: array(dir, maps::BUNDLES)?,
        tops: array(dir, maps::PORTS_TOP)?,
        blocks: array(dir, maps::PORTS)?,
    })
}

/// Makes aya's error one about a map.
pub(super) fn read_error(name: &str) -> impl FnOnce(MapError) -> DatapathError {
    let doing = format!("use {name}");
    move |error| DatapathError::Kernel { doing, source: io_error(error) }
}

fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}

struct KernelHash(HashMap<MapData, u32, EndpointLine>);

impl Keyed<u32, EndpointLine> for KernelHash {
    fn set(&mut self, key: u32, value: EndpointLine) -> io::Result<()> {
        self.0.insert(key, value, 0).map_err(io_error)
    }

    fn remove(&mut self, key: u32) -> io::Result<()> {
        self.0.remove(&key).map_err(io_error)
    }

    fn entries(&self) -> io::Result<Vec<(u32, EndpointLine)>> {
        self.0.iter().collect::<Result<_, _>>().map_err(io_error)
    }
}

struct KernelTrie(LpmTrie<MapData, [u8; 16], u32>);

impl Keyed<Prefix6Key, u32> for KernelTrie {
    fn set(&mut self, key: Prefix6Key, value: u32) -> io::Result<()> {
        self.0.insert(&Key::new(key.bits, key.address), value, 0).map_err(io_error)
    }

    fn remove(&mut self, key: Prefix6Key) -> io::Result<()> {
        self.0.remove(&Key::new(key.bits, key.address)).map_err(io_error)
    }

    fn entries(&self) -> io::Result<Vec<(Prefix6Key, u32)>> {
        let entry = |entry: Result<(Key<[u8; 16]>, u32), MapError>| {
            let (key, value) = entry.map_err(io_error)?;
            Ok((Prefix6Key { bits: key.prefix_len(), address: key.data() }, value))
        };
        self.0.iter().map(entry).collect()
    }
}
