//! [`Datagrams`]: the receiving end of a pair of local sockets, on the driver that runs.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;

use super::epoll::{Loop, Registered};
use super::{DriverKind, recv_into};

/// Small messages of one size, from other threads of this process.
pub(super) enum Datagrams {
    Ring(monoio::net::unix::UnixDatagram),
    Ready {
        // Dropped first.
        registered: Registered,
        socket: UnixDatagram,
    },
    /// Nobody sends.
    #[cfg(test)]
    Simulated,
}

impl Datagrams {
    /// Takes the receiving end over.
    ///
    /// # Errors
    /// As `fcntl(2)` and the driver's registration.
    pub(super) fn new(socket: UnixDatagram, kind: DriverKind) -> io::Result<Self> {
        #[cfg(test)]
        if super::simulated::World::current().is_some() {
            return Ok(Datagrams::Simulated);
        }
        socket.set_nonblocking(kind == DriverKind::Epoll)?;
        Ok(match Loop::current() {
            Some(home) => Datagrams::Ready {
                registered: Rc::clone(&home).register(socket.as_raw_fd())?,
                socket,
            },
            None => Datagrams::Ring(monoio::net::unix::UnixDatagram::from_std(socket)?),
        })
    }

    /// The next message.
    ///
    /// # Errors
    /// As `recv(2)`; `InvalidData` for one of another size.
    pub(super) async fn receive<const SIZE: usize>(&self) -> io::Result<[u8; SIZE]> {
        let message = match self {
            Datagrams::Ring(socket) => {
                let (received, message) = socket.recv(Vec::with_capacity(SIZE)).await;
                received?;
                message
            }
            Datagrams::Ready { registered, socket } => loop {
                registered.readable().await;
                let mut message = Vec::with_capacity(SIZE);
                match recv_into(socket.as_raw_fd(), &mut message) {
                    Ok(_) => break message,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        registered.drained();
                    }
                    Err(error) => return Err(error),
                }
            },
            #[cfg(test)]
            Datagrams::Simulated => std::future::pending().await,
        };
        message
            .try_into()
            .map_err(|_| io::ErrorKind::InvalidData.into())
    }
}
