//! The configuration: what the operator typed, what it means, and what is
//! wrong with it.
//!
//! The way is [`load`] -> [`resolve`] (which calls [`check`]) -> a
//! [`policy::Snapshot`] and [`Settings`]. The written and the resolved form are
//! apart: [`File`] has the operator's words with their places, the snapshot has
//! nothing optional left.
//!
//! Promise: no text that comes from here shows a value that may be a key. What
//! is deliberately missing: watching files, which is the office's.

mod check;
mod draft;
mod explain;
mod file;
mod init;
mod presets;
mod report;
mod resolve;
mod schema;
mod settings;
mod shape;
mod written;

pub use check::check;
pub use draft::{Certificates, Draft};
pub use explain::{Explanation, Outcome, Question, QuestionError, explain};
pub use file::{Driver, File, LogFormat, LogLevel, MemoryLock, load};
pub use init::{Init, Places};
pub use presets::{Preset, PresetHost};
pub(crate) use presets::{published, shapes_by_provider, variables_by_provider};
pub(crate) use report::without_keys;
pub use report::{Place, Problem, Report, Severity};
pub use resolve::{Purpose, ResolveContext, Resolved, resolve, resolve_at};
pub use schema::json_schema;
pub use settings::{AuditSettings, LogSettings, Settings};
#[cfg(test)]
pub(crate) use shape::Alphabet;
pub(crate) use shape::{Checksum, Shape};
pub use written::Workers;

/// The names of all presets, as a route's `preset` takes them.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    presets::all().iter().map(|preset| preset.name)
}

#[cfg(test)]
mod tests;
