//! Results: a line as each comes, a table in the end, and JUnit XML.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// One result.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it belongs to.
    pub suite: String,
    /// What was tried.
    pub name: String,
    /// How long it took.
    pub time: Duration,
    /// What came of it.
    pub outcome: Outcome,
    /// What else there is to say, for the XML.
    pub notes: String,
}

/// What came of a case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not, and how that shows.
    Failed(String),
    /// It was not tried, for this reason.
    LeftOut(String),
}

/// All results of a run, in order.
#[derive(Debug)]
pub struct Report {
    cases: Vec<Case>,
    begin: Instant,
}

impl Default for Report {
    fn default() -> Self {
        Self { cases: Vec::new(), begin: Instant::now() }
    }
}

impl Report {
    /// Takes a result and shows it.
    pub fn add(&mut self, case: Case) {
        let Case { suite, name, time, outcome, notes: _ } = &case;
        let time = format!("{:.1} s", time.as_secs_f64());
        match outcome {
            Outcome::Passed => eprintln!("{time:>8}  ok        {suite}: {name}"),
            Outcome::LeftOut(reason) => eprintln!("{time:>8}  left out  {suite}: {name}: {reason}"),
            Outcome::Failed(how) => eprintln!("{time:>8}  FAILED    {suite}: {name}\n{}", indented(how)),
        }
        self.cases.push(case);
    }

    /// Takes the result of work of which an error means that it does not hold.
    pub fn add_result(&mut self, suite: &str, name: &str, begin: Instant, result: anyhow::Result<String>) {
        let (outcome, notes) = match result {
            Ok(notes) => (Outcome::Passed, notes),
            Err(error) => (Outcome::Failed(format!("{error:#}")), String::new()),
        };
        let (suite, name) = (suite.to_owned(), name.to_owned());
        self.add(Case { suite, name, time: begin.elapsed(), outcome, notes });
    }

    /// Takes what is not tried.
    pub fn leave_out(&mut self, suite: &str, name: &str, reason: &str) {
        let (suite, name, outcome) = (suite.to_owned(), name.to_owned(), Outcome::LeftOut(reason.to_owned()));
        self.add(Case { suite, name, time: Duration::ZERO, outcome, notes: String::new() });
    }

    /// Every result.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Whether nothing failed, and something was tried.
    pub fn is_good(&self) -> bool {
        let failed = |case: &Case| matches!(case.outcome, Outcome::Failed(_));
        !self.cases.iter().any(failed) && self.cases.iter().any(|case| case.outcome == Outcome::Passed)
    }

    fn suites(&self) -> Vec<&str> {
        let mut suites: Vec<&str> = Vec::new();
        for case in &self.cases {
            if !suites.contains(&case.suite.as_str()) {
                suites.push(&case.suite);
            }
        }
        suites
    }

