use std::io::{Read as _, Write as _};

use rustls::crypto::aws_lc_rs::cipher_suite as suites;
use rustls::{ClientConnection, Connection, ServerConnection};

use super::*;
use crate::test_support::{IDENTITY, pattern};

/// Every way of protecting a record: the RSA suites differ in the handshake only.
const SUITES: [SupportedCipherSuite; 6] = [
    suites::TLS13_AES_128_GCM_SHA256,
    suites::TLS13_AES_256_GCM_SHA384,
    suites::TLS13_CHACHA20_POLY1305_SHA256,
    suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

const TLS_1_3: SupportedCipherSuite = suites::TLS13_AES_128_GCM_SHA256;
const TLS_1_2: SupportedCipherSuite = suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;

/// Sizes around the bounds of a record.
const SIZES: [usize; 7] = [
    1,
    2,
    100,
    PLAIN_BYTES_MAX - 1,
    PLAIN_BYTES_MAX,
    PLAIN_BYTES_MAX + 1,
    100_000,
];

/// Which part is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Client,
    Server,
}

const PARTS: [Part; 2] = [Part::Client, Part::Server];

/// Our session, and rustls's own connection at the other end: what both agree on
/// was not agreed between us and ourselves.
struct Pair {
    ours: Session,
    /// What we have to send.
    out: Vec<u8>,
    theirs: Connection,
}

impl Pair {
    fn new(part: Part, suite: SupportedCipherSuite) -> Self {
        let client = Arc::new(IDENTITY.client_with(suite));
        Self::with(part, &client, &Arc::new(IDENTITY.server(&[])), usize::MAX)
    }

    /// The handshake, its bytes given to us in pieces of at most `piece`.
    fn with(
        part: Part,
        client: &Arc<ClientConfig>,
        server: &Arc<ServerConfig>,
        piece: usize,
    ) -> Self {
        let (client, server) = (Arc::clone(client), Arc::clone(server));
        let (mut ours, mut theirs): (_, Connection) = match part {
            Part::Client => (
                Handshake::client(client, IDENTITY.name()).expect("a good name"),
                ServerConnection::new(server).expect("it is good").into(),
            ),
            Part::Server => (
                Handshake::server(server).expect("a good configuration"),
                ClientConnection::new(client, IDENTITY.name())
                    .expect("a good name")
                    .into(),
            ),
        };
        let (mut input, mut out) = (Vec::new(), Vec::new());
        loop {
            let (used, progress) = ours.advance(&mut input, &mut out);
            input.drain(..used);
            give(&mut theirs, &mut out);
            if let Progress::Done = progress.expect("both are good") {
                break;
            }
            let mut sent = Vec::new();
            while theirs.wants_write() {
                theirs.write_tls(&mut sent).expect("a vector takes all");
            }
            assert!(!sent.is_empty(), "neither has anything to say");
            let mut pieces = sent.chunks(piece).peekable();
            while let Some(piece) = pieces.next() {
                input.extend_from_slice(piece);
                if pieces.peek().is_some() {
                    let (used, progress) = ours.advance(&mut input, &mut out);
                    input.drain(..used);
                    if let Progress::Done = progress.expect("both are good") {
                        let rest: Vec<u8> = pieces.flatten().copied().collect();
                        input.extend_from_slice(&rest);
                        break;
                    }
                }
            }
        }
        let session = ours.into_session().expect("it is over");
        let mut pair = Pair {
            ours: session,
            out,
            theirs,
        };
        assert!(!pair.theirs.is_handshaking());
        // Tickets that came along.
        assert_eq!(pair.open_all(&input), Ok(Vec::new()));
        pair
    }

    /// Has us open what rustls sends now; the data in it.
    fn receive(&mut self) -> Result<Vec<u8>, Error> {
        let mut sent = Vec::new();
        while self.theirs.wants_write() {
            self.theirs
                .write_tls(&mut sent)
                .expect("a vector takes all");
        }
        self.open_all(&sent)
    }

