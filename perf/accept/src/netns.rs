//! A network namespace of our own, where it is permitted: no other process's
//! ports and no other process's `net.ipv4.tcp_migrate_req`.

use std::fs;
use std::io;

/// Moves the process into a new network namespace with its loopback up. Call
/// it before any thread starts. An error (no root) leaves us where we were.
pub fn enter() -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` names an interface and holds the flags that this
    // request reads.
    let up = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCSIFFLAGS as _,
            &request,
        )
    };
    if up != 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets whether the queue of a closed `SO_REUSEPORT` listener moves to another
/// of its group. It is one switch for the whole namespace.
pub fn set_migrate(on: bool) -> io::Result<()> {
    fs::write(
        "/proc/sys/net/ipv4/tcp_migrate_req",
        if on { "1" } else { "0" },
    )
}
