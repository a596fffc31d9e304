//! [`Samples`]: where in a text a hit may be, told by a few bytes of every so many.
//!
//! A hit is at least as long as the shortest needle, so of blocks of four bytes that stand one such
//! length less three apart, one lies wholly inside of it, and inside of its first [`Samples::window`]
//! bytes. There it can be only
//!
//! - four characters of a needle in a row, none of them escaped: [`Samples::places_of`], or
//! - something that an escape has a part in, so that an escape begins in the block or at most
//!   [`ESCAPE_BYTES_MAX`] - 1 bytes before it: [`is_near_escape`].
//!
//! Both are asked only where the block's two pairs of bytes may stand in a hit at all, which a map of
//! all pairs knows. In random bytes one block of several hundred passes it.
//!
//! It lacks the comparison with a needle: what it says is "nothing here", or "look".

use zeroize::{DefaultIsZeroes, Zeroizing};

#[cfg(doc)]
use super::escape::ESCAPE_BYTES_MAX;
use super::escape::{self, INTRODUCERS};

/// What of the needles their beginnings' blocks tell. Overwritten when dropped: it tells the needles.
pub(super) struct Samples {
    /// How far apart samples stand: [`window`](Self::window) less three.
    stride: usize,
    /// A bit for each pair of bytes: whether they may stand next to each other among the first bytes of
    /// a hit, or begin an escape in it.
    pairs: Zeroizing<Vec<u64>>,
    /// A bit for each [`Block::hash`]: whether `places` may have the block.
    blocks: Zeroizing<Vec<u64>>,
    /// Where each block of a needle's beginning stands, in the order of blocks.
    places: Zeroizing<Vec<Place>>,
}

/// Where a block stands in a needle.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    block: Block,
    /// Which needle.
    pub(super) needle: u32,
    /// How many of its bytes stand before the block.
    pub(super) before: u32,
}

impl DefaultIsZeroes for Place {}

impl Samples {
    /// Of needles of at least [`BLOCK_BYTES`] each; `disguised` are those with which any character may be
    /// escaped.
    pub(super) fn of<'n>(
        needles: &'n [Zeroizing<Vec<u8>>],
        disguised: impl Iterator<Item = &'n [u8]>,
    ) -> Self {
        let shortest = needles.iter().map(|needle| needle.len()).min();
        let window = shortest.unwrap_or(BLOCK_BYTES).min(WINDOW_BYTES_MAX);
        let mut samples = Self {
            stride: window + 1 - BLOCK_BYTES,
            pairs: Zeroizing::new(vec![0; MAP_WORDS]),
            blocks: Zeroizing::new(vec![0; MAP_WORDS]),
            // All of it at once: a vector that grows leaves copies behind.
            places: Zeroizing::new(Vec::with_capacity(
                needles.len() * (window + 1 - BLOCK_BYTES),
            )),
        };
        let beginnings = needles.iter().map(|needle| &needle[..window]);
        for pair in beginnings.clone().flat_map(|needle| needle.windows(2)) {
            samples.allow(pair[0], pair[1]);
        }
        for needle in disguised {
            samples.allow_escapes(&needle[..window]);
            // An escape that comes later is not what a sample is of, but it is asked for.
            for &character in needle {
                escape::spellings(character, |spelling| {
                    samples.allow(spelling[0], spelling[1])
                });
            }
        }
        for (index, needle) in beginnings.enumerate() {
            for (before, block) in needle.windows(BLOCK_BYTES).enumerate() {
                let block = Block([block[0], block[1], block[2], block[3]]);
                let (word, bit) = bit_of(block.hash());
                samples.blocks[word] |= bit;
                samples.places.push(Place {
                    block,
                    needle: index as u32,
                    before: before as u32,
                });
            }
        }
        samples.places.sort_unstable_by_key(|place| place.block);
        samples
    }

    fn allow(&mut self, first: u8, second: u8) {
        let (word, bit) = bit_of(pair(first, second));
        self.pairs[word] |= bit;
    }

    /// Allows what stands in and around the escapes of these characters.
    fn allow_escapes(&mut self, needle: &[u8]) {
        for (at, &character) in needle.iter().enumerate() {
            let next = needle.get(at + 1).copied();
            let next: Vec<u8> = next.into_iter().chain(INTRODUCERS).collect();
            for &introducer in &INTRODUCERS {
                self.allow(character, introducer);
            }
            escape::spellings(character, |spelling| {
                for pair in spelling.windows(2) {
                    self.allow(pair[0], pair[1]);
                }
                for &next in &next {
                    self.allow(spelling[spelling.len() - 1], next);
                }
            });
        }
    }

    /// Whether these may stand next to each other among the first bytes of a hit, or begin an escape in it.
    #[inline]
    pub(super) fn may_be_neighbours(&self, first: u8, second: u8) -> bool {
        let (word, bit) = bit_of(pair(first, second));
        self.pairs[word] & bit != 0
    }

    /// How far before a sample a hit may begin that this sample is the first one in: so many bytes at
    /// most, less one.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Where the next sample stands, at `from` or behind it, that a hit may stand around. Called with
    /// what it returned plus [`stride`](Self::stride), it misses none.
    #[inline]
    pub(super) fn next(&self, hay: &[u8], from: usize) -> Option<usize> {
        // Made once: the maps' lengths are then known to be what a number of 16 bits gives.
        let pairs: &[u64; MAP_WORDS] = self.pairs[..].try_into().ok()?;
        let blocks: &[u64; MAP_WORDS] = self.blocks[..].try_into().ok()?;
        let has = |map: &[u64; MAP_WORDS], number| {
            let (word, bit) = bit_of(number);
            map[word] & bit != 0
        };
        let mut at = from;
        while let Some(&[a, b, c, d]) = hay.get(at..at + BLOCK_BYTES) {
            if has(pairs, pair(a, b))
                && has(pairs, pair(c, d))
                && (has(blocks, Block([a, b, c, d]).hash()) || is_near_escape(hay, at))
            {
                return Some(at);
            }
            at += self.stride;
        }
        None
    }

    /// Where in needles the block stands that stands at `at`.
    pub(super) fn places_at(&self, hay: &[u8], at: usize) -> impl Iterator<Item = Place> {
        let block = Block([hay[at], hay[at + 1], hay[at + 2], hay[at + 3]]);
        let first = self.places.partition_point(|place| place.block < block);
        let places = self.places[first..].iter().copied();
        places.take_while(move |place| place.block == block)
    }
}