    fn open_all(&mut self, mut records: &[u8]) -> Result<Vec<u8>, Error> {
        let mut data = Vec::new();
        while !records.is_empty() {
            let length = record::length(records)?.expect("whole records");
            let mut record = records[..length].to_vec();
            records = &records[length..];
            match self.ours.open(&mut record, &mut self.out)? {
                Opened::Data(range) => data.extend_from_slice(&record[range]),
                Opened::Nothing => {}
                Opened::End => return Ok(data),
            }
        }
        Ok(data)
    }

    /// Has rustls read what we have to send; the data in it.
    fn send(&mut self) -> Vec<u8> {
        give(&mut self.theirs, &mut self.out);
        let mut data = Vec::new();
        let _ = self.theirs.reader().read_to_end(&mut data);
        data
    }

    /// Messages both ways, of all sizes.
    fn talk(&mut self) {
        for size in SIZES {
            let text = pattern(size);
            self.theirs.set_buffer_limit(None);
            self.theirs.writer().write_all(&text).expect("no limit");
            assert!(self.receive().as_ref() == Ok(&text), "{size} to us");
            // In several slices, the records' bounds elsewhere.
            let (one, other) = text.split_at(size / 3);
            let mut read = Vec::new();
            self.ours
                .seal(&[one, b"", other], &mut self.out)
                .expect("it is open");
            while read.len() < size {
                let before = read.len();
                read.extend(self.send());
                assert!(read.len() > before, "{size} to them");
            }
            assert!(read == text);
        }
    }
}

/// Gives all of `bytes` to rustls, as far as it takes them.
fn give(theirs: &mut Connection, bytes: &mut Vec<u8>) {
    let sent = std::mem::take(bytes);
    let mut rest = &sent[..];
    while !rest.is_empty() {
        match theirs.read_tls(&mut rest) {
            Ok(_) => {
                theirs.process_new_packets().expect("we keep the rules");
            }
            // Its store of plaintext is full: the test takes it first.
            Err(_) => {
                bytes.extend_from_slice(rest);
                return;
            }
        }
    }
}

/// Two sessions of ours: one end breaks rules that rustls would keep.
fn ours(suite: SupportedCipherSuite) -> (Session, Session) {
    let client = Arc::new(IDENTITY.client_with(suite));
    let server = Arc::new(IDENTITY.server(&[]));
    let mut client = Handshake::client(client, IDENTITY.name()).expect("a good name");
    let mut server = Handshake::server(server).expect("a good configuration");
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let (mut client_done, mut server_done) = (false, false);
    while !client_done || !server_done {
        if !client_done {
            let (used, progress) = client.advance(&mut down, &mut up);
            down.drain(..used);
            client_done = matches!(progress, Ok(Progress::Done));
        }
        if !server_done {
            let (used, progress) = server.advance(&mut up, &mut down);
            up.drain(..used);
            server_done = matches!(progress, Ok(Progress::Done));
        }
    }
    let mut client = client.into_session().expect("it is over");
    let server = server.into_session().expect("it is over");
    while let Some(length) = record::length(&down).expect("records") {
        client
            .open(&mut down[..length], &mut up)
            .expect("a ticket, at most");
        down.drain(..length);
    }
    (client, server)
}

/// One record of the peer's making.
fn record_of(session: &mut Session, content: Content, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    session
        .sealer
        .seal(content, text.len(), &mut out, |out| {
            out.extend_from_slice(text);
        })
        .expect("the key is fresh");
    out
}

fn open(session: &mut Session, mut record: Vec<u8>) -> Result<Opened, Error> {
    session.open(&mut record, &mut Vec::new())
}

