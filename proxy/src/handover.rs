//! The hand-over: a process of the binary that is installed now takes the listening
//! sockets, and this one ends when what it serves has ended.
//!
//! The old process executes the program that it was itself started as, with the same
//! arguments, and gives it the sockets over a socketpair, which is the new one's
//! standard input. The new one starts whole: configuration, secrets, audit file,
//! workers. Once it accepts, it says so; the old one answers `yours`, tells the service
//! manager who the main process is, closes the channel and stops accepting. Whatever
//! goes wrong before `yours` ends the new process and changes nothing for the old one.
//!
//! Both hold the same socket, so its queue is never closed, and there is no moment in
//! which nobody accepts. The messages (one datagram each, text, of [`VERSION`]):
//!
//! | From the old process | From the new one |
//! |---|---|
//! | `VERSION ring` or `VERSION epoll` | |
//! | `listener ADDRESS NAME`, with the socket; one for each | |
//! | `variable NAME=VALUE`: a secret of `env://`, which the environment has no more | |
//! | `end` | |
//! | | `ready`, or `failed WHY` |
//! | `yours` | |
//!
//! What a later version adds, an earlier one leaves aside: unknown messages are none.
//!
//! What is deliberately missing: handing over connections. A TLS session's keys stay
//! in the process that made them.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use controlplane::credentials;
use dataplane::DriverKind;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, sockopt,
};
use nix::sys::time::TimeVal;

use crate::descriptors;
use crate::privileges;
use crate::service;
use crate::signals::Event;
use crate::sockets::{Bound, Given};

/// Set for the new process to the old one's id. Believed only of the parent.
const VARIABLE: &str = "CLAVIGER_PREDECESSOR";

/// The first message begins so.
const VERSION: &str = "claviger-handover-1";

/// A longer message ends the hand-over. The longest is a secret's, of at most 64 KiB.
const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// A longer reason of a failure is cut.
const REASON_BYTES_MAX: usize = 4096;

/// How long the new process may take until it accepts; then it is ended. Secrets and
/// names are waited for some seconds each.
const READY_WAIT: Duration = Duration::from_secs(60);

/// How long either side waits for a message that the other one should send at once.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long a new process that has failed may take to end by itself.
const END_WAIT: Duration = Duration::from_secs(2);

/// Between two looks whether it has.
const END_INTERVAL: Duration = Duration::from_millis(10);

/// A listening socket that could be handed over.
#[derive(Debug)]
pub struct Kept {
    listener: Arc<str>,
    configured: SocketAddr,
    socket: TcpListener,
}

impl Kept {
    /// A duplicate of `bound`.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub fn of(bound: &Bound) -> io::Result<Self> {
        Ok(Self {
            listener: Arc::clone(&bound.listener),
            configured: bound.configured,
            socket: bound.socket.try_clone()?,
        })
    }
}

/// Starts a new process and offers it the sockets, on a thread of its own, which ends
/// with [`Event::Successor`].
///
/// # Errors
/// Why that cannot even be tried.
pub fn begin(kept: &[Kept], driver: DriverKind, events: mpsc::Sender<Event>) -> Result<(), String> {
    if std::process::id() == 1 {
        return Err(
            "this is process 1, whose end is that of its container; replace the container instead"
                .to_owned(),
        );
    }
    let mut sockets = Vec::new();
    for kept in kept {
        let socket = kept.socket.try_clone().map_err(|error| error.to_string())?;
        sockets.push(Kept {
            listener: Arc::clone(&kept.listener),
            configured: kept.configured,
            socket,
        });
    }
    std::thread::Builder::new()
        .name("handover".to_owned())
        .spawn(move || {
            let _ = events.send(Event::Successor(attempt(sockets, driver)));
        })
        .map(drop)
        .map_err(|error| format!("no thread could be started for it: {error}"))
}

/// The new process. It accepts, and waits to be told that the service is its own.
/// Dropping this instead makes it end.
#[derive(Debug)]
pub struct Successor {
    pid: u32,
    channel: OwnedFd,
}

impl Successor {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells it that the service is its own. It says nothing to the service manager
    /// before this is dropped. Its end is noticed by whoever is its parent after us.
    ///
    /// # Errors
    /// It has ended.
    pub fn take_over(&self) -> io::Result<()> {
        send(&self.channel, &[b"yours"], None)
    }
}

