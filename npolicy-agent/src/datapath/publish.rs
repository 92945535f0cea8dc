//! Makes the tables equal a plan, each pod whole, with no moment in which anybody is judged by a mixture.
//!
//! One procedure serves every change: of policies, of labels, of addresses, and the first publish of a new agent over
//! tables that an earlier one filled.
//!
//! 1. Every address has a class *number* in the tables and a *key* in the plan. Each pair of them that differs gets a
//!    number: the key's own if all live rulesets give it the same row, else the present one if nobody else needs it, else
//!    a fresh one whose row is copied from the present one in every live ruleset. Addresses move by single stores; no
//!    verdict changes.
//! 2. New rulesets are written with a row for every number by its key, into chunks nobody reads.
//! 3. One store for each endpoint moves it to both its new rulesets and a new generation.
//! 4. After a grace period ([`Publisher::settle`]) generations that were raised are raised again, for packets that read
//!    new and old words across the change; what nothing leads to is free, and numbers of one key become one.

mod settling;
mod target;
#[cfg(test)]
mod tests;
mod writer;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use npolicy_common::{
    Class, ClassWord, Config, Direction, EndpointLine, EndpointWord, Family, RulesetId, config_flags, maps,
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::bundles::Bundles;
use super::class4::Class4;
use super::class6::Class6;
use super::error::{DatapathError, Full};
use super::grace::Grace;
use super::lines::{Gone, Lines};
use super::maps::MappedArray;
use super::numbers::{Numbers, PeerKey};
use super::rulesets::Rulesets;
use super::tables::{Limits, Tables};
use crate::compile::{Changes, Plan, Ruleset, Subject};
use crate::model::PodKey;

pub use settling::Settling;
use target::Target;
use writer::{RowCache, RulesetWriter};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Classes that are in use whether or not an address has them.
const RESERVED: [Class; 4] = [Class::PLAIN, Class::NODE_SELF, Class::POD_SELF, Class::UNKNOWN];

/// Halves of CONFIG, by field.
mod config_half {
    pub(super) const FLAGS: usize = 1;
    pub(super) const DEFAULT_CLASS6: usize = 5;
}

/// What a publish did, and what it could not do.
#[derive(Clone, Debug, Default)]
pub struct PublishReport {
    /// The word of each endpoint that belongs to a pod, by interface.
    pub words: BTreeMap<u32, EndpointWord>,
    /// Endpoints that were moved to other rulesets.
    pub flipped: Vec<u32>,
    /// Endpoints that could not get the rulesets they should have.
    pub degraded: Vec<Degraded>,
    /// Blocks of addresses that did not fit the address tables: nobody governed accepts them.
    pub unfit: Vec<IpNet>,
    /// How often no class number was free, or no room for its rows: some addresses are UNKNOWN until a later publish.
    pub numbers_missing: usize,
    /// Entries of the address tables that were written.
    pub addresses_written: usize,
    /// Rulesets that were written.
    pub rulesets_written: usize,
}

impl PublishReport {
    /// Whether everything of the plan is in force.
    pub fn is_complete(&self) -> bool {
        self.degraded.is_empty() && self.unfit.is_empty() && self.numbers_missing == 0
    }
}

/// A direction of an endpoint that could not get the ruleset it should have, because a table is full.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Degraded {
    /// Interface.
    pub ifindex: u32,
    /// The pod behind it.
    pub pod: PodKey,
    /// Which direction.
    pub direction: Direction,
    /// What it has instead.
    pub instead: Instead,
    /// Which table is full.
    pub full: Full,
}

/// What a direction has while its ruleset does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instead {
    /// The last complete ruleset, which allows nothing that the new one denies.
    Last,
    /// The ruleset that denies everything but the node's own packets.
    DenyAll,
}

/// How full a table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableUsage {
    /// The table's name.
    pub table: &'static str,
    /// Entries given out.
    pub used: u32,
    /// Entries that can be given out at all.
    pub capacity: u32,
}