#[test]
fn every_suite_is_understood_by_rustls() {
    for suite in SUITES {
        for part in PARTS {
            let mut pair = Pair::new(part, suite);
            assert_eq!(pair.theirs.negotiated_cipher_suite(), Some(suite));
            pair.talk();
        }
    }
}

#[test]
fn handshakes_in_pieces() {
    let server = Arc::new(IDENTITY.server(&[]));
    for suite in [TLS_1_2, TLS_1_3] {
        let client = Arc::new(IDENTITY.client_with(suite));
        for part in PARTS {
            for piece in [1, 2, 5, 6, 100, 1000] {
                Pair::with(part, &client, &server, piece).talk();
            }
        }
    }
}

#[test]
fn tickets_are_kept_and_used() {
    for suite in [TLS_1_2, TLS_1_3] {
        for part in PARTS {
            let client = Arc::new(IDENTITY.client_with(suite));
            let mut server = IDENTITY.server(&[]);
            server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("random bytes");
            let server = Arc::new(server);
            for is_second in [false, true] {
                let mut pair = Pair::with(part, &client, &server, usize::MAX);
                assert_eq!(pair.ours.is_resumed(), is_second);
                assert_eq!(pair.receive(), Ok(Vec::new()));
                pair.talk();
            }
        }
    }
}

/// RFC 8446, section 4.6.3, asked for by either side, in the middle of messages.
#[test]
fn keys_are_updated() {
    for suite in &SUITES[..3] {
        for part in PARTS {
            let mut pair = Pair::new(part, *suite);
            for _ in 0..3 {
                pair.theirs.refresh_traffic_keys().expect("TLS 1.3");
                pair.theirs.refresh_traffic_keys().expect("TLS 1.3");
                assert_eq!(pair.receive(), Ok(Vec::new()));
                assert!(pair.ours.owes_key_update);
                assert!(pair.out.is_empty(), "it goes before the next message");
                pair.talk();
                assert!(!pair.ours.owes_key_update);
                // Ours is spent in the middle of a message.
                pair.ours.sealer.spend_all_but(3);
                pair.talk();
                assert!(!pair.ours.sealer.is_nearly_spent());
            }
        }
    }
}

#[test]
fn a_spent_key_of_tls_1_2_ends_the_connection() {
    let mut pair = Pair::new(Part::Server, TLS_1_2);
    pair.ours.sealer.spend_all_but(2);
    let text = pattern(3 * PLAIN_BYTES_MAX);
    let refused = pair.ours.seal(&[&text], &mut pair.out);
    assert_eq!(refused, Err(Error::EncryptError));
}

#[test]
fn goodbyes() {
    for suite in SUITES {
        for part in PARTS {
            let mut pair = Pair::new(part, suite);
            pair.theirs.writer().write_all(b"last").expect("it is open");
            pair.theirs.send_close_notify();
            assert_eq!(pair.receive(), Ok(b"last".to_vec()));
            // Our direction is still open.
            pair.ours.seal(&[b"answer"], &mut pair.out).expect("open");
            pair.ours.close(&mut pair.out);
            let length = pair.out.len();
            pair.ours.close(&mut pair.out);
            assert_eq!(pair.out.len(), length, "said once");
            assert!(pair.ours.seal(&[b"more"], &mut pair.out).is_err());
            let mut read = Vec::new();
            give(&mut pair.theirs, &mut pair.out);
            let clean = pair.theirs.reader().read_to_end(&mut read);
            assert_eq!((clean.ok(), &read[..]), (Some(6), &b"answer"[..]));
        }
    }
}

