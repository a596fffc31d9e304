//! Nothing leaks back: a key that an upstream sends back does not reach the caller, in whatever form,
//! place and pieces it comes, and what else it sends arrives as it was sent, at once.

use std::process::Command;
use std::sync::{Mutex, mpsc};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::coded::target;
use crate::harness::leak::Leak;
use crate::harness::process::Process;
use crate::harness::scripted::Peer;
use crate::harness::world::{Claviger, HOST, bearer_route};
use crate::harness::{Client, Scripted, World};

/// A world whose one route leads to this script; it gets the key that the request carried.
fn site(
    on_echo: &str,
    key: Option<&str>,
    script: impl Fn(&mut Peer, &str, &str) + Send + Sync + 'static,
) -> (Claviger, Scripted, World) {
    site_with(
        &format!("on_echo = {on_echo:?}\n"),
        key,
        move |peer, head, key| {
            let target = head.split(' ').nth(1).unwrap_or_default();
            script(peer, target, key);
        },
    )
}

/// The same with any lines in the route, for a script that gets the whole head.
pub(crate) fn site_with(
    lines: &str,
    key: Option<&str>,
    script: impl Fn(&mut Peer, &str, &str) + Send + Sync + 'static,
) -> (Claviger, Scripted, World) {
    let world = World::new();
    let key_file = match key {
        Some(key) => world.write("key", key),
        None => world.key_file("key").1,
    };
    let upstream = Scripted::start(&world, HOST, move |peer| {
        while let Some(head) = peer.head() {
            let key = head
                .lines()
                .find_map(|line| line.strip_prefix("Authorization: Bearer "))
                .unwrap_or("no key")
                .to_owned();
            script(peer, &head, &key);
        }
    });
    let claviger = world.start(&format!(
        "{}{}{}{lines}",
        world.base(),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    (claviger, upstream, world)
}

/// curl, on its way to this path; its outputs are searched for keys.
pub(crate) fn curl(claviger: &Claviger, world: &World, path: &str, further: &[&str]) -> Process {
    let mut command = Command::new("curl");
    let port = claviger.address().port();
    command
        .args(["--silent", "--show-error", "--no-buffer", "--http1.1"])
        .arg("--cacert")
        .arg(world.path("root.pem"))
        .args(["--resolve", &format!("{HOST}:{port}:127.0.0.1")])
        .args(further)
        .arg(format!("https://{HOST}:{port}{path}"));
    world.watch("curl", command)
}

/// What an upstream may make of a key.
fn disguises(key: &str) -> Vec<String> {
    let each = |write: fn(u8) -> String| -> String { key.bytes().map(write).collect() };
    let partly = |byte: u8| match byte {
        b'/' => "\\/".to_owned(),
        b'+' => "\\u002b".to_owned(),
        b'a'..=b'e' => format!("%{byte:02x}"),
        b'f'..=b'j' => format!("%{byte:02X}"),
        byte => char::from(byte).to_string(),
    };
    vec![
        key.to_owned(),
        each(|byte| format!("%{byte:02x}")),
        each(|byte| format!("%{byte:02X}")),
        each(|byte| format!("\\u{byte:04x}")),
        each(|byte| format!("&#{byte};")),
        each(|byte| format!("{byte:02x}")),
        each(|byte| format!("{byte:02X}")),
        each(partly),
        key.replace('+', "%2B").replace('/', "%2F"),
        key.replace('+', "%252B").replace('/', "%252F"),
        key.replace('/', "\\/"),
        STANDARD.encode(key),
        STANDARD.encode(format!("u{key}v")),
        STANDARD.encode(format!("me{key}")),
        URL_SAFE_NO_PAD.encode(format!("api:{key}")),
        STANDARD.encode(format!("api:{key}")).replace('/', "\\/"),
    ]
}

/// Undoes what [`Leak`] does not know: characters that are escaped one by one.
fn plain(text: &str) -> String {
    let mut plain = text.replace("\\/", "/");
    for byte in 0x20..0x7fu8 {
        let character = char::from(byte).to_string();
        for escape in [
            format!("%{byte:02x}"),
            format!("%{byte:02X}"),
            format!("\\u{byte:04x}"),
            format!("&#{byte};"),
        ] {
            plain = plain.replace(&escape, &character);
        }
    }
    plain
}

fn text_with(disguise: &str) -> String {
    format!("{{\"before\": 1, \"you_sent\": \"{disguise}\", \"after\": \"100%\\n\"}}")
}

/// Each form, in each framing, cut in each of a few places.
#[test]
fn no_form_of_the_key_returns_in_a_body() {
    const WAYS: usize = 5;
    let (claviger, upstream, world) = site("redact", None, |peer, target, key| {
        let number: usize = target[1..].parse().expect("the test asks with numbers");
        let text = text_with(&disguises(key)[number / WAYS]);
        // The search finds it in what is sent here, or it would find nothing elsewhere.
        let seen = Leak::of(key).search(plain(&text).as_bytes()).is_some();
        peer.tell(format!("{seen} {}", text.len()));
        let middle = text.find("you_sent").expect("it is there") + 24;
        let (before, after) = text.split_at(middle);
        match number % WAYS {
            0 => {
                peer.answer(&text);
            }
            1 => {
                let length = text.len();
                peer.send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{before}"
                ));
                peer.send(after);
            }
            2 => {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for part in [before, after] {
                    peer.send(format!("{:x}\r\n{part}\r\n", part.len()));
                }
                peer.send("0\r\n\r\n");
            }
            3 => {
                // All of it in one record, in chunks of a byte.
                let chunks: String = text.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
                peer.send(format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
                ));
            }
            _ => {
                peer.send(format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{before}"
                ));
                peer.send(after);
                peer.close();
            }
        }
    });
    let key = std::fs::read_to_string(world.path("key")).expect("the key");
    let leak = Leak::of(&key);
    let mut client = claviger.connect(&world);
    for (at, disguise) in disguises(&key).iter().enumerate() {
        for way in 0..WAYS {
            let number = at * WAYS + way;
            let answer = client.get(HOST, &format!("/{number}"));
            let text = answer.expect(200).text();
            let length = text_with(disguise).len();
            assert_eq!(upstream.told(), format!("true {length}"), "{disguise}");
            assert_eq!(text.len(), length, "{text}");
            assert!(
                text.starts_with("{\"before\": 1, \"you_sent\": \"")
                    && text.ends_with("\", \"after\": \"100%\\n\"}")
                    && text.contains("redacted"),
                "{text}"
            );
            leak.assert_none("the answer", plain(&text).as_bytes());
        }
    }
    assert_eq!(claviger.audit_of("/0")["scrubbed"], 1);
    claviger.wait_count("scrub_hits", (disguises(&key).len() * WAYS) as u64);
}

