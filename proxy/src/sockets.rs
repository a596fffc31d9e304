//! Listening sockets: those that were given to this process, and those that it binds.
//!
//! A socket is given by the service manager (socket activation) or by the process
//! before this one (a hand-over). It takes the place of the listener's address that it
//! was meant for; addresses without one are bound.
//!
//! What is deliberately missing: `SO_REUSEPORT`. A second instance by mistake would
//! share the address in silence, and closing one of several sockets resets the
//! connections that wait in its queue. A descriptor that is passed on loses none.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use policy::Listener;

/// Connections that may wait to be accepted, per listening socket; the kernel's
/// bound (net.core.somaxconn) applies as well. Beyond it callers see a timeout.
const BACKLOG: i32 = 4096;

/// A socket that listens for a listener of the configuration.
#[derive(Debug)]
pub struct Bound {
    /// The listener's name.
    pub listener: Arc<str>,
    /// The address as the configuration writes it; its port may be 0.
    pub configured: SocketAddr,
    /// The address that it has.
    pub address: SocketAddr,
    /// The socket.
    pub socket: TcpListener,
}

/// A socket that listens already.
#[derive(Debug)]
pub struct Given {
    /// What the giver calls it: the manager's name for it, or its listener's.
    pub name: Option<String>,
    /// The address for which the process before this one bound it.
    pub configured: Option<SocketAddr>,
    /// The address that it has.
    pub address: SocketAddr,
    socket: TcpListener,
}

/// Who gave the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Giver {
    /// The service manager: what it gives and nobody wants is a mistake of a unit.
    Manager,
    /// The process before this one: a listener may have left the configuration.
    Predecessor,
}

impl Given {
    /// Looks at what was given.
    ///
    /// # Errors
    /// It is no TCP socket that listens: a sentence with the cure.
    pub fn new(
        socket: OwnedFd,
        name: Option<String>,
        configured: Option<SocketAddr>,
    ) -> Result<Self, String> {
        let listens = socket::getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream)
            && socket::getsockopt(&socket, sockopt::AcceptConn) == Ok(true);
        let socket = TcpListener::from(socket);
        match socket.local_addr() {
            Ok(address) if listens => Ok(Self {
                name,
                configured,
                address,
                socket,
            }),
            _ => Err(format!(
                "what was given as the socket `{}` is no TCP socket that listens; in the socket \
                 unit, use ListenStream= with a port, and Accept=no",
                name.as_deref().unwrap_or("without a name")
            )),
        }
    }

    /// Whether it accepts IPv4 connections beside IPv6 ones.
    fn is_for_both(&self) -> bool {
        self.address.ip().is_unspecified()
            && self.address.is_ipv6()
            && socket::getsockopt(&self.socket, sockopt::Ipv6V6Only) == Ok(false)
    }
}

/// Opens a socket for every address of every listener: one that was given, or a new one.
///
/// # Errors
/// A sentence with the cure.
pub fn open(listeners: &[Listener], given: Vec<Given>, giver: Giver) -> Result<Vec<Bound>, String> {
    let wanted: Vec<(&Arc<str>, SocketAddr)> = listeners
        .iter()
        .flat_map(|listener| {
            let name = &listener.name;
            listener
                .addresses
                .iter()
                .map(move |&address| (name, address))
        })
        .collect();
    let (places, left) = place(&wanted, given);
    if let Some(left) = left.first()
        && giver == Giver::Manager
    {
        return Err(unwanted(left, &wanted));
    }
    wanted
        .into_iter()
        .zip(places)
        .map(|((listener, configured), given)| {
            let socket = match given {
                Some(given) if given.address == configured && given.is_for_both() => {
                    return Err(format!(
                        "listener `{listener}`: the socket that was given for {configured} accepts \
                         IPv4 as well, which the configuration does not say; set \
                         BindIPv6Only=ipv6-only in the socket unit, and a ListenStream= for IPv4 \
                         if that is meant"
                    ));
                }
                Some(given) => given.socket,
                None => listen(configured)
                    .map_err(|error| cannot_listen(listener, configured, &error))?,
            };
            Ok(Bound {
                listener: Arc::clone(listener),
                configured,
                address: socket.local_addr().map_err(|error| error.to_string())?,
                socket,
            })
        })
        .collect()
}

/// Which of the given sockets each address gets, and which are left over. The better
/// reason goes first: both name and address, the address alone, and for the manager's
/// the name alone, as long as the port is right or left open.
fn place(
    wanted: &[(&Arc<str>, SocketAddr)],
    given: Vec<Given>,
) -> (Vec<Option<Given>>, Vec<Given>) {
    let same_name = |given: &Given, listener: &Arc<str>| given.name.as_deref() == Some(&**listener);
    let same_address = |given: &Given, address: SocketAddr| {
        given.address == address || given.configured == Some(address)
    };
    type Fits<'f> = &'f dyn Fn(&Given, &Arc<str>, SocketAddr) -> bool;
    let reasons: [Fits<'_>; 3] = [
        &|given, listener, address| same_name(given, listener) && same_address(given, address),
        &|given, _, address| same_address(given, address),
        &|given, listener, address| {
            given.configured.is_none()
                && same_name(given, listener)
                && (address.port() == 0 || address.port() == given.address.port())
        },
    ];
    let mut left = given;
    let mut places: Vec<Option<Given>> = wanted.iter().map(|_| None).collect();
    for fits in reasons {
        for (place, &(listener, address)) in places.iter_mut().zip(wanted) {
            if place.is_none()
                && let Some(found) = left.iter().position(|given| fits(given, listener, address))
            {
                *place = Some(left.remove(found));
            }
        }
    }
    (places, left)
}