/// The peer learns why, and nothing is sent after it.
#[test]
fn a_forged_record_is_answered_by_an_alert() {
    for suite in SUITES {
        for part in PARTS {
            let mut pair = Pair::new(part, suite);
            pair.theirs.writer().write_all(b"truth").expect("open");
            let mut sent = Vec::new();
            pair.theirs.write_tls(&mut sent).expect("a vector");
            let last = sent.len() - 1;
            sent[last] ^= 1;
            assert_eq!(pair.open_all(&sent), Err(Error::DecryptError));
            assert!(pair.ours.seal(&[b"more"], &mut pair.out).is_err());
            let mut told = &pair.out[..];
            pair.theirs.read_tls(&mut told).expect("it reads");
            let error = pair.theirs.process_new_packets().expect_err("an alert");
            assert_eq!(error, Error::AlertReceived(AlertDescription::BadRecordMac));
        }
    }
}

/// What may not follow a handshake ends the connection.
#[test]
fn what_breaks_the_rules_is_refused() {
    let key_update: &[u8] = &[24, 0, 0, 1, 0];
    let both = [key_update, key_update].concat();
    let cases: [(&str, Content, &[u8]); 9] = [
        ("a change of cipher", Content::ChangeCipherSpec, &[1]),
        ("an empty handshake record", Content::Handshake, &[]),
        ("a ClientHello", Content::Handshake, &[1, 0, 0, 0]),
        ("an unknown message", Content::Handshake, &[99, 0, 0, 0]),
        (
            "a key update of another kind",
            Content::Handshake,
            &[24, 0, 0, 1, 2],
        ),
        (
            "a key update of two bytes",
            Content::Handshake,
            &[24, 0, 0, 2, 0, 0],
        ),
        ("a message behind a key update", Content::Handshake, &both),
        ("a giant", Content::Handshake, &[4, 1, 0, 0]),
        ("half an alert", Content::Alert, &[2]),
    ];
    for (what, content, text) in cases {
        let (mut client, mut server) = ours(TLS_1_3);
        let record = record_of(&mut client, content, text);
        let mut told = Vec::new();
        let refused = server.open(&mut record.clone(), &mut told);
        assert!(refused.is_err(), "{what}: {refused:?}");
        let alert = client.open(&mut told, &mut Vec::new());
        assert!(
            matches!(alert, Err(Error::AlertReceived(_))),
            "{what}: {alert:?}"
        );
    }
    // Tickets are a server's to give, and TLS 1.2 has neither them nor key updates here.
    let ticket = &[4, 0, 0, 0];
    let (mut client, mut server) = ours(TLS_1_3);
    let record = record_of(&mut client, Content::Handshake, ticket);
    assert!(open(&mut server, record).is_err());
    for message in [ticket, &key_update[..4]] {
        let (mut client, mut server) = ours(TLS_1_2);
        let record = record_of(&mut server, Content::Handshake, message);
        let _ = open(&mut client, record).map(|opened| assert_eq!(opened, Opened::Nothing));
        let rest = record_of(&mut server, Content::Data, b"data");
        assert!(open(&mut client, rest).is_err());
    }
}

#[test]
fn a_message_in_pieces_is_one_message() {
    let (mut client, mut server) = ours(TLS_1_3);
    for byte in [24, 0, 0, 1, 1] {
        let record = record_of(&mut client, Content::Handshake, &[byte]);
        assert_eq!(open(&mut server, record), Ok(Opened::Nothing));
    }
    assert!(server.owes_key_update);
    assert!(server.message.is_empty());
    // Nothing may come between its parts.
    let (mut client, mut server) = ours(TLS_1_3);
    let record = record_of(&mut client, Content::Handshake, &[24, 0, 0]);
    assert_eq!(open(&mut server, record), Ok(Opened::Nothing));
    let record = record_of(&mut client, Content::Data, b"data");
    assert_eq!(
        open(&mut server, record),
        Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into())
    );
}

