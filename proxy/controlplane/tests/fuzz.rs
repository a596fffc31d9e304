//! The fuzz target `config` over its seeds and over seeded mutations of them.

#[path = "../../fuzz/src/config.rs"]
mod body;

use std::path::Path;

/// Mutations per seed file: as many as take a second or two of an unoptimised build.
const MUTATIONS: usize = 100;

/// A seed of another run's random numbers, as the failure printed it.
const SEED_VARIABLE: &str = "CLAVIGER_FUZZ_SEED";

/// What means something in a configuration.
const DICTIONARY: &[&str] = &[
    "\"",
    "'",
    "\"\"\"",
    "\\",
    "\n",
    "=",
    "[",
    "]",
    "{",
    "}",
    ",",
    ".",
    "#",
    "://",
    "*",
    "-1",
    "99999999999999999999",
    "1h",
    "true",
    "[[route]]\n",
    "[server]\n",
    "[upstream.a]\n",
    "credential = \"",
    "host = \"*.example.com\"\n",
    "preset = \"stripe\"\n",
    "path = \"/%2e%2e/\"\n",
    "callers = [\"10.0.0.0/33\"]\n",
    "file://",
    "env://A",
    "\u{e9}",
    "\u{0}",
];

#[test]
fn seeds_and_mutations_hold_every_property() {
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => std::process::id().into(),
    };
    println!("{SEED_VARIABLE}={seed}");
    let mut random = Random(seed);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/config");
    let mut seeds: Vec<_> = std::fs::read_dir(directory)
        .expect("the seeds are there")
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    // The order of a directory is not the same everywhere; a replay needs one.
    seeds.sort();
    assert!(seeds.len() >= 5);
    body::config(b"");
    for path in seeds {
        println!("{}", path.display());
        let seed = std::fs::read(path).expect("readable");
        body::config(&seed);
        for _ in 0..MUTATIONS {
            let mutated = mutate(&seed, &mut random);
            println!("{}", mutated.escape_ascii());
            body::config(&mutated);
        }
    }
}

fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(20)).min(bytes.len());
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            1 => {
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            2 => drop(bytes.drain(at..end)),
            _ => {
                let word = DICTIONARY[random.below(DICTIONARY.len())];
                bytes.splice(at..at, word.bytes());
            }
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