/// The tables' one writer.
#[derive(Debug)]
pub(super) struct Publisher {
    config: MappedArray<Config>,
    class4: Class4,
    class6: Class6,
    numbers: Numbers,
    rulesets: Rulesets,
    bundles: Bundles,
    rows: RowCache,
    /// The endpoints' lines.
    pub(super) lines: Lines,
    grace: Arc<Grace>,
    /// Grows with every change that begins to wait for a grace period.
    revision: u64,
    /// What the address tables were last told to say; `None` while that is uncertain.
    target: Option<Target>,
    /// Whether telling them the same again may write something: numbers of one key, and what rests, come together.
    is_moving: bool,
    /// By interface, where the rulesets are the right ones: whose it is, and which. They are right as long as numbers mean
    /// what they meant and none is in use but those of `checked`.
    in_force: InForce,
    /// [`Numbers::bindings`] when the rulesets were last looked at.
    bindings: u64,
    /// Numbers for which every ruleset in force has the right row.
    checked: BTreeSet<Class>,
    /// Numbers that stand in the address tables.
    in_use: BTreeSet<Class>,
    /// Rulesets that no word names any more, but did less than a grace period ago.
    resting_rulesets: Vec<RulesetId>,
    /// Endpoints whose generation is to be raised once more after a grace period, with the revision that flipped them.
    raise_again: FxHashMap<u32, u64>,
    /// Interfaces whose pod is one of several.
    candidates: BTreeMap<u32, Vec<PodKey>>,
    /// Whether [`Self::settle`] has anything to do.
    is_unsettled: bool,
    /// Lines that are gone for a grace period and whose slots wait for their last reading.
    gone: Vec<Gone>,
}

/// By interface: whose it is, and its rulesets.
type InForce = FxHashMap<u32, (PodKey, [RulesetId; 2])>;

/// By present number and target: the number to have.
type Assigned = FxHashMap<(Class, u32), Class>;

impl Publisher {
    /// Takes over the tables, empty ones or those an earlier agent left. Waits for one grace period, so that what that
    /// agent freed last is free.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`] if a map cannot be read.
    pub(super) fn new(
        tables: Tables,
        limits: &Limits,
        grace: Grace,
        flows_of: &FxHashSet<u16>,
    ) -> Result<Self, DatapathError> {
        let Tables { config, endpoints, endpoints_more, class4, class6, prefix6, rulesets, bundles, tops, blocks } =
            tables;
        grace.wait().map_err(DatapathError::kernel("wait for a grace period"))?;
        let lines = Lines::new(endpoints, endpoints_more, limits, flows_of)
            .map_err(DatapathError::kernel("read ENDPOINTS_MORE"))?;
        let rulesets = Rulesets::new(rulesets, limits.ruleset_chunks, lines.rulesets());
        let bundles = Bundles::new(bundles, tops, blocks, limits, rulesets.bundles());
        let default = ClassWord(config.load32(0, config_half::DEFAULT_CLASS6));
        let secret = config.load64(0, super::tables::CONFIG_SECRETS_WORD + 2);
        let class6 =
            Class6::new(class6, prefix6, secret, default, limits).map_err(DatapathError::kernel("read PREFIX6"))?;
        Ok(Self {
            config,
            class4: Class4::new(class4, limits.class4_chunks),
            class6,
            numbers: Numbers::new(limits.classes),
            rulesets,
            bundles,
            rows: RowCache::default(),
            lines,
            grace: Arc::new(grace),
            revision: 0,
            target: None,
            is_moving: true,
            in_force: FxHashMap::default(),
            bindings: 0,
            checked: BTreeSet::new(),
            in_use: BTreeSet::new(),
            resting_rulesets: Vec::new(),
            raise_again: FxHashMap::default(),
            candidates: BTreeMap::new(),
            is_unsettled: true,
            gone: Vec::new(),
        })
    }

    /// Writes the entries that never change. Done once, when the tables are made.
    pub(super) fn write_constants(&self) {
        self.rulesets.write_constants();
        self.bundles.write_constants();
    }

    /// Says of which interfaces is known that their pod is one of several: they get what all of these may do, and no
    /// address, at each publish from the next on; where there is none, the ruleset that denies all. An interface that has an
    /// owner is not looked at.
    pub(super) fn set_candidates(&mut self, candidates: BTreeMap<u32, Vec<PodKey>>) {
        self.candidates = candidates;
    }