    /// The table of suites, and below it every failure.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let width = self.suites().iter().map(|suite| suite.len()).max().unwrap_or_default().max(5);
        let _ = writeln!(text, "{:<width$}  passed  failed  left out      time", "suite");
        let mut total = [0; 3];
        for suite in self.suites() {
            let of_suite = || self.cases.iter().filter(|case| case.suite == suite);
            let count = |is: fn(&Outcome) -> bool| of_suite().filter(|case| is(&case.outcome)).count();
            let counts = [
                count(|outcome| *outcome == Outcome::Passed),
                count(|outcome| matches!(outcome, Outcome::Failed(_))),
                count(|outcome| matches!(outcome, Outcome::LeftOut(_))),
            ];
            let time: Duration = of_suite().map(|case| case.time).sum();
            let [passed, failed, left_out] = counts;
            let time = time.as_secs_f64();
            let _ = writeln!(text, "{suite:<width$}  {passed:>6}  {failed:>6}  {left_out:>8}  {time:>6.0} s");
            for (total, count) in total.iter_mut().zip(counts) {
                *total += count;
            }
        }
        let ([passed, failed, left_out], time) = (total, self.begin.elapsed().as_secs_f64());
        let _ = writeln!(text, "{:<width$}  {passed:>6}  {failed:>6}  {left_out:>8}  {time:>6.0} s", "all");
        for case in &self.cases {
            if let Outcome::Failed(how) = &case.outcome {
                let _ = writeln!(text, "\nFAILED {}: {}\n{}", case.suite, case.name, indented(how));
            }
        }
        text
    }

    /// Writes JUnit XML, whole or not at all.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_junit(&self, path: &Path) -> anyhow::Result<()> {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
        for suite in self.suites() {
            let of_suite: Vec<&Case> = self.cases.iter().filter(|case| case.suite == suite).collect();
            let count = |is: fn(&Outcome) -> bool| of_suite.iter().filter(|case| is(&case.outcome)).count();
            let failures = count(|outcome| matches!(outcome, Outcome::Failed(_)));
            let skipped = count(|outcome| matches!(outcome, Outcome::LeftOut(_)));
            let time: Duration = of_suite.iter().map(|case| case.time).sum();
            let _ = writeln!(
                xml,
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" skipped=\"{skipped}\" time=\"{:.3}\">",
                escaped(suite),
                of_suite.len(),
                time.as_secs_f64()
            );
            for case in of_suite {
                let (name, time) = (escaped(&case.name), case.time.as_secs_f64());
                let _ =
                    write!(xml, "    <testcase classname=\"{}\" name=\"{name}\" time=\"{time:.3}\">", escaped(suite));
                match &case.outcome {
                    Outcome::Passed => {}
                    Outcome::Failed(how) => {
                        let first = escaped(how.lines().next().unwrap_or_default());
                        let _ = write!(xml, "<failure message=\"{first}\">{}</failure>", escaped(how));
                    }
                    Outcome::LeftOut(reason) => {
                        let _ = write!(xml, "<skipped message=\"{}\"/>", escaped(reason));
                    }
                }
                if !case.notes.is_empty() {
                    let _ = write!(xml, "<system-out>{}</system-out>", escaped(&case.notes));
                }
                xml.push_str("</testcase>\n");
            }
            xml.push_str("  </testsuite>\n");
        }
        xml.push_str("</testsuites>\n");
        let named = || format!("write {}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(named)?;
        }
        let partial = path.with_extension("partial");
        fs::write(&partial, xml).with_context(named)?;
        fs::rename(&partial, path).with_context(named)
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("          {line}")).collect::<Vec<_>>().join("\n")
}

/// Text for XML, of characters that XML has.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, outcome: Outcome) -> Case {
        let suite = "scenarios".to_owned();
        Case { suite, name: name.into(), time: Duration::from_secs(2), outcome, notes: String::new() }
    }

    #[test]
    fn one_failure_is_enough_and_so_is_nothing_at_all() {
        let mut report = Report::default();
        report.add(case("a", Outcome::LeftOut("no SCTP".into())));
        assert!(!report.is_good());
        report.add(case("b", Outcome::Passed));
        assert!(report.is_good());
        report.add(case("c", Outcome::Failed("x/a -> x/b: silence".into())));
        assert!(!report.is_good());
        assert!(report.table().contains("scenarios       1       1         1       6 s"), "{}", report.table());
    }

    #[test]
    fn xml_holds_what_xml_could_take_for_its_own() {
        let mut report = Report::default();
        report.add(case("a<b", Outcome::Failed("\"x\" & y\u{1b}[0m".into())));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e2e/junit.xml");
        report.write_junit(&path).unwrap();
        let xml = fs::read_to_string(path).unwrap();
        assert!(xml.contains("name=\"a&lt;b\""), "{xml}");
        assert!(xml.contains("&quot;x&quot; &amp; y\u{fffd}[0m"), "{xml}");
    }
}
