//! Stage 5, kernel to people: denials become drop lines, published state becomes the ready file. Only reads.
//!
//! ```text
//! EVENTS --FlowEvent--> drops (who, which policy, nearest miss) --> repeats (one line a connection) --> log (text, JSON)
//! ```

mod drops;
mod health;
mod history;
mod log;
mod ready;
mod repeats;

pub use drops::{DropLine, End, PolicyRef, RuleRef, ServiceRef};
pub use health::{Health, Report};
pub use history::{Endpoints, History};
pub use log::{DropLog, Format, LogError};
pub use ready::{Ready, write_ready};
pub use repeats::Repeats;