/// What cannot be the beginning of a key does not wait, and what can waits for the next byte only.
#[test]
fn events_still_arrive_one_by_one() {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (claviger, _upstream, world) = site("redact", None, move |peer, _, key| {
        let gate = gate.lock().expect("one connection");
        peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        for event in [
            "data: 1\n\n".to_owned(),
            format!("data: {}\n\n", &key[..15]),
            "data: \\\n\n".to_owned(),
            format!("data: {key}\n\n"),
            "data: [DONE]\n\n".to_owned(),
        ] {
            if gate.recv().is_err() {
                return;
            }
            peer.send(format!("{:x}\r\n{event}\r\n", event.len()));
        }
        peer.send("0\r\n\r\n");
    });
    let key = std::fs::read_to_string(world.path("key")).expect("the key");
    let mut client = claviger.connect(&world);
    client.send(format!("GET /events HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(client.head().status, 200);
    let redacted = "redacted".repeat(key.len() / 8);
    for data in ["1", &key[..15], "\\", &redacted, "[DONE]"] {
        go.send(()).expect("the script waits");
        let event = format!("data: {data}\n\n");
        let mut got = Vec::new();
        while got.len() < event.len() {
            got.extend(client.chunk().1);
        }
        assert_eq!(String::from_utf8_lossy(&got), event);
    }
    assert_eq!(client.chunk().1, b"");
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    assert!(length < 126, "a short frame");
    [&[first, length], payload].concat()
}

fn upgrade(client: &mut Client) {
    client.send(format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    ));
    assert_eq!(client.head().status, 101);
}

/// Upgrades, and sends these frames: the first ones along with its consent.
fn websocket(
    on_echo: &str,
    frames: fn(&str) -> [Vec<u8>; 2],
) -> (Claviger, Scripted, World, Client) {
    let world = World::new();
    let (_, key_file) = world.key_file("key");
    let upstream = Scripted::start(&world, HOST, move |peer| {
        while let Some(head) = peer.head() {
            peer.tell(format!(
                "extensions offered: {}",
                head.to_lowercase().contains("sec-websocket-extensions")
            ));
            let key = head
                .lines()
                .find_map(|line| line.strip_prefix("Authorization: Bearer "))
                .expect("a key");
            let [first, later] = frames(key);
            let consent = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            peer.send([&consent[..], &first].concat());
            for byte in later {
                peer.send([byte]);
            }
            peer.wait_end();
        }
    });
    let claviger = world.start(&format!(
        "{}{}{}on_echo = {on_echo:?}\n",
        world.base(),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    let mut client = claviger.connect(&world);
    upgrade(&mut client);
    assert_eq!(upstream.told(), "extensions offered: false");
    (claviger, upstream, world, client)
}

#[test]
fn the_key_in_websocket_messages_is_overwritten() {
    let (claviger, _upstream, world, mut client) = websocket("redact", |key| {
        let (before, after) = key.as_bytes().split_at(17);
        [
            [frame(0x81, b"hello"), frame(0x82, key.as_bytes())].concat(),
            [
                frame(0x01, before),
                frame(0x89, b"ping"),
                frame(0x80, after),
                frame(0x81, b"bye"),
            ]
            .concat(),
        ]
    });
    let key = std::fs::read(world.path("key")).expect("the key");
    let gone = b"redacted".repeat(key.len() / 8);
    let (before, after) = gone.split_at(17);
    for expected in [
        frame(0x81, b"hello"),
        frame(0x82, &gone),
        frame(0x01, before),
        frame(0x89, b"ping"),
        frame(0x80, after),
        frame(0x81, b"bye"),
    ] {
        assert_eq!(client.read_exact(expected.len()), expected);
    }
    drop(client);
    assert_eq!(claviger.audit_of("/ws")["scrubbed"], 2);
}

/// All that passes is the first message, and the header of the frame that does not; and the reset
/// may overtake them.
#[track_caller]
fn assert_at_most_hello(received: &[u8], header: [u8; 2]) {
    let most = [&frame(0x81, b"hello")[..], &header].concat();
    assert!(most.starts_with(received), "{received:?}");
}

#[test]
fn websocket_frames_that_cannot_be_looked_into_end_the_connection() {
    // A compressed message that nobody asked for.
    let (claviger, _upstream, _world, mut client) =
        websocket("redact", |_| [frame(0x81, b"hello"), frame(0xc1, b"\xf2H")]);
    assert_at_most_hello(&client.read_to_end(), [0, 0]);
    assert_eq!(
        claviger.audit_of("/ws")["reason"],
        "websocket_frames_malformed"
    );
}

#[test]
fn a_blocked_websocket_ends_before_the_key() {
    let (claviger, _upstream, _world, mut client) = websocket("block", |key| {
        [frame(0x81, b"hello"), frame(0x81, key.as_bytes())]
    });
    assert_at_most_hello(&client.read_to_end(), [0x81, 40]);
    assert_eq!(claviger.audit_of("/ws")["reason"], "key_echoed");
}

#[test]
fn a_blocking_route_answers_502_or_cuts() {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (claviger, _upstream, world) = site("block", None, move |peer, target, key| match target {
        "/head" => {
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nX-Key: {key}\r\nContent-Length: 0\r\n\r\n"
            ));
        }
        "/body" => {
            peer.answer(&text_with(key));
        }
        "/trailer" => {
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Key: {key}\r\n\r\n"
            ));
        }
        "/later" => {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nbegun\n\r\n");
            // Once the caller has the beginning.
            if gate.lock().expect("one connection").recv().is_ok() {
                peer.send(format!("{:x}\r\n{key}\r\n0\r\n\r\n", key.len()));
            }
        }
        _ => {
            peer.answer("fine");
        }
    });
    for path in ["/head", "/body", "/trailer"] {
        let answer = claviger.get(&world, path);
        answer.expect_own(502, "key_echoed");
        let record = claviger.audit_of(path);
        assert_eq!(record["scrubbed"], 1, "{record}");
        assert_eq!(record["refused_by"], "policy", "{record}");
    }
    let fine = curl(&claviger, &world, "/fine", &[])
        .finish()
        .expect_code(0);
    assert_eq!(fine.out_text(), "fine");
    // What is under way is cut, and does not look whole.
    let cut = curl(&claviger, &world, "/later", &[]);
    cut.out
        .wait("the beginning", |text| text.contains("begun").then_some(()));
    go.send(()).expect("the script waits");
    let cut = cut.finish();
    assert_eq!(cut.out_text(), "begun\n");
    assert!(!cut.err_text().is_empty(), "curl says nothing of the cut");
    assert_eq!(claviger.audit_of("/later")["reason"], "key_echoed");
}