    /// Publishes a plan. `owners` names the pod behind each interface that has one and is enrolled; endpoints not named
    /// stay as they are. `changes` say how the plan differs from the one published last, if that was complete; without
    /// them everything is looked at.
    ///
    /// What does not fit is reported, not an error: an endpoint keeps its last ruleset in a direction where that allows
    /// nothing that the new one denies, else it gets the one that denies all. If something does not fit, what is only
    /// waiting for a grace period is collected first.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`] if a map cannot be written. Then no endpoint has a mixture, and the next publish
    /// repairs the rest.
    pub(super) fn publish(
        &mut self,
        plan: &Plan,
        changes: Option<&Changes>,
        owners: &[(u32, PodKey)],
    ) -> Result<PublishReport, DatapathError> {
        let mut report = self.publish_once(plan, changes, owners)?;
        if self.is_unsettled && !report.is_complete() {
            let flipped = std::mem::take(&mut report.flipped);
            self.settle()?;
            report = self.publish_once(plan, None, owners)?;
            report.flipped.extend(flipped);
            report.flipped.sort_unstable();
            report.flipped.dedup();
        }
        Ok(report)
    }

    fn publish_once(
        &mut self,
        plan: &Plan,
        changes: Option<&Changes>,
        owners: &[(u32, PodKey)],
    ) -> Result<PublishReport, DatapathError> {
        self.revision += 1;
        let known = self.target.take().zip(changes);
        let target = match known {
            Some((target, changes)) if changes.moves_nothing() => Some((target, false)),
            Some((target, changes)) => target.changed(plan, changes, &self.class4, &self.class6).map(|t| (t, true)),
            None => None,
        };
        let (target, is_other) = target.unwrap_or_else(|| (Target::new(plan, &self.class4, &self.class6), true));
        let mut report = PublishReport { unfit: target.unfit(), ..PublishReport::default() };
        if is_other {
            (report.addresses_written, report.numbers_missing) = self.move_addresses(&target)?;
        }
        self.target = Some(target);

        self.rows.forget(&self.numbers.take_rebound());
        let are_rows_right = self.bindings == self.numbers.bindings() && self.in_use.is_subset(&self.checked);
        let unchanged = changes.filter(|_| are_rows_right).map(|changes| &changes.subjects);
        if unchanged.is_none() {
            self.bindings = self.numbers.bindings();
            self.checked.clone_from(&self.in_use);
        }
        // What an endpoint has is right if its pod, the pod's rulesets and what their rows mean are what they were.
        let is_right =
            |in_force: &FxHashMap<u32, (PodKey, [RulesetId; 2])>, ifindex, pod: &PodKey, now: EndpointWord| {
                let is_same = |(known, has): &(PodKey, _)| known == pod && DIRECTIONS.map(|d| now.ruleset(d)) == *has;
                unchanged.is_some_and(|changed| changed.binary_search(pod).is_err())
                    && in_force.get(&ifindex).is_some_and(is_same)
            };
        let in_force = std::mem::take(&mut self.in_force);
        let mut writer =
            RulesetWriter::new(&self.numbers, &self.in_use, &mut self.rulesets, &mut self.bundles, &mut self.rows);
        let mut flips = Vec::new();
        for (ifindex, pod) in owners {
            let Some(subject) = plan.subjects.get(pod) else { continue };
            let Some(line) = self.lines.get(*ifindex) else { continue };
            let now = line.word;
            if is_right(&in_force, *ifindex, pod, now) {
                report.words.insert(*ifindex, now);
                self.in_force.insert(*ifindex, (pod.clone(), DIRECTIONS.map(|direction| now.ruleset(direction))));
                continue;
            }
            let mut is_complete = true;
            let then = DIRECTIONS.map(|direction| {
                let (ruleset, last) = (subject.ruleset(direction), now.ruleset(direction));
                match writer.find_or_write(ruleset, last) {
                    Ok(id) => id,
                    Err(full) => {
                        let (id, instead) = writer.instead(ruleset, last);
                        is_complete = false;
                        report.degraded.push(Degraded {
                            ifindex: *ifindex,
                            pod: pod.clone(),
                            direction,
                            instead,
                            full,
                        });
                        id
                    }
                }
            });
            if is_complete {
                self.in_force.insert(*ifindex, (pod.clone(), then));
            }
            flips.push((*ifindex, Some(subject), now, then));
        }
        for (&ifindex, pods) in &self.candidates {
            let subjects: Vec<&Subject> = pods.iter().filter_map(|pod| plan.subjects.get(pod)).collect();
            let Some(line) = self.lines.get(ifindex) else { continue };
            if subjects.len() < pods.len() || owners.iter().any(|(owned, _)| *owned == ifindex) {
                continue;
            }
            let then = DIRECTIONS.map(|direction| {
                if subjects.is_empty() {
                    return RulesetId::DENY_ALL;
                }
                let ruleset = Ruleset::all_of(subjects.iter().map(|subject| subject.ruleset(direction)));
                // A pod that nobody knows yet has no earlier verdicts to keep.
                writer.find_or_write(&ruleset, line.word.ruleset(direction)).unwrap_or(RulesetId::DENY_ALL)
            });
            flips.push((ifindex, None, line.word, then));
        }
        report.rulesets_written = writer.finish(plan);
        // What was written for a ruleset that then did not fit is collected.
        self.is_unsettled |= !report.degraded.is_empty();

        for (ifindex, subject, now, [ingress, egress]) in flips {
            if let Some(subject) = subject {
                self.fill_addresses(ifindex, subject)?;
            }
            if (now.ruleset(Direction::Ingress), now.ruleset(Direction::Egress)) != (ingress, egress) {
                self.lines.flip(ifindex, ingress, egress).map_err(DatapathError::kernel("write ENDPOINTS_MORE"))?;
                self.raise_again.insert(ifindex, self.revision);
                self.resting_rulesets.extend(DIRECTIONS.map(|direction| now.ruleset(direction)));
                report.flipped.push(ifindex);
                self.is_unsettled = true;
            }
            let word = self.lines.get(ifindex).expect("an endpoint that was flipped has a line").word;
            report.words.insert(ifindex, word);
        }
        self.set_live();
        Ok(report)
    }

