//! The fuzz targets' bodies over their seeds and over seeded mutations of them.

use std::path::Path;

/// Mutations per seed file: as many as take a second or two of an unoptimised build.
const MUTATIONS: usize = 40;

/// A seed of another run's random numbers, as the failure printed it.
const SEED_VARIABLE: &str = "CLAVIGER_FUZZ_SEED";

#[test]
fn length() {
    check("record_length", super::length);
}

#[test]
fn open() {
    check("record_open", super::open);
}

#[test]
fn session() {
    check("session", super::session);
}

#[test]
fn handshake() {
    check("handshake", super::handshake);
}

fn check(target: &str, body: fn(&[u8])) {
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => std::process::id().into(),
    };
    println!("{SEED_VARIABLE}={seed}");
    let mut random = Random(seed);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(target);
    let mut seeds: Vec<_> = std::fs::read_dir(directory)
        .expect("the seeds are there")
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    // The order of a directory is not the same everywhere; a replay needs one.
    seeds.sort();
    assert!(seeds.len() >= 5, "{target} has seeds");
    body(b"");
    for path in seeds {
        println!("{}", path.display());
        let seed = std::fs::read(path).expect("readable");
        body(&seed);
        for _ in 0..MUTATIONS {
            let mutated = mutate(&seed, &mut random);
            println!("{mutated:02x?}");
            body(&mutated);
        }
    }
}

fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(12)).min(bytes.len());
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            3 => drop(bytes.drain(at..end)),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
    bytes
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
