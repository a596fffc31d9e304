//! The fuzz targets' bodies over their seeds and over seeded mutations of them, so that an ordinary
//! `cargo test` exercises what a fuzzing run starts from.

use std::path::Path;

use crate::bodies;
use crate::rng::Rng;

type Body = fn(&[u8]);

/// Mutations per seed file.
const MUTATIONS: usize = 300;

/// Pieces that matter to these parsers more than random bytes do.
const DICTIONARY: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b"\t",
    b" ",
    b":",
    b",",
    b";",
    b"&",
    b"?",
    b"#",
    b"%",
    b"%2e",
    b"%2F",
    b"/../",
    b"//",
    b"*",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"http://a.example",
    b"Host: a\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close, x\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"transfer_encoding: x\r\n",
    b"claviger-id: x\r\n",
    b"Cookie: a\r\n",
    b"key=1",
    b"k%65y=2",
    b"access_token=3",
    b"the-real-key",
    b"the-real-key/+16",
    b"dGhlLXJlYWwta2V5LysxNg==",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b";ext=1",
    b"ffffffffffffffff",
    b"\x80",
];

#[test]
fn seeds_and_mutations_hold_every_property() {
    let targets: [(&str, Body); 10] = [
        ("head", bodies::head),
        ("framing", bodies::framing),
        ("chunked", bodies::chunked),
        ("rewrite", bodies::rewrite),
        ("target", bodies::target),
        ("inspect", bodies::inspect),
        ("search", bodies::search),
        ("sieve", bodies::sieve),
        ("frames", bodies::frames),
        ("proxy_header", bodies::proxy_header),
    ];
    let mut rng = Rng::from_env("corpus");
    for (name, body) in targets {
        let seeds = seeds(name);
        assert!(seeds.len() >= 5, "{name} has seeds");
        body(b"");
        for (path, seed) in &seeds {
            println!("{name}: {path}");
            body(seed);
            for _ in 0..MUTATIONS {
                let mutated = mutate(seed, &seeds, &mut rng);
                println!("{name}: {:?}", String::from_utf8_lossy(&mutated));
                body(&mutated);
            }
        }
    }
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(target);
    let mut seeds: Vec<(String, Vec<u8>)> = std::fs::read_dir(&directory)
        .expect("the seeds are there")
        .map(|entry| {
            let path = entry.expect("a directory entry").path();
            (
                path.display().to_string(),
                std::fs::read(&path).expect("a readable seed"),
            )
        })
        .collect();
    // The order of a directory is not the same everywhere; a replayed seed needs one.
    seeds.sort();
    seeds
}

fn mutate(seed: &[u8], seeds: &[(String, Vec<u8>)], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        match rng.below(6) {
            0 if at < bytes.len() => bytes[at] = rng.next() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 => {
                bytes.splice(at..at, rng.pick(DICTIONARY).iter().copied());
            }
            3 => {
                let end = (at + rng.below(12)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + rng.below(30)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = rng.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            _ => {
                let (_, other) = &seeds[rng.below(seeds.len())];
                let from = rng.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}
