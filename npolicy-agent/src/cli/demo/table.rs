//! Two small tables side by side: who reached whom.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use npolicy_common::Verdict;
use rustc_hash::FxHashMap;

use super::tried::Tried;
use crate::model::PodKey;
use crate::rig::{Outcome, Protocol, Service};

const ACCEPTED: Style = AnsiColor::Green.on_default();
const DENIED: Style = AnsiColor::Red.on_default();
const WRONG: Style = AnsiColor::Yellow.on_default().bold();
const HEADING: Style = Style::new().bold();

/// Which fact of a try a table shows.
#[derive(Clone, Copy)]
pub(super) enum Fact {
    Expected,
    Observed,
}

/// One of the two tables.
pub(super) struct Side<'a> {
    pub(super) title: &'a str,
    pub(super) tried: &'a [Tried],
    pub(super) fact: Fact,
}

/// The outcomes of one pair and service, a family each.
type Cells<'a> = FxHashMap<(&'a PodKey, &'a PodKey, Service), Vec<Outcome>>;

impl<'a> Side<'a> {
    fn cells(&self) -> Cells<'a> {
        let mut cells = Cells::default();
        for tried in self.tried {
            cells.entry((&tried.from, &tried.to, tried.service)).or_default().push(self.fact.of(tried));
        }
        cells
    }
}

/// Prints the two sides, a block for each destination where something is denied or the sides differ; the others take
/// one line together.
pub(super) fn print(out: &mut impl Write, left: &Side, right: &Side) -> io::Result<()> {
    let services = services_of(left.tried);
    let sources = keys(left.tried, |tried| &tried.from);
    let destinations = keys(left.tried, |tried| &tried.to);
    let width = sources.iter().chain(&destinations).map(|key| key.to_string().len()).max().unwrap_or(0)
        + INDENT.len()
        + " ".len();
    let (left_cells, right_cells) = (left.cells(), right.cells());
    let (mut shown, mut quiet) = (0, Vec::new());
    for to in destinations {
        let others = sources.iter().filter(|&&from| from != to);
        let rows: Vec<_> = others.map(|&from| Row::of(from, to, &services, &left_cells, &right_cells)).collect();
        if rows.iter().all(Row::is_quiet) {
            quiet.push(to);
            continue;
        }
        if shown == 0 {
            print_heading(out, width, &services, left, right)?;
        }
        shown += 1;
        writeln!(out, "  {HEADING}to {to}{HEADING:#}")?;
        for row in rows {
            row.print(out, width)?;
        }
    }
    if !quiet.is_empty() {
        let pods = quiet.iter().map(|key| key.to_string()).collect::<Vec<_>>().join(", ");
        writeln!(out, "  everything to {pods}: accepted")?;
    }
    Ok(())
}

/// Says what the signs mean.
pub(super) fn print_legend(out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "  {ACCEPTED}.{ACCEPTED:#} accepted   {DENIED}X{DENIED:#} denied (silence)   {WRONG}R{WRONG:#} refused \
         (a reset or an error)   two signs where IPv4 and IPv6 differ"
    )
}

/// Says what the mark at a cell of the right table means.
pub(super) fn print_mark(out: &mut impl Write, meaning: &str) -> io::Result<()> {
    writeln!(out, "  {WRONG}{MARK}{WRONG:#} {meaning}")
}

fn print_heading(
    out: &mut impl Write,
    width: usize,
    services: &[Service],
    left: &Side,
    right: &Side,
) -> io::Result<()> {
    let half = services.len() * COLUMN;
    writeln!(out, "{:width$}{HEADING}{:half$}{GAP}{}{HEADING:#}", "", left.title, right.title)?;
    let protocols = line(services, |service| service.protocol.to_string());
    writeln!(out, "{:width$}{protocols}{GAP}{}", "", protocols.trim_end())?;
    let ports = line(services, |service| match service.protocol {
        Protocol::Icmp => "echo".into(),
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => service.port.to_string(),
    });
    writeln!(out, "{:width$}{ports}{GAP}{}", "", ports.trim_end())
}

fn line(services: &[Service], text: impl Fn(&Service) -> String) -> String {
    services.iter().map(|service| format!("{:COLUMN$}", text(service))).collect()
}

/// Width of a column: a port of five digits and a space.
const COLUMN: usize = 6;
const GAP: &str = "   ";
/// Stands beside a sign that differs from the left table's.
const MARK: char = '<';
/// What stands before a source.
const INDENT: &str = "    from ";

/// One source's connections to one destination, on both sides.
struct Row<'a> {
    from: &'a PodKey,
    left: Vec<Vec<Outcome>>,
    right: Vec<Vec<Outcome>>,
}

