use std::net::TcpStream as Peer;

use futures_util::future::join;

use super::*;
use crate::test_support::{elsewhere, listener, on_each_driver, on_each_kind, read_all, until};

#[test]
fn an_accept_that_is_stopped_loses_no_connection() {
    on_each_kind(async |kind| {
        let socket = listener();
        let address = socket.local_addr().expect("it is bound");
        let ours = Listener::new(socket, kind).expect("a listening socket");
        let stop = ours.stop_handle();
        let (stopped, ()) = join(ours.accept(), async { stop.stop() }).await;
        assert!(is_stopped(&stopped.expect_err("nobody has connected")));
        // Whoever came meanwhile waits in the queue, and is taken from there.
        let peers = [address; 3].map(|address| Peer::connect(address).expect("it listens"));
        for peer in peers {
            let socket = ours.accept_waiting().await.expect("somebody waits");
            assert_eq!(
                peer_address(&socket).expect("it is connected"),
                peer.local_addr().expect("it is connected")
            );
        }
        let nobody = ours.accept_waiting().await;
        assert!(is_stopped(&nobody.expect_err("nobody waits")));
        // It accepts as before.
        let peer = Peer::connect(address).expect("it listens");
        let socket = ours.accept().await.expect("somebody waits");
        assert_eq!(
            peer_address(&socket).expect("it is connected"),
            peer.local_addr().expect("it is connected")
        );
    });
}

/// What the kernel takes for a peer that does not read, through a window as small as there is.
fn taken_for_nobody(socket: &RawSocket) -> usize {
    let bytes = vec![7; 64 * 1024];
    let mut taken = 0;
    while let Ok(sent @ 1..) = try_send(socket.as_raw_fd(), &bytes) {
        taken += sent;
    }
    taken
}

fn connect_with_a_tiny_window(address: std::net::SocketAddr) -> socket2::Socket {
    let peer = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let peer = peer.expect("descriptors are left");
    peer.set_recv_buffer_size(2048).expect("a socket");
    peer.connect(&address.into()).expect("it listens");
    peer
}

#[test]
fn little_is_taken_for_a_peer_that_does_not_read() {
    /// A segment on loopback: the kernel takes whole ones, and some go into the window.
    const SEGMENTS: usize = 3 * 64 * 1024;
    // The control: the same without the listener's option.
    let plain = listener();
    let _peer = connect_with_a_tiny_window(plain.local_addr().expect("it is bound"));
    let (socket, _) = plain.accept().expect("somebody waits");
    let as_much_as_there_is = taken_for_nobody(&socket.into());
    let most = UNSENT_BYTES_MAX as usize + SEGMENTS;
    assert!(
        as_much_as_there_is > 2 * most,
        "only {as_much_as_there_is} bytes"
    );
    on_each_kind(async move |kind| {
        let socket = listener();
        let address = socket.local_addr().expect("it is bound");
        let ours = Listener::new(socket, kind).expect("a listening socket");
        let _peer = connect_with_a_tiny_window(address);
        let socket = ours.accept().await.expect("somebody waits");
        let taken = taken_for_nobody(&socket);
        assert!(taken <= most, "{taken} bytes");
        assert!(taken >= UNSENT_BYTES_MAX as usize / 2, "{taken} bytes");
    });
}

#[test]
fn a_connection_goes_through_the_hatch_and_is_served_there() {
    on_each_kind(async |kind| {
        let socket = listener();
        let address = socket.local_addr().expect("it is bound");
        let ours = Listener::new(socket, kind).expect("a listening socket");
        let mut peer = Peer::connect(address).expect("it listens");
        let socket = ours.accept().await.expect("somebody waits");
        let (sender, receiver) = hatch().expect("there are descriptors left");
        // The other core is another thread, with a runtime of its own.
        let other = std::thread::spawn(move || {
            run(kind, Duration::ZERO, async {
                let hatch = Hatch::new(receiver, kind).expect("a socket");
                let (socket, number) = *hatch.receive().await.expect("a connection");
                let (_receiver, mut sender, _) = adopt(socket).expect("it is open");
                let (sent, bytes, _) = sender.send(b"served".to_vec()).await;
                sent.expect("the peer is there");
                (number, bytes)
            })
            .expect("the driver runs here too")
        });
        assert!(sender.hand(Box::new((socket, 7))).is_ok());
        let text = elsewhere(move || read_all(&mut peer)).await;
        assert_eq!(text.expect("a clean end"), b"served");
        until(|| other.is_finished()).await;
        assert_eq!(other.join().expect("it did not panic"), (7, 6));
    });
}

