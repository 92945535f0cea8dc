//! What is wrong with an object, said so that its author finds the place.

use std::fmt;
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
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, severity, object, field, message } = self;
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
