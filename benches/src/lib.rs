//! What the steps of a request cost: one list of cases, measured in two ways.
//!
//! - `cargo bench -p claviger-benches --bench time [-- FILTER]`: time, by criterion, for people
//!   who look for what is slow. It drifts on shared cores; compare runs of one sitting only.
//! - `perf/instructions`: instructions, by callgrind, for the gate. They do not drift, so CI compares
//!   them with `perf/baseline/instructions.json`. See `perf/README.md`.
//!
//! A [`Case`] is a name and a function that prepares everything and returns the closure to measure. Both
//! ways call that same closure, so what people optimise is what the gate counts.
//!
//! Rules for a case, which keep its count the same from run to run:
//!
//! - **No chance.** Fixed bytes, fixed keys of maps, no `RandomState`, no clock whose digits are written. What
//!   needs chance (a TLS handshake) belongs into the preparation.
//! - **Warm.** The closure is called a few times before it is counted, so that buffers have grown.
//! - **It checks its result**, cheaply: a case that measures a refusal by mistake is worth nothing.
//! - **It ends as it began**, so that the thousandth call does what the first one did.
//!
//! What the cases deliberately lack: the kernel. Sockets, wake-ups and system calls are most of what a
//! request costs; `perf/compare` measures them.

#![forbid(unsafe_code)]

mod bodies;
mod decisions;
mod door;
mod fixtures;
mod heads;
mod path;
mod transport;

/// The closure that is measured.
pub type Run = Box<dyn FnMut()>;

/// One thing to measure.
pub struct Case {
    /// `group/what`, unique; the baseline knows a case by it.
    pub name: &'static str,
    /// Bytes that one call handles, where a rate per byte says something.
    pub bytes: Option<u64>,
    /// Prepares everything and returns what is measured.
    pub prepare: fn() -> Run,
}

impl Case {
    const fn new(name: &'static str, prepare: fn() -> Run) -> Self {
        Self {
            name,
            bytes: None,
            prepare,
        }
    }

    const fn of_bytes(name: &'static str, bytes: usize, prepare: fn() -> Run) -> Self {
        Self {
            name,
            bytes: Some(bytes as u64),
            prepare,
        }
    }
}

/// Every case, in the order of a request's walk.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(path::cases());
    cases.extend(heads::cases());
    cases.extend(decisions::cases());
    cases.extend(bodies::cases());
    cases.extend(transport::cases());
    cases.extend(door::cases());
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A case that panics or whose second call differs is found here, without valgrind.
    #[test]
    fn every_case_runs_again_and_again() {
        for case in cases() {
            let mut run = (case.prepare)();
            for _ in 0..3 {
                run();
            }
        }
    }

    #[test]
    fn names_are_unique_and_fit_a_command_line() {
        let mut names: Vec<&str> = cases().iter().map(|case| case.name).collect();
        for name in &names {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_".contains(&byte);
            assert!(name.contains('/') && name.bytes().all(fits), "{name}");
        }
        let before = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
