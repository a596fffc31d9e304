//! One core's ways: TLS records in memory, the pool of connections, the newest snapshot.

use std::hint::black_box;
use std::sync::Arc;

use dataplane::bench::{IdleCore, Sessions};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::fixtures::{IDENTITY, server_name, snapshot_of_hosts, upstream};
use crate::{Case, Run};

pub fn cases() -> Vec<Case> {
    vec![
        Case::of_bytes("tls/encrypt-1-KiB", 1 << 10, || encrypt(1 << 10)),
        Case::of_bytes("tls/encrypt-16-KiB", 16 << 10, || encrypt(16 << 10)),
        Case::of_bytes("tls/encrypt-1-MiB", 1 << 20, || encrypt(1 << 20)),
        Case::of_bytes("tls/encrypt-and-decrypt-1-KiB", 1 << 10, || {
            encrypt_and_decrypt(1 << 10)
        }),
        Case::of_bytes("tls/encrypt-and-decrypt-16-KiB", 16 << 10, || {
            encrypt_and_decrypt(16 << 10)
        }),
        Case::of_bytes("tls/encrypt-and-decrypt-1-MiB", 1 << 20, || {
            encrypt_and_decrypt(1 << 20)
        }),
        Case::new("pool/lease-and-return-of-1", || lease(1)),
        Case::new("pool/lease-and-return-of-32", || lease(32)),
        Case::new("pool/lease-and-return-of-1000", || lease(1000)),
        Case::new("core/view", view),
    ]
}

fn sessions() -> Sessions {
    let (mut client, mut server) = (IDENTITY.client.clone(), IDENTITY.server.clone());
    // As the product's: the keys move into the data plane's record layer.
    client.enable_secret_extraction = true;
    server.enable_secret_extraction = true;
    Sessions::new(Arc::new(client), server_name(), Arc::new(server)).expect("they trust each other")
}

/// A head, a key and a body, as a request leaves.
fn message(bytes: usize) -> [Vec<u8>; 3] {
    let (head, key) = (bytes / 4, bytes / 8);
    [
        vec![b'h'; head],
        vec![b'k'; key],
        vec![b'b'; bytes - head - key],
    ]
}

fn encrypt(bytes: usize) -> Run {
    let mut sessions = sessions();
    let message = message(bytes);
    Box::new(move || {
        let slices = [&message[0][..], &message[1], &message[2]];
        let sealed = sessions.encrypt(black_box(&slices));
        assert!(sealed.expect("the session is good") > bytes);
    })
}

fn encrypt_and_decrypt(bytes: usize) -> Run {
    let mut sessions = sessions();
    let message = message(bytes);
    Box::new(move || {
        let slices = [&message[0][..], &message[1], &message[2]];
        sessions
            .encrypt(black_box(&slices))
            .expect("the session is good");
        let clear = sessions.decrypt(|chunk| {
            black_box(chunk);
        });
        assert_eq!(clear.expect("the records are whole"), bytes);
    })
}

fn core(idle: usize) -> IdleCore {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is such a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(soft.max(4096)), hard)
        .expect("up to the hard limit");
    IdleCore::new(Arc::new(snapshot_of_hosts(1)), upstream(), idle)
}

fn lease(idle: usize) -> Run {
    let core = core(idle);
    Box::new(move || core.lease_and_return())
}

fn view() -> Run {
    let core = core(0);
    Box::new(move || assert_eq!(core.view(), 3))
}
