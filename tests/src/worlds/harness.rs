//! Puts many worlds to judges, and makes what is found small.

use std::fmt::{self, Debug, Display};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use fastrand::Rng;
use serde_json::Value;

use super::counts::Tally;
use super::interest::{Interest, Step};
use super::judges::{Difference, Judge, Said, compare};
use super::{Settings, generate, regress, shrink};
use crate::oracle::{Origin, Probe};

/// What can be asked of a world.
pub trait Question: Clone + Debug {
    /// So many questions at random, at the edges of what the world mentions.
    fn ask(interest: &Interest, rng: &mut Rng, count: usize) -> Vec<Self>;
    /// The connection that comes nearest to it.
    fn probe(&self) -> Probe;
}

impl Question for Probe {
    fn ask(interest: &Interest, rng: &mut Rng, count: usize) -> Vec<Self> {
        interest.probes(rng, count)
    }

    fn probe(&self) -> Probe {
        self.clone()
    }
}

impl Question for Step {
    fn ask(interest: &Interest, rng: &mut Rng, count: usize) -> Vec<Self> {
        interest.steps(rng, count)
    }

    fn probe(&self) -> Probe {
        let pod = format!("{}/{}", self.pod.0, self.pod.1);
        let other = match self.origin {
            Origin::ByAddress => format!("ip:{}", self.remote),
            Origin::NodeSelf => format!("node:{}", self.node),
            Origin::PodSelf => pod.clone(),
        };
        let (from, to) = match self.direction {
            npolicy_common::Direction::Ingress => (other, pod),
            npolicy_common::Direction::Egress => (pod, other),
        };
        let port = (self.protocol != "ICMP").then_some(self.port);
        let family = if self.own.is_ipv4() { "IPv4" } else { "IPv6" };
        Probe { from, to, protocol: self.protocol.to_owned(), port, family: Some(family.to_owned()) }
    }
}

/// Which worlds, and how much is asked of each.
#[derive(Clone, Debug)]
pub struct Worlds {
    /// Their seeds.
    pub seeds: Range<u64>,
    /// What they may hold.
    pub settings: Settings,
    /// Questions to each.
    pub questions: usize,
}

/// Something wrong, and the smallest world in which it is.
#[derive(Clone, Debug)]
pub struct Found {
    /// Seed of the world in which it was found.
    pub seed: u64,
    /// The world without all that does not matter.
    pub objects: Vec<Value>,
    /// The connection in question.
    pub probe: Probe,
    /// The question, and what was said to it.
    pub text: String,
}

impl Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.text)?;
        self.objects.iter().try_for_each(|object| writeln!(f, "  {object}"))
    }
}

impl Found {
    /// Writes it down under `regress/` and fails.
    ///
    /// # Panics
    ///
    /// Always.
    #[track_caller]
    pub fn fail(&self, kind: &str) -> ! {
        let folder = regress::write(&regress::root(), kind, self);
        panic!(
            "{self}kept in {}",
            folder.map_or_else(|error| format!("no file: {error:#}"), |at| at.display().to_string())
        )
    }
}

/// Says which world it was where a judge panics.
struct Now(u64);

impl Drop for Now {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("in the world of seed {}", self.0);
        }
    }
}

/// Compares two judges on every world, each asked for itself.
///
/// # Errors
///
/// The first difference, in a world made small.
pub fn agree<Q: Question>(
    worlds: &Worlds,
    expected: &mut dyn Judge<Q>,
    got: &mut dyn Judge<Q>,
) -> Result<Tally, Box<Found>> {
    let mut tally = Tally::default();
    for seed in worlds.seeds.clone() {
        let now = Now(seed);
        let objects = generate(seed, worlds.settings).objects;
        let questions = Q::ask(&Interest::of(&objects), &mut Rng::with_seed(seed), worlds.questions);
        if let Some(difference) = compare(expected, got, &objects, &questions, &mut tally) {
            return Err(Box::new(smallest(seed, objects, &difference, expected, got)));
        }
        drop(now);
    }
    Ok(tally)
}

/// Makes the world of a difference small.
pub fn smallest<Q: Question>(
    seed: u64,
    objects: Vec<Value>,
    difference: &Difference<Q>,
    expected: &mut dyn Judge<Q>,
    got: &mut dyn Judge<Q>,
) -> Found {
    let Difference { question, expected: first, got: second } = difference;
    let asked = std::slice::from_ref(question);
    let objects = shrink(objects, &mut |objects| {
        unless_panics(|| expected.judge(objects, asked) == [*first] && got.judge(objects, asked) == [*second])
    });
    let text = format!("{question:?}: expected {first:?}, got {second:?}");
    Found { seed, objects, probe: question.probe(), text }
}

/// A world cut in the wrong place may be one that a judge does not take.
fn unless_panics(work: impl FnOnce() -> bool) -> bool {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(false)
}

/// A change of a world; false if there is nothing in this one to change.
pub type Change = dyn Fn(&mut Vec<Value>, &mut Rng) -> bool;

/// Picks the questions that a property says something about.
pub type Concerns<Q> = dyn Fn(&[Value], Vec<Q>) -> Vec<Q>;

/// Changes every world and compares one judge's answers before and after: `holds` says whether the second may follow
/// the first. Only questions that `concerns` keeps are asked.
///
/// # Errors
///
/// The first answers of which it does not hold, in a world made small: as it is after the change.
pub fn keeps<Q: Question>(
    worlds: &Worlds,
    judge: &mut dyn Judge<Q>,
    change: &Change,
    concerns: &Concerns<Q>,
    holds: &dyn Fn(Said, Said) -> bool,
) -> Result<Tally, Box<Found>> {
    let mut tally = Tally::default();
    for seed in worlds.seeds.clone() {
        let now = Now(seed);
        let before = generate(seed, worlds.settings).objects;
        let mut after = before.clone();
        if change(&mut after, &mut Rng::with_seed(seed)) {
            let questions = Q::ask(&Interest::of(&before), &mut Rng::with_seed(seed), worlds.questions);
            let questions = concerns(&before, questions);
            let (first, second) = (judge.judge(&before, &questions), judge.judge(&after, &questions));
            tally.count(&second);
            let broken = questions.iter().zip(first.iter().zip(&second)).find(|(_, (a, b))| !holds(**a, **b));
            if let Some((question, (&first, &second))) = broken {
                let asked = std::slice::from_ref(question);
                let small = shrink(before, &mut |objects| {
                    let mut after = objects.to_vec();
                    unless_panics(|| {
                        change(&mut after, &mut Rng::with_seed(seed))
                            && !concerns(objects, asked.to_vec()).is_empty()
                            && judge.judge(objects, asked) == [first]
                            && judge.judge(&after, asked) == [second]
                    })
                });
                let mut after = small.clone();
                change(&mut after, &mut Rng::with_seed(seed));
                let before: Vec<String> = small.iter().map(|object| format!("  {object}\n")).collect();
                let text =
                    format!("{question:?}: {first:?} before, {second:?} after; before:\n{}after:", before.concat());
                return Err(Box::new(Found { seed, objects: after, probe: question.probe(), text }));
            }
        }
        drop(now);
    }
    Ok(tally)
}