#[test]
fn a_full_hatch_gives_the_connection_back() {
    on_each_kind(async |kind| {
        let (sender, receiver) = hatch().expect("there are descriptors left");
        let hatch = Hatch::new(receiver, kind).expect("a socket");
        let socket = listener();
        let mut handed = 0;
        let kept = loop {
            let socket = RawSocket::from(socket.try_clone().expect("descriptors are left"));
            match sender.hand(Box::new((socket, handed))) {
                Ok(()) => handed += 1,
                Err(kept) => break kept,
            }
            assert!(handed < 10_000, "it is bounded");
        };
        assert_eq!(kept.1, handed);
        // It is as good as before, and so are those that are on their way.
        for number in 0..handed {
            let (arrived, counted) = *hatch.receive().await.expect("it was handed over");
            assert_eq!(counted, number);
            assert_same(arrived, &socket);
        }
        assert_same(kept.0, &socket);
    });
}

/// Whether a descriptor is one of this listener.
#[track_caller]
fn assert_same(descriptor: RawSocket, listener: &std::net::TcpListener) {
    assert_eq!(
        std::net::TcpListener::from(descriptor)
            .local_addr()
            .expect("it is open"),
        listener.local_addr().expect("it is open")
    );
}

#[test]
fn work_is_measured_and_sleep_is_not() {
    let meters = [Meter::default(), Meter { schedstat: None }];
    for meter in meters {
        let before = meter.so_far();
        let mut sum = 0u64;
        while meter.so_far() < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum + 1);
        }
        let worked = meter.so_far();
        std::thread::sleep(Duration::from_millis(200));
        // Waking up may wait for the processor, which is work that was held up.
        assert!(meter.so_far() - worked < Duration::from_millis(150));
    }
    assert!(
        Meter::default().ran_and_waited().is_some(),
        "this kernel tells"
    );
}

#[test]
fn a_task_that_panics_takes_nobody_along() {
    on_each_driver(async || {
        let ended = Rc::new(std::cell::Cell::new(0));
        for fails in [true, false, true] {
            let ended = Rc::clone(&ended);
            spawn(async move {
                let _counted = Counted(ended);
                assert!(!fails, "as an exchange might");
            });
        }
        until(|| ended.get() == 3).await;
        let lost = Rc::new(std::cell::Cell::new(0));
        for fails in [true, false] {
            let (lost, ended) = (Rc::clone(&lost), Rc::clone(&ended));
            spawn_vital(
                async move {
                    let _counted = Counted(ended);
                    assert!(!fails, "as an accept must not");
                },
                move || lost.set(lost.get() + 1),
            );
        }
        until(|| ended.get() == 5 && lost.get() == 1).await;
    });
}

/// Counts when it is dropped, be it by a panic.
struct Counted(Rc<std::cell::Cell<u32>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn an_error_names_the_likely_cause_and_the_cure() {
    for (code, words) in [
        (libc::ENOSYS, "older than 5.19"),
        (libc::EPERM, "seccomp"),
        (libc::EACCES, "seccomp"),
        (libc::ENOMEM, "LimitMEMLOCK="),
        (libc::EMFILE, "LimitNOFILE="),
        (libc::EINVAL, "older than 5.19"),
    ] {
        let text = RuntimeError::IoUring(io::Error::from_raw_os_error(code)).to_string();
        assert!(text.starts_with("io_uring is not available: "), "{text}");
        assert!(
            text.contains(words) || text.contains("kernel.io_uring_disabled="),
            "{text}"
        );
        assert!(
            text.ends_with("or run with `--driver epoll`, which needs none of this"),
            "{text}"
        );
    }
}