/// Four bytes in a row.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Block([u8; BLOCK_BYTES]);

impl Block {
    /// Blocks that share one are told apart by their places.
    #[inline]
    fn hash(self) -> u16 {
        // Knuth's multiplicative hash: the upper bits depend on all of the block's.
        let mixed = u32::from_le_bytes(self.0).wrapping_mul(0x9e37_79b1);
        (mixed >> 16) as u16
    }
}

#[inline]
fn pair(first: u8, second: u8) -> u16 {
    u16::from_le_bytes([first, second])
}

/// Where in a map of 65,536 bits this one stands.
#[inline]
fn bit_of(number: u16) -> (usize, u64) {
    (usize::from(number) / 64, 1 << (number % 64))
}

/// Whether something that could begin an escape stands in the block at `at`, or so shortly before it that
/// the escape reaches into it.
#[inline]
fn is_near_escape(hay: &[u8], at: usize) -> bool {
    // Eight bytes at once, and the one before them.
    let eight: Option<&[u8; 8]> = hay
        .get(at.wrapping_sub(BLOCK_BYTES)..at + BLOCK_BYTES)
        .and_then(|around| around.try_into().ok());
    match eight {
        Some(&eight) => {
            let word = u64::from_le_bytes(eight);
            let [percent, backslash, ampersand] = INTRODUCERS;
            // One branch for all three.
            has_byte(word, percent) | has_byte(word, backslash) | has_byte(word, ampersand)
                || at > BLOCK_BYTES && is_introducer(&hay[at - BLOCK_BYTES - 1])
        }
        None => hay[..at + BLOCK_BYTES].iter().any(is_introducer),
    }
}

/// Whether one of the word's bytes is this one.
#[inline]
fn has_byte(word: u64, byte: u8) -> bool {
    const LOW: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = u64::from_le_bytes([0x80; 8]);
    // A byte that was equal is zero now, and only a zero borrows past its own upper bit first.
    let word = word ^ (LOW * u64::from(byte));
    word.wrapping_sub(LOW) & !word & HIGH != 0
}

#[inline]
fn is_introducer(byte: &u8) -> bool {
    INTRODUCERS.contains(byte)
}

/// Bytes of a sample: as many as the shortest needle there is.
pub(super) const BLOCK_BYTES: usize = 4;

/// Bytes of a needle by which it is looked for; longer ones are compared whole when these are found.
/// Beyond this, samples that stand farther apart gain little, and the tables of blocks would grow.
const WINDOW_BYTES_MAX: usize = 64;

/// A map of 65,536 bits: 8 KiB, so both stay in a core's first-level cache. A key of 40 characters sets one
/// in eighty bits of the map of blocks.
const MAP_WORDS: usize = 65_536 / 64;
