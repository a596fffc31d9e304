//! Handshakes that are none, and those that are legal and odd. Whatever comes, the connection ends or is
//! served, the core does not spin, and the next caller is served.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::{LIMITS, assert_calm, site};
use crate::harness::PATIENCE;
use crate::harness::world::{HOST, Site};

/// What a core may use of its CPU, in a build without optimisation, while it has odd handshakes on its
/// hands that do not go on.
const ODD_SHARE_MAX: f64 = 0.10;

/// A ClientHello that is answered.
pub fn client_hello(site: &Site) -> Vec<u8> {
    let mut bytes = Vec::new();
    connection(site).write_tls(&mut bytes).expect("a vector");
    bytes
}

fn connection(site: &Site) -> ClientConnection {
    let name = ServerName::try_from(HOST).expect("a name");
    ClientConnection::new(Arc::new(site.world.client_config()), name).expect("a configuration")
}

#[track_caller]
fn socket(site: &Site) -> TcpStream {
    let socket = TcpStream::connect(site.claviger.address()).expect("it listens");
    socket.set_nodelay(true).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    socket
}

/// A handshake message in records of so many bytes each.
fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in message.chunks(size) {
        bytes.extend([22, 3, 1]);
        bytes.extend(u16::try_from(piece.len()).expect("small").to_be_bytes());
        bytes.extend(piece);
    }
    bytes
}

/// Ends a handshake and makes a request over it.
fn is_served(mut connection: ClientConnection, mut socket: TcpStream) -> bool {
    while connection.is_handshaking() {
        if connection.complete_io(&mut socket).is_err() {
            return false;
        }
    }
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    let request = format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut answer = [0; 12];
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && &answer == b"HTTP/1.1 200"
}

/// RFC 8446, section 5.1: a handshake message may be spread over records, and TCP spreads those as it
/// likes.
#[test]
fn a_client_hello_in_pieces() {
    let site = site("", "");
    let mut byte_by_byte = connection(&site);
    let mut hello = Vec::new();
    byte_by_byte.write_tls(&mut hello).expect("a vector");
    let mut one = socket(&site);
    for byte in &hello {
        one.write_all(&[*byte]).expect("it is open");
    }
    assert!(is_served(byte_by_byte, one), "byte by byte");
    for size in [1, 7, 100] {
        let mut spread = connection(&site);
        let mut hello = Vec::new();
        spread.write_tls(&mut hello).expect("a vector");
        let mut one = socket(&site);
        one.write_all(&in_records(&hello[5..], size))
            .expect("it is open");
        assert!(is_served(spread, one), "in records of {size}");
    }
}

