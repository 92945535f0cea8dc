//! Both programs on every endpoint's interface, first in their chains, and kept there.
//!
//! A pinned TCX link outlives the agent. A new agent adopts it and makes it run its own program by one call, without a
//! gap. A link cannot move within its chain, and a program can be on a hook once; to be first again, a *second copy* of
//! the programs is attached before everything, pinned, and only then the old link is let go.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::DatapathError;
use super::load::Programs;
use super::pin::{PinDir, link_name, parse_link_name};
use super::sys::{self, Hook};

/// The hooks of an endpoint's interface.
const HOOKS: [Hook; 2] = [Hook::Ingress, Hook::Egress];
/// Being displaced this often within [`CONTEST_WINDOW`] means that another engine wants the same place.
const CONTEST_HEALS: usize = 3;
const CONTEST_WINDOW: Duration = Duration::from_secs(60);

/// Something about an attachment that was not as the agent left it.
#[derive(Debug)]
pub struct Fault {
    /// Interface.
    pub ifindex: u32,
    /// `ingress` or `egress` of the host's side.
    pub hook: &'static str,
    /// What was found.
    pub problem: Problem,
    /// What kept it from being healed; none if it is healed.
    pub unhealed: Option<io::Error>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// Other programs ran before ours: ids of their links, 0 for one without.
    NotFirst(Vec<u32>),
    /// Our link was detached.
    Detached,
    /// Our link ran another program.
    OtherProgram(u32),
    /// Our link's pin was removed.
    PinRemoved,
    /// The hook cannot be looked at.
    Unreadable,
    /// Others took first place three times within a minute; the agent no longer takes it back.
    Contested(Vec<u32>),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ifindex, hook, problem, unhealed } = self;
        write!(f, "{hook} of interface {ifindex}: ")?;
        match problem {
            Problem::NotFirst(links) => write!(
                f,
                "other programs (links {links:?}) ran before ours (a second agent with another --pin-dir does that too)"
            )?,
            Problem::Detached => write!(f, "our link was detached")?,
            Problem::OtherProgram(program) => write!(f, "our link ran program {program}, which is not ours")?,
            Problem::PinRemoved => write!(f, "the pin of our link was removed")?,
            Problem::Unreadable => write!(f, "cannot be looked at")?,
            Problem::Contested(links) => {
                return write!(f, "links {links:?} take first place again and again; no longer taking it back");
            }
        }
        match unhealed {
            None => write!(f, "; healed"),
            Some(error) => write!(f, "; not healed: {error}"),
        }
    }
}

/// A link of ours.
#[derive(Debug)]
struct Link {
    fd: OwnedFd,
    id: u32,
    program: u32,
    copy: usize,
}

impl Link {
    fn of(fd: OwnedFd, copy: usize) -> io::Result<Self> {
        let info = sys::link_info(&fd)?;
        Ok(Self { fd, id: info.id, program: info.program, copy })
    }
}

/// All links of this agent.
#[derive(Debug)]
pub(super) struct Attachments {
    layout: PathBuf,
    pins: PathBuf,
    /// One copy of the programs, and a second one once a place had to be taken back.
    copies: Vec<Programs>,
    /// The second copy while it is being loaded: the verifier takes seconds, a place is to be taken back within one.
    loading: Option<JoinHandle<Result<Programs, DatapathError>>>,
    links: BTreeMap<(u32, Hook), Link>,
    /// When a hook's first place was taken back, as far as that matters.
    heals: BTreeMap<(u32, Hook), Vec<Instant>>,
}