fn attempt(sockets: Vec<Kept>, driver: DriverKind) -> Result<Successor, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let (channel, theirs) = socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|error| failed("no socketpair", &error))?;
    patience(&channel, READY_WAIT).map_err(|error| failed("no timeout", &error))?;
    // This thread ends with the attempt, and what it may pass on with it.
    if let Err(error) = privileges::pass_low_ports_on() {
        tracing::warn!("the new process cannot bind low ports that are new to it: {error}");
    }
    if let Err(error) = descriptors::keep_from_programs() {
        // It closes them itself when it starts; until then a connection that ends here
        // stays open there.
        tracing::debug!("descriptors could not be kept from the new process: {error}");
    }
    let mut arguments = std::env::args_os();
    let program = arguments
        .next()
        .ok_or("this process does not know what it was started as")?;
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env(VARIABLE, std::process::id().to_string())
        .stdin(Stdio::from(theirs));
    for variable in service::VARIABLES_OF_ONE_PROCESS {
        command.env_remove(variable);
    }
    let mut child = command.spawn().map_err(|error| {
        format!(
            "{} cannot be executed: {error}; install a binary that runs on this machine",
            program.display()
        )
    })?;
    // Its end of the socketpair is its own now: ours would hide that it has ended.
    drop(command);
    match converse(&channel, sockets, driver) {
        Ok(()) => Ok(Successor {
            pid: child.id(),
            channel,
        }),
        Err(why) => Err(match end(&mut child) {
            Ok(status) => format!("{why} (the new process: {status})"),
            Err(error) => format!("{why} (the new process could not be ended: {error})"),
        }),
    }
}

/// Offers the sockets and waits for the answer. Keeps none of them meanwhile: should
/// this process begin to end, its duplicates are to close.
fn converse(channel: &OwnedFd, sockets: Vec<Kept>, driver: DriverKind) -> Result<(), String> {
    // Whoever has closed its end may have said why before.
    let gone = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        )
    };
    let offered = offer(channel, &sockets, driver);
    drop(sockets);
    if let Err(error) = offered
        && !gone(&error)
    {
        return Err(format!("the sockets could not be handed over: {error}"));
    }
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let received = match descriptors::receive(channel, &mut buffer) {
        // Told once: that it did not read all of the offer.
        Err(error) if gone(&error) => descriptors::receive(channel, &mut buffer),
        received => received,
    };
    match received {
        Ok((0, _)) => Err(
            "it ended without saying why; what it printed stands in the log before this line"
                .to_owned(),
        ),
        Ok((length, _)) => match String::from_utf8_lossy(&buffer[..length]).split_once(' ') {
            Some(("failed", why)) => Err(why.to_owned()),
            None if buffer[..length] == *b"ready" => Ok(()),
            _ => Err("it answered something that is no answer; is it Claviger?".to_owned()),
        },
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(format!(
            "it was not ready within {} s; its log lines say what it waits for",
            READY_WAIT.as_secs()
        )),
        Err(error) => Err(format!("it could not be heard: {error}")),
    }
}

fn offer(channel: &OwnedFd, sockets: &[Kept], driver: DriverKind) -> io::Result<()> {
    send(
        channel,
        &[VERSION.as_bytes(), b" ", word(driver).as_bytes()],
        None,
    )?;
    for kept in sockets {
        let text = format!("listener {} {}", kept.configured, kept.listener);
        send(channel, &[text.as_bytes()], Some(kept.socket.as_raw_fd()))?;
    }
    // Read where they are kept: no copy of a secret is left behind in here.
    credentials::each_taken_variable(|name, value| {
        send(channel, &[b"variable ", name.as_bytes(), b"=", value], None)
    })?;
    send(channel, &[b"end"], None)
}

/// Whether a listening socket must be one that blocks belongs to the socket, which both
/// processes share.
fn word(driver: DriverKind) -> &'static str {
    match driver {
        DriverKind::Epoll => "epoll",
        _ => "ring",
    }
}

/// Waits for the end of a process that has failed; then ends it.
fn end(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    let give_up = Instant::now() + END_WAIT;
    while Instant::now() < give_up {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(END_INTERVAL);
    }
    child.kill()?;
    child.wait()
}

/// The process before this one, seen from the new one.
#[derive(Debug)]
pub struct Predecessor {
    pid: u32,
    channel: OwnedFd,
    driver: String,
    sockets: Vec<Given>,
}

impl Predecessor {
    /// The one that started this process to take over, if one did. Must be called
    /// before this process opens anything: what it inherited by accident is closed.
    ///
    /// # Errors
    /// The sockets did not come.
    pub fn find() -> Result<Option<Self>, String> {
        let parent = nix::unistd::getppid().to_string();
        if std::env::var(VARIABLE).as_deref() != Ok(&parent) {
            return Ok(None);
        }
        let _ = descriptors::close_inherited();
        let channel = take_standard_input()
            .map_err(|error| format!("the hand-over has no channel: {error}"))?;
        let mut found = Self {
            pid: parent.parse().unwrap_or_default(),
            channel,
            driver: String::new(),
            sockets: Vec::new(),
        };
        match found.accept_the_offer() {
            Ok(()) => Ok(Some(found)),
            Err(why) => {
                let why = format!("the sockets of the process before this one: {why}");
                found.failed(&why);
                Err(why)
            }
        }
    }