impl<'a> Row<'a> {
    fn of(from: &'a PodKey, to: &'a PodKey, services: &[Service], left: &Cells<'a>, right: &Cells<'a>) -> Self {
        let row = |cells: &Cells<'a>| {
            services.iter().map(|&service| cells.get(&(from, to, service)).cloned().unwrap_or_default()).collect()
        };
        Self { from, left: row(left), right: row(right) }
    }

    /// Whether both sides accept everything.
    fn is_quiet(&self) -> bool {
        self.left.iter().chain(&self.right).flatten().all(|outcome| *outcome == Outcome::Accept)
    }

    /// Blanks are written before what they lead to, so that none end the line.
    fn print(&self, out: &mut impl Write, width: usize) -> io::Result<()> {
        let start = format!("{INDENT}{}", self.from);
        write!(out, "{start}")?;
        let mut blanks = width - start.len();
        for cell in &self.left {
            blanks = write_cell(out, blanks, cell, false)?;
        }
        blanks += GAP.len();
        for (left, right) in self.left.iter().zip(&self.right) {
            blanks = write_cell(out, blanks, right, left != right)?;
        }
        writeln!(out)
    }
}

impl Fact {
    fn of(self, tried: &Tried) -> Outcome {
        match (self, tried.expected) {
            (Self::Observed, _) => tried.observed,
            (Self::Expected, Verdict::Accept) => Outcome::Accept,
            (Self::Expected, Verdict::Deny) => Outcome::Deny,
        }
    }
}

/// Writes one sign where the families agree, else one for each; a cell that differs from the other table's is marked.
/// Takes the blanks that precede it and returns those that are left up to the next column.
fn write_cell(out: &mut impl Write, blanks: usize, outcomes: &[Outcome], differs: bool) -> io::Result<usize> {
    let agree = outcomes.windows(2).all(|pair| pair[0] == pair[1]);
    let shown = if agree { &outcomes[..outcomes.len().min(1)] } else { outcomes };
    if shown.is_empty() && !differs {
        return Ok(blanks + COLUMN);
    }
    write!(out, "{:blanks$}", "")?;
    for outcome in shown {
        let (sign, style) = match outcome {
            Outcome::Accept => ('.', ACCEPTED),
            Outcome::Deny => ('X', DENIED),
            Outcome::Refused => ('R', WRONG),
        };
        let style = if differs { WRONG } else { style };
        write!(out, "{style}{sign}{style:#}")?;
    }
    if !differs {
        return Ok(COLUMN - shown.len());
    }
    write!(out, " {WRONG}{MARK}{WRONG:#}")?;
    Ok(COLUMN - shown.len() - " <".len())
}

fn services_of(tried: &[Tried]) -> Vec<Service> {
    let mut services = Vec::new();
    for tried in tried {
        if !services.contains(&tried.service) {
            services.push(tried.service);
        }
    }
    services
}

fn keys<'a>(tried: &'a [Tried], key: impl Fn(&'a Tried) -> &'a PodKey) -> Vec<&'a PodKey> {
    let mut keys: Vec<_> = tried.iter().map(key).collect();
    keys.sort();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use npolicy_common::Family;

    use super::*;

    fn key(name: &str) -> PodKey {
        PodKey { namespace: "prod".into(), name: name.into() }
    }

    fn tried(from: &str, to: &str, port: u16, family: Family, expected: Verdict, observed: Outcome) -> Tried {
        let service = Service { protocol: Protocol::Tcp, port };
        Tried { from: key(from), to: key(to), service, family, expected, observed }
    }

    #[test]
    fn shows_what_differs_and_keeps_quiet_about_the_rest() {
        let table = [
            tried("web", "db", 80, Family::V4, Verdict::Accept, Outcome::Accept),
            tried("web", "db", 80, Family::V6, Verdict::Accept, Outcome::Accept),
            tried("web", "db", 81, Family::V4, Verdict::Deny, Outcome::Deny),
            tried("web", "db", 81, Family::V6, Verdict::Deny, Outcome::Refused),
            tried("db", "web", 80, Family::V4, Verdict::Accept, Outcome::Accept),
            tried("db", "web", 81, Family::V4, Verdict::Accept, Outcome::Accept),
        ];
        let side = |title, fact| Side { title, tried: &table, fact };
        let mut out = anstream::StripStream::new(Vec::new());
        print(&mut out, &side("expected", Fact::Expected), &side("observed", Fact::Observed)).unwrap();
        let text = String::from_utf8(out.into_inner()).unwrap();
        let text: String = text.lines().map(|line| format!("|{line}|\n")).collect();
        expect![[r#"
            |                  expected       observed|
            |                  TCP   TCP      TCP   TCP|
            |                  80    81       80    81|
            |  to prod/db|
            |    from prod/web .     X        .     XR <|
            |  everything to prod/web: accepted|
        "#]]
        .assert_eq(&text);
    }
}