impl Attachments {
    /// Takes over the pinned links, which run this agent's programs when this returns. Pins of interfaces that are gone
    /// are removed.
    pub(super) fn adopt(pin: &PinDir, programs: Programs) -> Result<Self, DatapathError> {
        let (layout, pins) = (pin.layout(), pin.links());
        let reading = || DatapathError::kernel(format!("read {}", pins.display()));
        let mut names = Vec::new();
        for entry in fs::read_dir(&pins).map_err(reading())? {
            names.push(entry.map_err(reading())?.file_name().to_string_lossy().into_owned());
        }
        // A link that was to replace another, by an agent that stopped in between: it is the first in its chain.
        names.sort_unstable_by_key(|name| !name.ends_with(NEW));
        let (links, heals) = (BTreeMap::new(), BTreeMap::new());
        let mut adopted = Self { layout, pins, copies: vec![programs], loading: None, links, heals };
        for name in names {
            let Some((ifindex, hook)) = parse_link_name(name.trim_end_matches(NEW)) else { continue };
            adopted
                .adopt_link(&name, ifindex, hook)
                .map_err(DatapathError::kernel(format!("adopt the pinned link {name}")))?;
        }
        let layout = adopted.layout.clone();
        let thread = thread::Builder::new().name("second copy".into()).spawn(move || Programs::load(&layout, None));
        adopted.loading = Some(thread.map_err(DatapathError::kernel("start a thread to load the programs again"))?);
        Ok(adopted)
    }