    fn accept_the_offer(&mut self) -> Result<(), String> {
        patience(&self.channel, ANSWER_WAIT).map_err(|error| error.to_string())?;
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        loop {
            let (length, socket) = descriptors::receive(&self.channel, &mut buffer)
                .map_err(|error| error.to_string())?;
            let message = &mut buffer[..length];
            let space = message.iter().position(|&byte| byte == b' ');
            let (kind, rest) = match space {
                Some(at) => message.split_at_mut(at + 1),
                None => (message, &mut [][..]),
            };
            match (kind.trim_ascii_end(), socket) {
                (b"", _) => return Err("it has ended".to_owned()),
                (kind, _) if kind == VERSION.as_bytes() => {
                    self.driver = String::from_utf8_lossy(rest).into_owned();
                }
                _ if self.driver.is_empty() => {
                    return Err(
                        "it speaks of hand-overs in another way; restart instead".to_owned()
                    );
                }
                (b"listener", Some(socket)) => {
                    let text = String::from_utf8_lossy(rest);
                    let (address, name) = text.split_once(' ').unwrap_or((&text, ""));
                    let configured = address
                        .parse()
                        .map_err(|_| "a socket came without its address".to_owned())?;
                    self.sockets
                        .push(Given::new(socket, Some(name.to_owned()), Some(configured))?);
                }
                (b"variable", _) => {
                    if let Some(at) = rest.iter().position(|&byte| byte == b'=') {
                        let (name, value) = rest.split_at_mut(at);
                        credentials::adopt_variable(
                            &String::from_utf8_lossy(name),
                            &mut value[1..],
                        );
                    }
                }
                (b"end", _) => return Ok(()),
                // Of a later version.
                _ => {}
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The sockets, once.
    pub fn take_sockets(&mut self) -> Vec<Given> {
        std::mem::take(&mut self.sockets)
    }

    /// Whether this process may run on `driver` beside that one.
    ///
    /// # Errors
    /// It may not; with the cure.
    pub fn agree_on(&self, driver: DriverKind) -> Result<(), String> {
        if self.driver == word(driver) {
            return Ok(());
        }
        Err(format!(
            "the process before this one accepts with {}, and this one would with {}; the sockets are \
             shared, and blocking for one of them alone. Restart instead, or leave `driver` and \
             `busy_poll_us` as they were",
            spelled(&self.driver),
            spelled(word(driver))
        ))
    }

    /// Says that this process accepts, and waits until the service is its own.
    ///
    /// # Errors
    /// The other one has ended or changed its mind, and this one must end.
    pub fn ready(self) -> Result<(), String> {
        let gone = |error: io::Error| {
            format!("the process before this one did not hand over in the end: {error}")
        };
        send(&self.channel, &[b"ready"], None).map_err(gone)?;
        let mut buffer = [0; 64];
        match descriptors::receive(&self.channel, &mut buffer).map_err(gone)? {
            (length, _) if buffer[..length] == *b"yours" => {
                // The channel's end: the service manager has been told of us.
                let _ = descriptors::receive(&self.channel, &mut buffer);
                Ok(())
            }
            _ => Err(gone(io::ErrorKind::ConnectionAborted.into())),
        }
    }

    /// Says why this process ends instead.
    pub fn failed(&self, why: &str) {
        let _ = send(&self.channel, &[b"failed ", cut(why).as_bytes()], None);
    }
}

fn spelled(word: &str) -> &str {
    match word {
        "ring" => "io_uring",
        other => other,
    }
}

/// As much of a reason as is sent: whole characters.
fn cut(why: &str) -> &str {
    let end = (0..=REASON_BYTES_MAX.min(why.len()))
        .rev()
        .find(|&at| why.is_char_boundary(at));
    &why[..end.unwrap_or_default()]
}

/// Takes standard input for our own, and leaves nothing there.
fn take_standard_input() -> io::Result<OwnedFd> {
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&nothing)?;
    Ok(channel)
}

/// How long this side waits for a message, and for room to send one.
fn patience(channel: &OwnedFd, wait: Duration) -> io::Result<()> {
    let seconds = |wait: Duration| TimeVal::new(wait.as_secs().cast_signed(), 0);
    socket::setsockopt(channel, sockopt::ReceiveTimeout, &seconds(wait))?;
    socket::setsockopt(channel, sockopt::SendTimeout, &seconds(ANSWER_WAIT))?;
    Ok(())
}

fn send(channel: &OwnedFd, parts: &[&[u8]], descriptor: Option<RawFd>) -> io::Result<()> {
    let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    let control: Vec<_> = descriptors
        .iter()
        .map(|descriptors| ControlMessage::ScmRights(descriptors))
        .collect();
    loop {
        let sent = sendmsg::<UnixAddr>(
            channel.as_raw_fd(),
            &parts,
            &control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        match sent {
            // As in `descriptors::receive`.
            Err(nix::errno::Errno::EINTR) => {}
            sent => return sent.map(drop).map_err(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socket::socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .expect("a socketpair")
    }

    fn predecessor(channel: OwnedFd) -> Predecessor {
        Predecessor {
            pid: 1,
            channel,
            driver: String::new(),
            sockets: Vec::new(),
        }
    }

    fn kept() -> Kept {
        Kept {
            listener: "main".into(),
            configured: "127.0.0.1:0".parse().expect("an address"),
            socket: TcpListener::bind("127.0.0.1:0").expect("a free port"),
        }
    }

    #[test]
    fn what_is_offered_arrives() {
        let (old, new) = pair();
        let kept = kept();
        let address = kept.socket.local_addr().expect("it is bound");
        credentials::adopt_variable("CLAVIGER_TEST_OFFERED", &mut b"sk_live_offered".to_owned());
        offer(&old, &[kept], DriverKind::Epoll).expect("there is room");
        let mut seen = predecessor(new);
        seen.accept_the_offer().expect("it is whole");
        let sockets = seen.take_sockets();
        assert_eq!(sockets.len(), 1);
        assert_eq!(sockets[0].address, address);
        assert_eq!(sockets[0].name.as_deref(), Some("main"));
        assert_eq!(
            sockets[0].configured.map(|configured| configured.port()),
            Some(0)
        );
        assert_eq!(seen.agree_on(DriverKind::Epoll), Ok(()));
        // It goes on to be ready, and is told.
        send(&old, &[b"yours"], None).expect("it lives");
        socket::shutdown(old.as_raw_fd(), socket::Shutdown::Write).expect("it is open");
        assert_eq!(seen.ready(), Ok(()));
        let mut buffer = [0; 16];
        let (length, _) = descriptors::receive(&old, &mut buffer).expect("it spoke");
        assert_eq!(&buffer[..length], b"ready");
    }

    #[test]
    fn a_driver_that_needs_other_sockets_is_refused_with_the_cure() {
        let (old, new) = pair();
        offer(&old, &[], DriverKind::Epoll).expect("there is room");
        let mut seen = predecessor(new);
        seen.accept_the_offer().expect("it is whole");
        seen.driver = "ring".to_owned();
        let error = seen.agree_on(DriverKind::Epoll).expect_err("another one");
        assert!(
            error.contains("Restart instead") && error.contains("io_uring"),
            "{error}"
        );
    }

    #[test]
    fn what_a_later_version_adds_is_left_aside_and_another_protocol_is_not() {
        let (old, new) = pair();
        let version = format!("{VERSION} ring");
        for message in [version.as_str(), "weather fine", "news", "end"] {
            send(&old, &[message.as_bytes()], None).expect("there is room");
        }
        predecessor(new).accept_the_offer().expect("it is whole");
        let (old, new) = pair();
        send(&old, &[b"claviger-handover-2 ring"], None).expect("there is room");
        let error = predecessor(new).accept_the_offer().expect_err("unknown");
        assert!(error.contains("restart instead"), "{error}");
    }

    #[test]
    fn who_has_gone_is_noticed() {
        let (old, new) = pair();
        drop(old);
        assert!(predecessor(new).accept_the_offer().is_err());
        let (old, new) = pair();
        drop(old);
        assert!(predecessor(new).ready().is_err());
        let (old, new) = pair();
        drop(new);
        let error = converse(&old, vec![kept()], DriverKind::Epoll).expect_err("gone");
        assert!(error.contains("ended"), "{error}");
    }

    #[test]
    fn a_reason_arrives_and_a_long_one_is_cut_between_characters() {
        let (old, new) = pair();
        predecessor(new).failed(&"ü".repeat(REASON_BYTES_MAX));
        let error = converse(&old, Vec::new(), DriverKind::Epoll).expect_err("it failed");
        assert_eq!(error, "ü".repeat(REASON_BYTES_MAX / 2));
        let (old, new) = pair();
        send(&new, &[b"hello"], None).expect("there is room");
        let error = converse(&old, Vec::new(), DriverKind::Epoll).expect_err("no answer");
        assert!(error.contains("is it Claviger?"), "{error}");
    }
}