#[test]
fn records_without_data_are_counted() {
    for (content, text) in [(Content::Data, &[][..]), (Content::Alert, &[WARNING, 90])] {
        let (mut client, mut server) = ours(TLS_1_3);
        for _ in 0..2 {
            for _ in 0..DATALESS_MAX {
                let record = record_of(&mut client, content, text);
                assert_eq!(open(&mut server, record), Ok(Opened::Nothing));
            }
            let record = record_of(&mut client, Content::Data, b"data");
            assert!(matches!(open(&mut server, record), Ok(Opened::Data(_))));
        }
        for _ in 0..DATALESS_MAX {
            let record = record_of(&mut client, content, text);
            assert_eq!(open(&mut server, record), Ok(Opened::Nothing));
        }
        let record = record_of(&mut client, content, text);
        assert!(open(&mut server, record).is_err());
    }
}

#[test]
fn alerts_end_the_connection_except_two() {
    for (suite, level, description, ends) in [
        (TLS_1_3, WARNING, 90, false),
        (TLS_1_3, WARNING, 100, true),
        (TLS_1_3, FATAL, 20, true),
        (TLS_1_2, WARNING, 90, false),
        (TLS_1_2, WARNING, 100, false),
        (TLS_1_2, FATAL, 20, true),
    ] {
        let (mut client, mut server) = ours(suite);
        let record = record_of(&mut client, Content::Alert, &[level, description]);
        let mut told = Vec::new();
        let opened = server.open(&mut record.clone(), &mut told);
        assert_eq!(opened.is_err(), ends, "{description}");
        assert!(told.is_empty(), "an alert is not answered by one");
    }
}

#[test]
fn renegotiation_is_declined_once() {
    for part in PARTS {
        let (mut client, mut server) = ours(TLS_1_2);
        let (ours, theirs, hello) = match part {
            Part::Client => (&mut client, &mut server, [0, 0, 0, 0]),
            Part::Server => (&mut server, &mut client, [1, 0, 0, 0]),
        };
        let mut told = Vec::new();
        let mut record = record_of(theirs, Content::Handshake, &hello);
        assert_eq!(ours.open(&mut record, &mut told), Ok(Opened::Nothing));
        assert_eq!(open(theirs, told), Ok(Opened::Nothing));
        let record = record_of(theirs, Content::Data, b"data");
        assert!(matches!(open(ours, record), Ok(Opened::Data(_))));
        let record = record_of(theirs, Content::Handshake, &hello);
        assert!(open(ours, record).is_err());
    }
}

/// What the peer must be told about a handshake that failed is in `out`.
#[test]
fn a_handshake_that_fails_leaves_its_alert() {
    for piece in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[22, 3, 1, 0, 4, 99, 0, 0, 0],
    ] {
        let server = Arc::new(IDENTITY.server(&[]));
        let mut handshake = Handshake::server(server).expect("a good configuration");
        let mut out = Vec::new();
        let (_, outcome) = handshake.advance(&mut piece.to_vec(), &mut out);
        assert!(outcome.is_err());
        assert_eq!(out[..2], [21, 3], "{out:?}");
        assert_eq!(record::length(&out), Ok(Some(out.len())));
    }
}

/// Secrets leave rustls only where the configuration says that they may.
#[test]
fn a_configuration_that_keeps_its_keys_is_an_error() {
    let mut server = IDENTITY.server(&[]);
    server.enable_secret_extraction = false;
    let mut ours = Handshake::server(Arc::new(server)).expect("a good configuration");
    let client = ClientConnection::new(Arc::new(IDENTITY.client()), IDENTITY.name());
    let mut theirs = client.expect("a good name");
    let (mut input, mut out) = (Vec::new(), Vec::new());
    loop {
        while theirs.wants_write() {
            theirs.write_tls(&mut input).expect("a vector takes all");
        }
        let (used, progress) = ours.advance(&mut input, &mut out);
        input.drain(..used);
        if let Progress::Done = progress.expect("both are good") {
            break;
        }
        let mut sent = &out[..];
        while !sent.is_empty() {
            theirs.read_tls(&mut sent).expect("it reads");
            theirs.process_new_packets().expect("both are good");
        }
        out.clear();
    }
    assert!(ours.into_session().is_err());
}