fn unwanted(given: &Given, wanted: &[(&Arc<str>, SocketAddr)]) -> String {
    let listeners = wanted
        .iter()
        .map(|(name, address)| format!("{name}={address}"))
        .collect::<Vec<_>>()
        .join(" ");
    format!(
        "no [[listener]] is meant for the socket that the service manager gave at {} (name `{}`); \
         the configuration has {listeners}. Let ListenStream= of the socket unit and `address` agree, \
         or set FileDescriptorName= to the listener's name (the ports must still agree), or remove \
         the ListenStream=",
        given.address,
        given.name.as_deref().unwrap_or_default(),
    )
}

fn cannot_listen(listener: &str, address: SocketAddr, error: &std::io::Error) -> String {
    let cure = match error.kind() {
        std::io::ErrorKind::AddrInUse => "another process listens there; find it with `ss -ltnp`",
        std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: start as root with server.user, or set AmbientCapabilities=CAP_NET_BIND_SERVICE"
        }
        std::io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        _ => "check the listener's address",
    };
    format!("listener `{listener}`: cannot listen on {address}: {error}; {cure}")
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two addresses, whatever the machine's default is.
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&socket, socket::Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: Option<&str>, configured: Option<&str>) -> Given {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Given::new(
            socket.into(),
            name.map(str::to_owned),
            configured.map(|address| address.parse().expect("an address")),
        )
        .expect("it listens")
    }

    /// Which given sockets the addresses get, by their numbers, and which are left.
    #[track_caller]
    fn check(
        wanted: &[(&str, SocketAddr)],
        sockets: Vec<Given>,
        expected: &[Option<usize>],
        expected_left: &[usize],
    ) {
        let order: Vec<_> = sockets.iter().map(|given| given.address).collect();
        let number = |given: &Given| {
            order
                .iter()
                .position(|&address| address == given.address)
                .expect("it is one of them")
        };
        let names: Vec<Arc<str>> = wanted.iter().map(|&(name, _)| name.into()).collect();
        let wanted: Vec<_> = names
            .iter()
            .zip(wanted)
            .map(|(name, &(_, address))| (name, address))
            .collect();
        let (places, left) = place(&wanted, sockets);
        let places: Vec<_> = places
            .iter()
            .map(|place| place.as_ref().map(number))
            .collect();
        let left: Vec<_> = left.iter().map(number).collect();
        assert_eq!((&*places, &*left), (expected, expected_left));
    }

    #[test]
    fn a_socket_goes_where_it_was_meant_for() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let elsewhere: SocketAddr = "192.0.2.1:443".parse().expect("an address");
        // By address, whatever it is called, and in any order.
        let (one, two) = (given(None, None), given(Some("x"), None));
        let addresses = (one.address, two.address);
        check(
            &[("b", addresses.1), ("a", addresses.0), ("c", elsewhere)],
            vec![one, two],
            &[Some(1), Some(0), None],
            &[],
        );
        // By name, where the port is left open or the same.
        let one = given(Some("a"), None);
        let same_port = SocketAddr::new("0.0.0.0".parse().expect("an address"), one.address.port());
        check(
            &[("b", any), ("a", same_port)],
            vec![one],
            &[None, Some(0)],
            &[],
        );
        check(
            &[("b", any), ("a", any)],
            vec![given(Some("a"), None)],
            &[None, Some(0)],
            &[],
        );
        check(
            &[("a", elsewhere)],
            vec![given(Some("a"), None)],
            &[None],
            &[0],
        );
        // A predecessor's: by what it was bound for, the listener's own first.
        check(
            &[("b", any), ("a", any), ("c", elsewhere)],
            vec![
                given(Some("a"), Some("127.0.0.1:0")),
                given(Some("b"), Some("127.0.0.1:0")),
                given(Some("c"), Some("192.0.2.1:80")),
            ],
            &[Some(1), Some(0), None],
            &[2],
        );
        // Renamed in the file, it is still the same address.
        check(
            &[("new", any)],
            vec![given(Some("old"), Some("127.0.0.1:0"))],
            &[Some(0)],
            &[],
        );
    }

    #[test]
    fn what_does_not_listen_is_refused_with_the_cure() {
        let bound = socket::socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let local = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        for socket in [bound, datagrams.into(), local.into()] {
            let error = Given::new(socket, Some("web".to_owned()), None).expect_err("no listener");
            assert!(
                error.contains("`web`") && error.contains("ListenStream="),
                "{error}"
            );
        }
    }

    #[test]
    fn a_socket_for_ipv4_too_does_not_pass_for_ipv6() {
        let socket = socket::socket(
            AddressFamily::Inet6,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &false).expect("an option");
        let address: SocketAddr = "[::]:0".parse().expect("an address");
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).expect("a free port");
        socket::listen(&socket, socket::Backlog::new(1).expect("small")).expect("it listens");
        let given = Given::new(socket, None, None).expect("it listens");
        assert!(given.is_for_both());
    }
}