#[test]
fn a_reporting_route_passes_the_answer_as_it_is() {
    // Not one of the world's keys: it does come through here, and the search would say so.
    let key = "reported-key-0123456789abcdef";
    let (claviger, _upstream, world) = site("report", Some(key), |peer, target, key| {
        if target == "/head" {
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nX-Key: {key}\r\nContent-Length: 0\r\n\r\n"
            ));
        } else {
            peer.answer(&text_with(key));
        }
    });
    assert_eq!(claviger.get(&world, "/head").field("x-key"), Some(key));
    let answer = claviger.get(&world, "/body");
    assert_eq!(answer.expect(200).text(), text_with(key));
    for path in ["/head", "/body"] {
        assert_eq!(claviger.audit_of(path)["scrubbed"], 1);
    }
}

const OTHER: &str = "other.example.com";

/// One API that sends everybody on to [`OTHER`], and gets its key in the target; and that other one. The keys
/// of both.
fn redirecting() -> (Claviger, [Scripted; 2], World, [String; 2]) {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let (other_key, other_file) = world.key_file("other");
    let first = Scripted::start(&world, HOST, |peer| {
        while let Some(head) = peer.head() {
            let target = head.split(' ').nth(1).unwrap_or_default();
            peer.send(format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: https://{OTHER}{target}\r\nContent-Length: 0\r\n\r\n"
            ));
            peer.tell(head);
        }
    });
    let second = Scripted::start(&world, OTHER, |peer| {
        while let Some(head) = peer.head() {
            peer.tell(head);
            peer.answer("followed");
        }
    });
    let route = |name: &str, host: &str, file: &std::path::Path, inject: &str| {
        format!(
            "[credential.{name}]\nsource = \"file://{}\"\n{inject}\n[[route]]\nname = {name:?}\nhost = {host:?}\nupstream = {name:?}\ncredential = {name:?}\ncallers = \"open\"\n",
            file.display()
        )
    };
    let claviger = world.start(&format!(
        "{}{}{}{}{}",
        world.base(),
        first.upstream("first", HOST),
        second.upstream("second", OTHER),
        route(
            "first",
            HOST,
            &key_file,
            "inject = \"query\"\nname = \"key\""
        ),
        route("second", OTHER, &other_file, "inject = \"bearer\""),
    ));
    (claviger, [first, second], world, [key, other_key])
}