/// What is not a handshake ends, before the limit for handshakes or at it.
#[test]
fn handshakes_that_are_none() {
    let site = site(LIMITS, "");
    let hello = client_hello(&site);
    let alert = |level: u8, description: u8| vec![21, 3, 3, 0, 2, level, description];
    let change_cipher_spec = [20, 3, 3, 0, 1, 1];
    let sslv2 = [
        &[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10][..],
        &[7, 0, 0xc0, 5, 0, 0x80, 3, 0, 0x80, 1, 0, 0x80, 8, 0, 0x80][..],
        &[6, 0, 0x40, 4, 0, 0x80, 2, 0, 0x80][..],
        &[0; 16][..],
    ]
    .concat();
    let huge = [&[1, 0xff, 0xff, 0xff][..], &vec![0; 100_000]].concat();
    let odd: Vec<(&str, Vec<u8>)> = vec![
        ("an SSLv2 hello", sslv2),
        (
            "a request in the clear",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        ),
        (
            "HTTP/2's preface",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        ),
        (
            "the PROXY protocol",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(),
        ),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("a close_notify first", alert(1, 0)),
        (
            "a close_notify behind the ClientHello",
            [hello.clone(), alert(1, 0)].concat(),
        ),
        (
            "a fatal alert behind the ClientHello",
            [hello.clone(), alert(2, 40)].concat(),
        ),
        ("a thousand warnings", alert(1, 90).repeat(1000)),
        (
            "a thousand warnings behind it",
            [hello.clone(), alert(1, 90).repeat(1000)].concat(),
        ),
        (
            "a thousand ChangeCipherSpecs",
            change_cipher_spec.repeat(1000),
        ),
        (
            "a thousand of them behind it",
            [hello.clone(), change_cipher_spec.repeat(1000)].concat(),
        ),
        ("empty records", [22, 3, 1, 0, 0].repeat(1000)),
        (
            "empty records behind it",
            [hello.clone(), [22, 3, 3, 0, 0].repeat(1000)].concat(),
        ),
        ("a heartbeat", vec![24, 3, 3, 0, 3, 1, 0x40, 0]),
        (
            "a heartbeat behind it",
            [hello.clone(), vec![24, 3, 3, 0, 3, 1, 0x40, 0]].concat(),
        ),
        (
            "data before any handshake",
            [&[23, 3, 3, 0, 16][..], &[0; 16][..]].concat(),
        ),
        (
            "data behind the ClientHello",
            [&hello[..], &[23, 3, 3, 0, 16], &[0; 16]].concat(),
        ),
        ("a ClientHello twice", hello.repeat(2)),
        ("a ClientHello of 16 MiB", in_records(&huge, 16_000)),
        (
            "a record of 64 KiB",
            [&[22, 3, 1, 0xff, 0xff][..], &vec![1; 70_000]].concat(),
        ),
        ("half a ClientHello", hello[..hello.len() / 2].to_vec()),
        ("a record of no version", vec![22, 9, 9, 0, 4, 1, 0, 0, 0]),
        ("nothing", Vec::new()),
        ("zeros", vec![0; 4096]),
    ];
    let count = odd.len();
    for (name, bytes) in &odd {
        // It may have ended before all of it is sent.
        let mut one = socket(&site);
        let _ = one.write_all(bytes);
        let mut got = Vec::new();
        let ended = one.read_to_end(&mut got);
        let is_cut = ended
            .as_ref()
            .is_err_and(|err| err.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(ended.is_ok() || is_cut, "{name}: {ended:?}");
        assert!(
            !got.starts_with(b"HTTP/"),
            "{name}: {}",
            String::from_utf8_lossy(&got)
        );
    }
    site.claviger.wait_count("handshakes_failed", count as u64);
    // The other end of the same: it is closed at once, amid or after whatever came.
    for (_, bytes) in &odd {
        let mut one = socket(&site);
        let _ = one.write_all(bytes);
        let _ = one.shutdown(Shutdown::Write);
    }
    site.claviger
        .wait_count("handshakes_failed", 2 * count as u64);
    site.claviger.wait_count("connections_open", 0);
    assert_calm(&site.claviger, ODD_SHARE_MAX);
    site.get("/ok").expect(200);
}

/// Half of the goodbye: one side's close_notify, and then nothing, neither costs a spin nor keeps
/// a connection for ever.
#[test]
fn a_close_notify_and_silence() {
    let site = site("idle_timeout = \"3s\"\n", "");
    let mut one = site.connect();
    one.get(HOST, "/ok").expect(200);
    one.close_write();
    one.expect_end();
    let mut held: Vec<_> = (0..20)
        .map(|_| {
            let mut one = site.connect();
            one.get(HOST, "/ok").expect(200);
            // A FIN without close_notify, and the socket stays.
            one.socket().shutdown(Shutdown::Write).expect("a socket");
            one
        })
        .collect();
    assert_calm(&site.claviger, ODD_SHARE_MAX);
    site.claviger.wait_count("connections_open", 0);
    for one in &mut held {
        one.expect_end();
    }
}

/// OpenSSL's client, which does what rustls does not.
fn openssl(site: &Site, options: &[&str]) -> Child {
    Command::new("openssl")
        .args(["s_client", "-connect", &site.claviger.address().to_string()])
        .args(["-servername", HOST, "-CAfile"])
        .arg(site.world.path("root.pem"))
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`openssl` can be started")
}

/// Has it send `input`: whether it was served, and all that it printed.
fn s_client(site: &Site, options: &[&str], input: &str) -> (bool, String) {
    let mut child = openssl(site, &[options, &["-ign_eof"]].concat());
    let mut stdin = child.stdin.take().expect("piped");
    // It may have ended, without a connection.
    let _ = stdin.write_all(input.as_bytes());
    outcome(site, child)
}

/// Gives it a command first, such as `R`, and sends `input` once it says that it obeys.
fn s_client_told(
    site: &Site,
    options: &[&str],
    command: &str,
    says: &str,
    input: &str,
) -> (bool, String) {
    let mut child = openssl(site, options);
    let mut stdin = child.stdin.take().expect("piped");
    let mut errors = BufReader::new(child.stderr.take().expect("piped"));
    // A command is one that stands first in what it reads, once it is connected.
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    read_until(&mut out, "Verify return code");
    read_until(&mut out, "---");
    stdin.write_all(command.as_bytes()).expect("it reads");
    read_until(&mut errors, says);
    let _ = stdin.write_all(input.as_bytes());
    child.stdout = Some(out.into_inner());
    let outcome = outcome(site, child);
    drop(stdin);
    outcome
}

fn read_until(from: &mut impl BufRead, text: &str) {
    let mut line = String::new();
    while from.read_line(&mut line).expect("text") > 0 {
        if line.contains(text) {
            return;
        }
        line.clear();
    }
    panic!("openssl never said {text:?}");
}

fn outcome(site: &Site, child: Child) -> (bool, String) {
    let out = child.wait_with_output().expect("it ends");
    let text = [out.stdout, out.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    site.world.evidence("what openssl printed", text.clone());
    (text.contains("HTTP/1.1 200"), text)
}

#[test]
fn what_openssl_can_do() {
    let site = site("head_timeout = \"3s\"\nidle_timeout = \"3s\"\n", "");
    let get = format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    // Refused: what TLS 1.2 left behind, and what came before it.
    for old in ["-tls1", "-tls1_1"] {
        let (served, text) = s_client(&site, &[old, "-cipher", "ALL:@SECLEVEL=0"], &get);
        assert!(!served, "{old}: {text}");
    }
    let (served, text) = s_client(&site, &["-tls1_2", "-cipher", "AES128-SHA"], &get);
    assert!(!served, "no forward secrecy: {text}");
    // Served.
    for options in [
        &["-tls1_2"][..],
        &["-tls1_3"],
        &["-tls1_2", "-comp"],
        &["-tls1_3", "-groups", "P-256"],
        &["-tls1_3", "-max_send_frag", "512"],
        &["-tls1_2", "-no_ticket"],
        &["-tls1_3", "-no_middlebox"],
    ] {
        let (served, text) = s_client(&site, options, &get);
        assert!(served, "{options:?}: {text}");
        assert!(
            !text.contains("Compression: zlib"),
            "{options:?}: compressed: {text}"
        );
    }
    // Renegotiation (TLS 1.2): asked for before the request, and declined; the request is served or the
    // connection ends, and nothing is renegotiated.
    let (_, text) = s_client_told(&site, &["-tls1_2"], "R\n", "RENEGOTIATING", &get);
    assert!(!text.contains("Certificate chain"), "it was: {text}");
    // A key update is taken up.
    let (served, text) = s_client_told(&site, &["-tls1_3"], "K\n", "KEYUPDATE", &get);
    assert!(served, "{text}");
    // Early data is not taken: it could be sent again by whoever recorded it.
    let session = site.world.path("session.pem");
    let early = site.world.write("early", &get);
    let path = |path: &std::path::Path| path.display().to_string();
    let (served, text) = s_client(&site, &["-tls1_3", "-sess_out", &path(&session)], &get);
    assert!(served, "{text}");
    let (_, text) = s_client(
        &site,
        &[
            "-tls1_3",
            "-sess_in",
            &path(&session),
            "-early_data",
            &path(&early),
        ],
        &get,
    );
    assert!(!text.contains("Early data was accepted"), "{text}");
    assert_calm(&site.claviger, ODD_SHARE_MAX);
    site.claviger.wait_count("connections_open", 0);
}