    /// Gives every address a number that stands for its key, changing no verdict. Returns how many entries were written,
    /// and how many numbers were missing; there addresses became UNKNOWN.
    fn move_addresses(&mut self, target: &Target) -> Result<(usize, usize), DatapathError> {
        let mut pairs: FxHashMap<(Class, u32), usize> = FxHashMap::default();
        // Neighbours mostly have the same pair: that is worth remembering, here and below.
        let mut last = None;
        let mut run = 0;
        let mut count = |class, target| {
            if last != Some((class, target)) {
                let ended = last.replace((class, target)).map(|pair| (pair, std::mem::take(&mut run)));
                ended.into_iter().for_each(|(pair, run)| *pairs.entry(pair).or_default() += run);
            }
            run += 1;
        };
        self.class4.survey(&target.image4, &mut count);
        self.class6.survey(&target.image6, &mut count);
        last.into_iter().for_each(|pair| *pairs.entry(pair).or_default() += run);
        let (assigned, missing) = self.assign(&pairs, target);
        // Both until the move is complete: a write can fail half-way.
        self.in_use.extend(assigned.values());
        let last = Cell::new(None);
        let number = |class: Class, target: u32| match last.get() {
            Some((pair, number)) if pair == (class, target) => number,
            _ => {
                let number = assigned[&(class, target)];
                last.set(Some(((class, target), number)));
                number
            }
        };
        let mut writes = self.class4.apply(&target.image4, &number);
        let applied = self.class6.apply(&target.image6, &number).map_err(DatapathError::kernel("write PREFIX6"))?;
        writes += applied.writes;
        self.write_config(config_half::DEFAULT_CLASS6, |_| applied.default.0);
        if applied.is_prefix6_used {
            self.write_config(config_half::FLAGS, |flags| flags | config_flags::PREFIX6_USED);
        }
        writes += self.class6.prune(&target.image6).map_err(DatapathError::kernel("write PREFIX6"))?;
        if !self.class6.is_prefix6_used() {
            self.write_config(config_half::FLAGS, |flags| flags & !config_flags::PREFIX6_USED);
        }
        self.in_use = assigned.values().copied().chain(RESERVED).collect();
        self.is_unsettled |= writes > 0;
        self.is_moving = writes > 0 || self.numbers.has_twins();
        Ok((writes, missing))
    }

    fn write_config(&self, half: usize, change: impl FnOnce(u32) -> u32) {
        let now = self.config.load32(0, half);
        let then = change(now);
        if now != then {
            self.config.flip32(0, half, then);
        }
    }