    fn adopt_link(&mut self, name: &str, ifindex: u32, hook: Hook) -> io::Result<()> {
        let pin = self.pins.join(name);
        if self.links.contains_key(&(ifindex, hook)) {
            // Its replacement was adopted before; renaming that one removed this pin.
            return Ok(());
        }
        let fd = sys::open_pin(&pin)?;
        let info = sys::link_info(&fd)?;
        if (info.ifindex, info.hook) != (ifindex, hook as u32) {
            return fs::remove_file(&pin);
        }
        if name.ends_with(NEW) {
            fs::rename(&pin, self.pins.join(link_name(ifindex, hook)))?;
        }
        match sys::update_link(&fd, self.copies[0].on(hook)) {
            // The interface went just now.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                return super::pin::remove_tree(&self.pins.join(link_name(ifindex, hook)));
            }
            updated => updated?,
        }
        self.links.insert((ifindex, hook), Link::of(fd, 0)?);
        Ok(())
    }

    /// Whether both programs are on an interface.
    pub(super) fn is_attached(&self, ifindex: u32) -> bool {
        HOOKS.iter().all(|&hook| self.links.contains_key(&(ifindex, hook)))
    }

    /// Whether any program is on an interface.
    pub(super) fn is_known(&self, ifindex: u32) -> bool {
        HOOKS.iter().any(|&hook| self.links.contains_key(&(ifindex, hook)))
    }

    /// The program on a hook.
    pub(super) fn program(&self, hook: Hook) -> BorrowedFd<'_> {
        self.copies[0].on(hook)
    }

    /// Interfaces with a program of ours, ascending.
    pub(super) fn interfaces(&self) -> Vec<u32> {
        let mut interfaces: Vec<u32> = self.links.keys().map(|&(ifindex, _)| ifindex).collect();
        interfaces.dedup();
        interfaces
    }

    /// Attaches what is not attached yet, first in its chain, and pins it.
    pub(super) fn attach(&mut self, ifindex: u32, name: &str) -> Result<(), DatapathError> {
        for hook in HOOKS {
            if self.links.contains_key(&(ifindex, hook)) {
                continue;
            }
            let program = program_name(hook);
            self.put_first(ifindex, hook, 0)
                .map_err(DatapathError::kernel(format!("attach `{program}` to `{name}` (ifindex {ifindex})")))?;
        }
        Ok(())
    }

    /// Attaches a copy's program before everything on a hook and pins it in place of what was pinned; then the link it
    /// replaces goes.
    fn put_first(&mut self, ifindex: u32, hook: Hook, copy: usize) -> io::Result<()> {
        let link = Link::of(sys::link_first(self.copies[copy].on(hook), ifindex, hook)?, copy)?;
        self.pin(&link, ifindex, hook)?;
        self.links.insert((ifindex, hook), link);
        Ok(())
    }

    fn pin(&self, link: &Link, ifindex: u32, hook: Hook) -> io::Result<()> {
        let name = link_name(ifindex, hook);
        let new = self.pins.join(format!("{name}{NEW}"));
        super::pin::remove_tree(&new)?;
        sys::pin(&link.fd, &new)?;
        fs::rename(&new, self.pins.join(name)).inspect_err(|_| {
            // The pin alone would keep the link, of which nobody knows then: the program could not be attached again. If
            // it cannot be removed, the error at hand says more.
            let _ = super::pin::remove_tree(&new);
        })
    }

    /// Lets go of an interface: pins and links.
    pub(super) fn detach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        for hook in HOOKS {
            let name = link_name(ifindex, hook);
            super::pin::remove_tree(&self.pins.join(&name))
                .map_err(DatapathError::kernel(format!("remove the pin {name}")))?;
            self.links.remove(&(ifindex, hook));
            self.heals.remove(&(ifindex, hook));
        }
        Ok(())
    }

    /// Looks at every hook and heals what is not as it should be.
    pub(super) fn verify(&mut self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let places: Vec<(u32, Hook)> = self.links.keys().copied().collect();
        for (ifindex, hook) in places {
            let problem = match self.find_problem(ifindex, hook) {
                Ok(None) => continue,
                Ok(Some(problem)) => problem,
                // The interface is gone; it will be retired.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
                Err(error) => {
                    faults.push(Fault {
                        ifindex,
                        hook: hook_name(hook),
                        problem: Problem::Unreadable,
                        unhealed: Some(error),
                    });
                    continue;
                }
            };
            let unhealed = self.heal(ifindex, hook, &problem).err();
            faults.push(Fault { ifindex, hook: hook_name(hook), problem, unhealed });
        }
        faults
    }

    fn second_copy(&mut self) -> Result<Programs, DatapathError> {
        match self.loading.take() {
            Some(loading) => loading.join().unwrap_or_else(|panic| panic::resume_unwind(panic)),
            None => Programs::load(&self.layout, None),
        }
    }

    fn find_problem(&mut self, ifindex: u32, hook: Hook) -> io::Result<Option<Problem>> {
        let chain = sys::links_on(ifindex, hook)?;
        let link = &self.links[&(ifindex, hook)];
        let before = match chain.iter().position(|&id| id == link.id) {
            None => return Ok(Some(Problem::Detached)),
            Some(at) => &chain[..at],
        };
        if !before.is_empty() {
            let heals = self.heals.entry((ifindex, hook)).or_default();
            heals.retain(|heal| heal.elapsed() < CONTEST_WINDOW);
            let is_contested = heals.len() >= CONTEST_HEALS;
            let before = before.to_vec();
            return Ok(Some(if is_contested { Problem::Contested(before) } else { Problem::NotFirst(before) }));
        }
        let program = sys::link_info(&link.fd)?.program;
        if program != link.program {
            return Ok(Some(Problem::OtherProgram(program)));
        }
        let is_pinned = self.pins.join(link_name(ifindex, hook)).symlink_metadata().is_ok();
        Ok((!is_pinned).then_some(Problem::PinRemoved))
    }

    fn heal(&mut self, ifindex: u32, hook: Hook, problem: &Problem) -> io::Result<()> {
        let link = &self.links[&(ifindex, hook)];
        match problem {
            Problem::Contested(_) | Problem::Unreadable => Ok(()),
            Problem::Detached => self.put_first(ifindex, hook, 0),
            Problem::OtherProgram(_) => sys::update_link(&link.fd, self.copies[link.copy].on(hook)),
            Problem::PinRemoved => self.pin(link, ifindex, hook),
            Problem::NotFirst(_) => {
                let other = 1 - link.copy;
                if self.copies.len() <= other {
                    let copy = self.second_copy().map_err(io::Error::other)?;
                    self.copies.push(copy);
                }
                self.heals.entry((ifindex, hook)).or_default().push(Instant::now());
                self.put_first(ifindex, hook, other)
            }
        }
    }
}

impl Drop for Attachments {
    /// A copy that is being loaded uses the pinned maps: nobody may take them away meanwhile.
    fn drop(&mut self) {
        if let Some(loading) = self.loading.take() {
            // What became of it does not matter any more.
            drop(loading.join());
        }
    }
}

/// Ending of a pin that is to replace another. (Names of a BPF file system have no dots.)
const NEW: &str = "-new";

fn program_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Ingress => "from_endpoint",
        Hook::Egress => "to_endpoint",
    }
}

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Ingress => "ingress",
        Hook::Egress => "egress",
    }
}