/// The path and query of the redirect to [`OTHER`] that `/go?a=1` is answered with.
fn redirect_target(claviger: &Claviger, world: &World) -> String {
    let answer = claviger.get(world, "/go?a=1");
    let location = answer.expect(307).field("location").expect("a redirect");
    let target = location.strip_prefix(&format!("https://{OTHER}"));
    target.expect("to the other host").to_owned()
}

#[test]
fn a_redirect_to_another_host_carries_no_key() {
    let (claviger, [first, _second], world, [key, _]) = redirecting();
    let target = redirect_target(&claviger, &world);
    // The upstream did get it, and put it there.
    assert!(Leak::of(&key).search(first.told().as_bytes()).is_some());
    assert_eq!(target, "/go?key=redacted&a=1");
    assert_eq!(claviger.audit_of("/go")["scrubbed"], 1);
}

/// Who follows a redirect through us gets that route's own key, and none of the one that sent it there.
#[test]
fn a_followed_redirect_carries_no_key() {
    let (claviger, [_first, second], world, [key, other_key]) = redirecting();
    let target = redirect_target(&claviger, &world);
    let mut client = claviger.connect_as(&world, OTHER);
    assert_eq!(client.get(OTHER, &target).expect(200).text(), "followed");
    let received = second.told();
    assert!(received.contains(&format!("Authorization: Bearer {other_key}\r\n")));
    Leak::of(&key).assert_none("what the other API received", received.as_bytes());
}