    /// Decides which number each pair of a present number and a target gets; returns how many got none of their own, too.
    fn assign(&mut self, pairs: &FxHashMap<(Class, u32), usize>, wanted: &Target) -> (Assigned, usize) {
        // The order decides who keeps a number: those it stands for, then the largest part. It must not depend on hashing.
        let mut ordered: Vec<(Class, u32)> = pairs.keys().copied().collect();
        ordered.sort_unstable_by_key(|pair| (pair.0, std::cmp::Reverse(pairs[pair]), pair.1));
        for &(class, _) in &ordered {
            self.numbers.adopt(class);
        }
        let mut assigned = Assigned::default();
        let mut missing = 0;
        let mut claimed: FxHashSet<Class> = FxHashSet::default();
        let mut waiting = Vec::new();
        for &(class, target) in &ordered {
            if self.numbers.key(class) == Some(wanted.key(target)) {
                claimed.insert(class);
                assigned.insert((class, target), class);
            } else {
                waiting.push((class, target));
            }
        }
        for (class, target) in waiting {
            let key = wanted.key(target);
            let alike = self.numbers.numbers(key).iter().copied().find(|&n| self.rulesets.are_alike(class, n));
            let number = match alike {
                Some(number) => number,
                None if class >= Class::FIRST && claimed.insert(class) => {
                    self.numbers.bind(class, key.clone());
                    class
                }
                None => self.fresh(class, key).unwrap_or_else(|| {
                    missing += 1;
                    Class::UNKNOWN
                }),
            };
            claimed.insert(number);
            assigned.insert((class, target), number);
        }
        // Numbers of one key become one as soon as nobody can tell them apart.
        for (pair, number) in &mut assigned {
            let own = self.numbers.numbers(wanted.key(pair.1)).first();
            if let Some(&own) = own.filter(|&&own| own != *number && self.rulesets.are_alike(own, *number)) {
                *number = own;
            }
        }
        (assigned, missing)
    }

    /// A number nobody has, with the rows of another in every live ruleset; none if there is no room for that.
    fn fresh(&mut self, like: Class, key: &PeerKey) -> Option<Class> {
        let number = self.numbers.take()?;
        if self.rulesets.copy_row(like, number).is_err() {
            self.numbers.give_back(number);
            return None;
        }
        self.numbers.bind(number, key.clone());
        Some(number)
    }

    fn fill_addresses(&mut self, ifindex: u32, subject: &Subject) -> Result<(), DatapathError> {
        let change = |line: &mut EndpointLine| {
            line.ipv4 = match subject.address(Family::V4) {
                Some(IpAddr::V4(address)) => address.octets(),
                _ => [0; 4],
            };
            line.ipv6 = match subject.address(Family::V6) {
                Some(IpAddr::V6(address)) => address.octets(),
                _ => [0; 16],
            };
        };
        self.lines.change(ifindex, change).map_err(DatapathError::kernel("write ENDPOINTS_MORE"))
    }

    fn set_live(&mut self) {
        self.rulesets.set_live(self.lines.rulesets().chain(self.resting_rulesets.iter().copied()));
    }

    /// Whether [`Self::settle`] has anything to do.
    pub(super) fn is_unsettled(&self) -> bool {
        self.is_unsettled
    }

    /// Waits for a grace period and does what may be done only after one; at most three times, since numbers that become
    /// one leave the others free.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`] if the wait fails or a map cannot be written; what was waiting keeps waiting.
    pub(super) fn settle(&mut self) -> Result<(), DatapathError> {
        for _ in 0..3 {
            if !self.is_unsettled {
                break;
            }
            self.settle_once()?;
        }
        Ok(())
    }

    fn settle_once(&mut self) -> Result<(), DatapathError> {
        let settling = self.begin_settling();
        settling.wait()?;
        self.end_settling(settling)
    }

    /// Notes what a grace period that begins after this call is to be waited for.
    pub(super) fn begin_settling(&self) -> Settling {
        Settling {
            grace: Arc::clone(&self.grace),
            revision: self.revision,
            chunks4: self.class4.resting(),
            ways6: self.class6.resting(),
            lines: self.lines.in_grace(),
        }
    }

