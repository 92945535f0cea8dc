//! What is wrong with an object, said so that its author finds the place.

use std::fmt::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// How much a finding means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is wrong with the object, but it is worth knowing how it is read.
    Note,
    /// Part of an object is read as matching nothing, or as denying everything. What is enforced is certain, though likely
    /// not what was meant.
    Warning,
    /// An object, a document or an address is left out, so an answer may differ from what was meant.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// A place in a file.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Place {
    /// The file as it was named.
    pub file: Arc<Path>,
    /// Line, from 1; 0 is the file as a whole.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Diagnostic {
    /// Where, if it came from a file.
    pub place: Option<Place>,
    /// How much it means.
    pub severity: Severity,
    /// The object, like `NetworkPolicy shop/db`.
    pub object: Option<Arc<str>>,
    /// The field, like `spec.ingress[0].ports[1]`.
    pub field: Option<Arc<str>>,
    /// What is wrong and what follows from it.
    pub message: String,
}

/// `shop.yaml:12: warning: NetworkPolicy shop/db: spec.ingress[0].ports[1]: endPort 79 is below port 80`
///
/// Names and keys come from whoever wrote the object: what a terminal or a log would take for a command is escaped.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, severity, object, field, message } = self;
        let mut f = Escaped(f);
        if let Some(place) = place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{severity}: ")?;
        for part in [object, field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(message)
    }
}

/// Writes control characters as Rust does in text, like `\u{1b}`.
struct Escaped<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            match part.char_indices().next_back().filter(|(_, last)| last.is_control()) {
                Some((at, last)) => write!(self.0, "{}{}", &part[..at], last.escape_default())?,
                None => self.0.write_str(part)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_that_a_terminal_only_shows() {
        let finding = Diagnostic {
            place: Some(Place { file: Path::new("a\u{7}.yaml").into(), line: 3 }),
            severity: Severity::Warning,
            object: Some("Pod n/\u{1b}[2J".into()),
            field: Some("spec.a\nb".into()),
            message: "\u{9b}unknown field `é`\r".to_owned(),
        };
        assert_eq!(
            finding.to_string(),
            r"a\u{7}.yaml:3: warning: Pod n/\u{1b}[2J: spec.a\nb: \u{9b}unknown field `é`\r"
        );
    }
}