/// An API that keeps what it was sent and shows it to whoever asks, with two keys and a route without one.
/// What is asked for is the path's last part.
fn keeping() -> (Claviger, Scripted, World, [String; 2]) {
    let world = World::new();
    let (first, first_file) = world.key_file("first");
    let (second, second_file) = world.key_file("second");
    let kept = Mutex::new(Vec::<String>::new());
    let upstream = Scripted::start(&world, HOST, move |peer| {
        while let Some(head) = peer.head() {
            let mut kept = kept.lock().expect("no panic");
            let key = |line: &str| Some(line.strip_prefix("Authorization: Bearer ")?.to_owned());
            kept.extend(head.lines().find_map(key));
            let text = kept.join(" and ");
            if target(&head).ends_with("/head") {
                peer.send(format!(
                    "HTTP/1.1 200 OK\r\nX-Kept: {text}\r\nContent-Length: 2\r\n\r\nok"
                ));
            } else {
                peer.answer(&format!("{text}, {}", STANDARD.encode(&text)));
            }
        }
    });
    let mut config = world.base() + &upstream.upstream("mock", HOST);
    for (name, file) in [("first", &first_file), ("second", &second_file)] {
        config += &format!(
            "[credential.{name}]\nsource = \"file://{}\"\ninject = \"bearer\"\n",
            file.display()
        );
    }
    for (name, credential) in [
        ("first", "credential = \"first\""),
        ("second", "credential = \"second\""),
        ("none", "credential = \"none\""),
    ] {
        config += &format!(
            "[[route]]\nname = {name:?}\nhost = {HOST:?}\npath = \"/{name}\"\nupstream = \"mock\"\n{credential}\ncallers = \"open\"\n"
        );
    }
    let claviger = world.start(&config);
    (claviger, upstream, world, [first, second])
}

/// Whoever may use one route does not get the key of another, although the API would show it.
#[test]
fn a_key_of_another_route_to_the_same_api_does_not_return() {
    let (claviger, _upstream, world, keys) = keeping();
    let mut client = claviger.connect(&world);
    client.get(HOST, "/first/store").expect(200);
    client.get(HOST, "/second/store").expect(200);
    for path in [
        "/second/head",
        "/second/body",
        "/none/head",
        "/none/body",
        "/first/body",
    ] {
        let answer = client.get(HOST, path);
        answer.expect(200);
        let shown = [&answer.head[..], &answer.body].concat();
        for key in &keys {
            Leak::of(key).assert_none(path, &shown);
        }
        assert!(String::from_utf8_lossy(&shown).contains("redacted"));
        let scrubbed = claviger.audit_of(path)["scrubbed"].as_u64();
        assert!(scrubbed >= Some(2), "{path}: {scrubbed:?}");
    }
}
