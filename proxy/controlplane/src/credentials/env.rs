//! Secrets in environment variables: read once, then taken out of reach.
//!
//! An environment is a poor place for a key: every child process inherits it, and
//! `/proc/PID/environ` shows it to whoever may look at the process. So a value is
//! copied into memory of our own when it is first read, for later reloads, and
//! its bytes in the environment block are overwritten.
//!
//! What that cannot reach: copies that exist elsewhere (the shell or the service
//! manager that set the variable, a container's description), and a copy that
//! something in this process made earlier. `credential://` and `file://` have none
//! of this. A value cannot change while the process runs: rotating a key needs a
//! file, or a restart. A process that hands its sockets over to the next one hands
//! these values over too ([`each_taken`], [`adopt`]), since its environment has them
//! no more.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

use policy::Secret;
use zeroize::Zeroizing;

use super::Fetched;
use super::source::SourceError;

/// What variables said when they were first read. Never printed; wiped on drop,
/// which for a static is the end of the process's memory.
static TAKEN: Mutex<Option<HashMap<String, Zeroizing<Vec<u8>>>>> = Mutex::new(None);

/// Reads a variable, at the first time from the environment.
pub(super) fn fetch(name: &str) -> Result<Fetched, SourceError> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = taken.get_or_insert_with(HashMap::new);
    if !taken.contains_key(name) {
        taken.insert(name.to_owned(), take_over(name)?);
    }
    Ok(Fetched {
        secret: Secret::new(taken[name].to_vec()),
        version: "env".to_owned(),
        watch: None,
    })
}

/// Shows every value that was read here, for the process that takes over from this
/// one. They go to it and nowhere else.
///
/// # Errors
/// The first one of `show`.
pub fn each_taken<E>(mut show: impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E> {
    let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, value) in taken.iter().flatten() {
        show(name, value)?;
    }
    Ok(())
}

/// Takes a value over from the process before this one, and wipes `value`. Call it
/// before any configuration is read.
pub fn adopt(name: &str, value: &mut [u8]) {
    let kept = Zeroizing::new(value.to_vec());
    zeroize::Zeroize::zeroize(value);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    taken
        .get_or_insert_with(HashMap::new)
        .insert(name.to_owned(), kept);
}

fn take_over(name: &str) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    use std::os::unix::ffi::OsStringExt;

    let value = std::env::var_os(name).ok_or_else(|| SourceError::VariableMissing {
        name: name.to_owned(),
    })?;
    let value = Zeroizing::new(value.into_vec());
    if value.is_empty() {
        return Err(SourceError::Empty {
            place: format!("the environment variable {name}"),
        });
    }
    if let Ok(name) = CString::new(name) {
        overwrite(&name);
    }
    Ok(value)
}

/// Puts zeros over a variable's value where the environment holds it.
///
/// The variable stays, empty: removing it would move the environment's pointers
/// under the feet of whoever reads another variable at this moment.
#[allow(unsafe_code)]
fn overwrite(name: &CString) {
    // SAFETY: `name` ends in NUL. `getenv` returns null or a pointer to the value
    // inside the environment block (environ(7)), which ends in NUL and is the
    // process's own writable memory; `strlen` stays inside of it, and so does
    // `write_bytes`, which keeps the final NUL. Nothing in this process sets or
    // removes variables, so the block is not moved meanwhile. Other threads may
    // read other variables: they look at names and at values of their own, and
    // this writes only to the value of a name that is ours. `TAKEN` is locked, so
    // no second thread is in here.
    unsafe {
        let value = nix::libc::getenv(name.as_ptr());
        if !value.is_null() {
            let len = nix::libc::strlen(value);
            std::ptr::write_bytes(value, 0, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Whether this is the child that [`the_environment_is_wiped`] starts.
    const CHILD: &str = "CLAVIGER_TEST_ENV_CHILD";
    const VARIABLE: &str = "CLAVIGER_TEST_ENV_SECRET";

    fn environment() -> Vec<u8> {
        std::fs::read("/proc/self/environ").expect("procfs")
    }

    fn contains(hay: &[u8], needle: &[u8]) -> bool {
        hay.windows(needle.len()).any(|window| window == needle)
    }

    #[test]
    fn the_environment_is_wiped() {
        if std::env::var_os(CHILD).is_none() {
            // Variables are the whole process's; so the test has one of its own.
            let output = Command::new(std::env::current_exe().expect("it runs"))
                .args([
                    "--exact",
                    "--nocapture",
                    "credentials::env::tests::the_environment_is_wiped",
                ])
                .env(CHILD, "1")
                .env(VARIABLE, "sk_live_planted")
                .env("CLAVIGER_TEST_ENV_OTHER", "stays")
                .output()
                .expect("it starts");
            assert!(output.status.success(), "{output:?}");
            assert!(contains(&output.stdout, b"1 passed"), "{output:?}");
            return;
        }
        assert!(contains(&environment(), b"planted"), "the search finds it");
        let first = fetch(VARIABLE).expect("it is set");
        assert_eq!(first.secret.len(), "sk_live_planted".len());
        assert_eq!((first.version.as_str(), first.watch), ("env", None));
        assert!(!contains(&environment(), b"planted"));
        assert!(contains(&environment(), b"CLAVIGER_TEST_ENV_OTHER=stays"));
        assert_eq!(std::env::var(VARIABLE).as_deref(), Ok(""));
        let again = fetch(VARIABLE).expect("a reload reads it again");
        assert_eq!(again.secret.len(), "sk_live_planted".len());
    }

    #[test]
    fn a_value_is_handed_on_and_its_way_is_wiped() {
        let mut way = *b"sk_live_handed";
        adopt("CLAVIGER_TEST_HANDED", &mut way);
        assert_eq!(way, [0; 14]);
        let fetched = fetch("CLAVIGER_TEST_HANDED").expect("it need not be in the environment");
        assert_eq!(fetched.secret.len(), "sk_live_handed".len());
        let mut shown = false;
        each_taken(|name, value| {
            shown |= name == "CLAVIGER_TEST_HANDED" && value == b"sk_live_handed";
            Ok::<_, ()>(())
        })
        .expect("nothing stops it");
        assert!(shown, "the one after that gets it too");
    }

    #[test]
    fn a_variable_that_is_not_set_says_so() {
        let error = fetch("CLAVIGER_TEST_NEVER_SET")
            .expect_err("not set")
            .to_string();
        assert!(
            error.contains("CLAVIGER_TEST_NEVER_SET is not set"),
            "{error}"
        );
    }
}
