//! Descriptors that were open before this process began: the only module of the
//! binary with `unsafe`, since a number becomes a descriptor here.
//!
//! What is deliberately missing: knowledge of what they are for ([`crate::handover`]
//! and [`crate::service`] have it).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

/// The first number behind standard input, output and error.
pub const FIRST: RawFd = 3;

/// Takes over `count` descriptors from [`FIRST`] on, as `sd_listen_fds(3)` passes
/// them. They are not inherited further.
///
/// # Errors
/// One of them is not open: as `fcntl(2)`.
///
/// Must be called once, and before this process opens anything.
pub fn passed(count: usize) -> io::Result<Vec<OwnedFd>> {
    (FIRST..)
        .take(count)
        .map(|number| {
            // SAFETY: whoever set LISTEN_FDS for this process id gave it these
            // numbers. Nothing of ours is open behind standard error yet, so no other
            // owner exists. If it is not open, `fcntl` says so below, and closing it
            // when dropped is an ignored error.
            let descriptor = unsafe { std::mem::ManuallyDrop::new(OwnedFd::from_raw_fd(number)) };
            fcntl(&*descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            Ok(std::mem::ManuallyDrop::into_inner(descriptor))
        })
        .collect()
}

/// Has every descriptor behind standard error closed when a program is executed. The
/// io_uring driver's accepted connections would else stay open in it.
///
/// # Errors
/// As `close_range(2)`, which Linux 5.11 knows with this flag.
pub fn keep_from_programs() -> io::Result<()> {
    close_range(libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor behind standard error. For the start of a process that was
/// given none there.
///
/// # Errors
/// As `close_range(2)`.
pub fn close_inherited() -> io::Result<()> {
    close_range(0)
}

fn close_range(flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes numbers alone. With the flag for later nothing is closed
    // now. Without it only `close_inherited` calls, before this process has opened
    // anything.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST as libc::c_uint,
            libc::c_uint::MAX,
            flags,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Receives one message of a Unix socket, with at most one descriptor. Returns the
/// bytes' number; 0 is the end.
///
/// # Errors
/// As `recvmsg(2)`, and `InvalidData` for a message longer than `buffer`.
pub fn receive(channel: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    loop {
        match receive_once(channel, buffer) {
            // A socket with a timeout is not restarted by the kernel (signal(7)); the end
            // of an io_uring that this thread has tried interrupts it like a signal.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

fn receive_once(channel: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    use std::os::fd::AsRawFd;

    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<UnixAddr>(
        channel.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut taken = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these descriptors for this process.
            taken.extend(
                numbers
                    .into_iter()
                    .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
            );
        }
    }
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message is longer than it may be",
        ));
    }
    let bytes = message.bytes;
    Ok((bytes, taken.pop()))
}
