//! What the process gives up before it touches a key, and how it keeps keys out
//! of swap and core files.

use std::io;

use nix::unistd::{Gid, Uid};

/// Whom the process becomes.
#[derive(Debug, Clone)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub gids: Vec<u32>,
}

/// No core files, no debugger of another process of the same user: neither may
/// show a key.
///
/// # Errors
/// As `prctl(2)` and `setrlimit(2)`.
pub fn forbid_dumps() -> io::Result<()> {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    nix::sys::prctl::set_dumpable(false)?;
    Ok(())
}

/// Keeps memory out of swap, where that is permitted. Pages are locked when they
/// are first used, so that unused address space costs nothing.
///
/// `Ok(false)`: it is not permitted.
///
/// # Errors
/// As `mlockall(2)`, other than being forbidden.
pub fn lock_memory() -> io::Result<bool> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    let privileged = caps::has_cap(
        None,
        caps::CapSet::Effective,
        caps::Capability::CAP_IPC_LOCK,
    )
    .unwrap_or(false);
    // A limit would make later allocations fail instead of this call.
    if soft != RLIM_INFINITY && !privileged {
        return Ok(false);
    }
    let flags = nix::sys::mman::MlockAllFlags::MCL_CURRENT
        | nix::sys::mman::MlockAllFlags::MCL_FUTURE
        | nix::sys::mman::MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    match nix::sys::mman::mlockall(flags) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::EPERM | nix::errno::Errno::ENOMEM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Raises the limit of open files as far as it may be raised without privileges, and
/// returns it: `u64::MAX` is none.
///
/// # Errors
/// As `setrlimit(2)`.
pub fn raise_open_files() -> io::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Becomes `user` for good and keeps nothing but the capability to bind low
/// ports. Before binding, so that a later socket of the same user can join.
///
/// # Errors
/// A sentence for the operator.
pub fn become_user(user: &User) -> Result<(), String> {
    let fail = |what: &str, error: &dyn std::fmt::Display| {
        format!(
            "cannot become the user `{}`: {what}: {error}; start Claviger as root, or as that user",
            user.name
        )
    };
    let current = Uid::effective();
    if current.as_raw() == user.uid {
        return Ok(());
    }
    if !current.is_root() {
        return Err(fail(
            "this process is not root",
            &format_args!("it runs as uid {current}"),
        ));
    }
    nix::sys::prctl::set_keepcaps(true).map_err(|error| fail("prctl", &error))?;
    let groups: Vec<Gid> = user.gids.iter().copied().map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups).map_err(|error| fail("setgroups", &error))?;
    let gid = Gid::from_raw(user.gid);
    nix::unistd::setresgid(gid, gid, gid).map_err(|error| fail("setresgid", &error))?;
    let uid = Uid::from_raw(user.uid);
    nix::unistd::setresuid(uid, uid, uid).map_err(|error| fail("setresuid", &error))?;
    let keep: caps::CapsHashSet = [caps::Capability::CAP_NET_BIND_SERVICE]
        .into_iter()
        .collect();
    caps::set(None, caps::CapSet::Effective, &keep).map_err(|error| fail("capset", &error))?;
    caps::set(None, caps::CapSet::Permitted, &keep).map_err(|error| fail("capset", &error))?;
    nix::sys::prctl::set_no_new_privs().map_err(|error| fail("prctl", &error))?;
    Ok(())
}

/// Lets what this thread executes keep the capability to bind low ports, if this
/// process has it. Needed for ports alone that the next process is the first to bind.
///
/// # Errors
/// As `capset(2)` and `prctl(2)`.
pub fn pass_low_ports_on() -> Result<(), String> {
    use caps::{CapSet, Capability::CAP_NET_BIND_SERVICE as LOW_PORTS};
    let raise = || {
        // A service manager's AmbientCapabilities= go along by themselves.
        if caps::has_cap(None, CapSet::Permitted, LOW_PORTS)?
            && !caps::has_cap(None, CapSet::Ambient, LOW_PORTS)?
        {
            caps::raise(None, CapSet::Inheritable, LOW_PORTS)?;
            caps::raise(None, CapSet::Ambient, LOW_PORTS)?;
        }
        Ok(())
    };
    raise().map_err(|error: caps::errors::CapsError| error.to_string())
}

/// The other end of [`pass_low_ports_on`]: what this process has is not for what it
/// executes. Called before any other thread is started.
pub fn pass_nothing_on() {
    // What is not inheritable is not ambient either (capabilities(7)). Where capset(2) is
    // forbidden, as in our unit, it was the service manager that raised it, and it stays.
    let _ = caps::clear(None, caps::CapSet::Inheritable);
}

/// Whether the process runs as root.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}