    /// Does what was waiting for a grace period that has passed. If something was published meanwhile, only what cannot
    /// have come into use again: generations are raised, and chunks, places and lines that rested are free. Numbers and
    /// rulesets are then to be waited for once more.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`] if a map cannot be written; what was waiting keeps waiting.
    pub(super) fn end_settling(&mut self, settling: Settling) -> Result<(), DatapathError> {
        let Settling { revision, chunks4, ways6, lines, .. } = settling;
        let is_undisturbed = revision == self.revision;
        self.revision += 1;
        // One that was flipped after the wait began waits for the next.
        let due: Vec<u32> =
            self.raise_again.iter().filter(|(_, flipped)| **flipped <= revision).map(|(&ifindex, _)| ifindex).collect();
        for ifindex in due {
            self.lines.raise(ifindex).map_err(DatapathError::kernel("write ENDPOINTS_MORE"))?;
            self.raise_again.remove(&ifindex);
        }
        self.class4.reclaim(&chunks4);
        self.class6.reclaim(&ways6);
        self.lines.grace_passed(&lines);
        self.gone.extend(lines.into_iter().filter(|gone| gone.slot != 0));
        if !is_undisturbed {
            return Ok(());
        }
        self.is_unsettled = false;
        // Only a publish gives a number to an address or a ruleset to a word, and none ran since before the wait.
        let unused: Vec<Class> = self.numbers.taken().filter(|class| !self.in_use.contains(class)).collect();
        unused.into_iter().for_each(|class| self.numbers.give_back(class));
        self.resting_rulesets.clear();
        self.set_live();
        self.rulesets.reclaim();
        self.bundles.reclaim(self.rulesets.bundles());
        self.rows.keep(|bundle| self.bundles.is_taken(bundle));

        if let Some(target) = self.target.take_if(|_| self.is_moving) {
            // Without a target the next publish lays everything out anew.
            self.move_addresses(&target).inspect_err(|_| self.is_unsettled = true)?;
            self.target = Some(target);
        }
        Ok(())
    }

    /// Ends the time in which ruleset 2 accepts: pods that are not identified are denied from now on, and what they were
    /// accepted before is judged again. To be called once the lines of all known pods are published; there is no way back.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`] if a line cannot be written.
    pub(super) fn identify_from_now_on(&mut self) -> Result<(), DatapathError> {
        if self.config.load32(0, config_half::FLAGS) & config_flags::UNIDENTIFIED_ACCEPTS == 0 {
            return Ok(());
        }
        self.revision += 1;
        self.write_config(config_half::FLAGS, |flags| flags & !config_flags::UNIDENTIFIED_ACCEPTS);
        let is_unidentified =
            |line: &&EndpointLine| DIRECTIONS.iter().any(|&d| line.word.ruleset(d) == RulesetId::UNIDENTIFIED);
        let concerned: Vec<u32> = self.lines.iter().filter(is_unidentified).map(|line| line.ifindex).collect();
        for ifindex in concerned {
            self.lines.raise(ifindex).map_err(DatapathError::kernel("write ENDPOINTS_MORE"))?;
            self.raise_again.insert(ifindex, self.revision);
        }
        self.is_unsettled = true;
        Ok(())
    }

    /// Lets ruleset 2 accept, also where it did not any more.
    pub(super) fn accept_unidentified(&self) {
        self.write_config(config_half::FLAGS, |flags| flags | config_flags::UNIDENTIFIED_ACCEPTS);
    }

    /// Removes the line of an interface that is gone.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`] if the line cannot be written.
    pub(super) fn retire(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        let Some(line) = self.lines.get(ifindex) else { return Ok(()) };
        self.revision += 1;
        self.resting_rulesets.extend(DIRECTIONS.map(|direction| line.word.ruleset(direction)));
        self.lines.remove(ifindex).map_err(DatapathError::kernel("write ENDPOINTS_MORE"))?;
        self.is_unsettled = true;
        Ok(())
    }

    /// Takes the lines that have been gone for a grace period. Their slots are the caller's to read, clear and give back.
    pub(super) fn take_gone(&mut self) -> Vec<Gone> {
        std::mem::take(&mut self.gone)
    }

    /// How full every table is.
    pub(super) fn usage(&self) -> Vec<TableUsage> {
        let of = |table, (used, capacity)| TableUsage { table, used, capacity };
        let [addresses6, blocks6] = self.class6.usage();
        let mut usage = vec![
            of(maps::CLASS4, self.class4.usage()),
            of(maps::CLASS6, addresses6),
            of(maps::PREFIX6, blocks6),
            of("classes", self.numbers.usage()),
            of(maps::RULESETS, self.rulesets.usage()),
        ];
        usage.extend(self.bundles.usage().map(|(table, used, capacity)| of(table, (used, capacity))));
        usage
    }
}
