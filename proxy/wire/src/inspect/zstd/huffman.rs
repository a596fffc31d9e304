//! [`Literals`]: the characters of a block that are not repeated from before (RFC 8878, sections
//! 3.1.1.3.1 and 4.2).

use zeroize::Zeroizing;

use super::BLOCK_BYTES_MAX;
use super::bits::{Backward, PEEK_BITS_MAX};
use super::fse;

/// Literals of one block, and what the next one may need.
pub(super) struct Literals {
    text: Zeroizing<Vec<u8>>,
    /// The last one of this frame; empty if there was none.
    tree: Tree,
    /// For weights.
    table: fse::Table,
}

/// A Huffman code, as a table of everything that may come next.
#[derive(Default)]
struct Tree {
    /// Of the longest code.
    bits_max: u32,
    /// By so many bits: the character, and how many of them are its code.
    entries: Vec<(u8, u8)>,
}

impl Literals {
    pub(super) fn new() -> Self {
        Self {
            text: Zeroizing::default(),
            tree: Tree::default(),
            table: fse::Table::default(),
        }
    }

    /// A frame knows nothing of the one before.
    pub(super) fn begin_frame(&mut self) {
        self.tree.entries.clear();
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Reads the section at the front of a block, and returns how many bytes it has.
    pub(super) fn read(&mut self, block: &[u8]) -> Option<usize> {
        self.text.clear();
        if self.text.capacity() == 0 {
            // Once and for all: a Vec that grows leaves what it held in memory behind it.
            self.text.reserve_exact(BLOCK_BYTES_MAX);
        }
        let first = *block.first()?;
        let number = |bytes: usize| -> Option<u64> {
            let mut eight = [0; 8];
            eight[..bytes].copy_from_slice(block.get(..bytes)?);
            Some(u64::from_le_bytes(eight))
        };
        let format = (first >> 2) & 3;
        if first & 2 == 0 {
            let (header, length) = match format {
                0 | 2 => (1, number(1)? >> 3),
                1 => (2, number(2)? >> 4),
                _ => (3, number(3)? >> 4),
            };
            let length = usize::try_from(length).ok()?;
            if length > BLOCK_BYTES_MAX {
                return None;
            }
            return if first & 1 == 0 {
                let end = header + length;
                self.text.extend_from_slice(block.get(header..end)?);
                Some(end)
            } else {
                self.text.resize(length, *block.get(header)?);
                Some(header + 1)
            };
        }
        let (header, size_bits) = match format {
            0 | 1 => (3, 10),
            2 => (4, 14),
            _ => (5, 18),
        };
        let sizes = number(header)? >> 4;
        let mask = (1u64 << size_bits) - 1;
        let length = (sizes & mask) as usize;
        let coded = (sizes >> size_bits & mask) as usize;
        if length > BLOCK_BYTES_MAX {
            return None;
        }
        let end = header + coded;
        let mut section = block.get(header..end)?;
        if first & 1 == 0 {
            let used = self.tree.read(section, &mut self.table)?;
            section = &section[used..];
        } else if self.tree.entries.is_empty() {
            return None;
        }
        if format == 0 {
            self.tree.decode(section, length, &mut self.text)?;
            return Some(end);
        }
        // Four streams; the lengths of the first three stand in front.
        let (lengths, mut streams) = section.split_at_checked(6)?;
        let each = length.div_ceil(4);
        for length_bytes in lengths.chunks_exact(2) {
            let bytes = usize::from(u16::from_le_bytes([length_bytes[0], length_bytes[1]]));
            let (stream, rest) = streams.split_at_checked(bytes)?;
            self.tree.decode(stream, each, &mut self.text)?;
            streams = rest;
        }
        let left = length.checked_sub(3 * each)?;
        self.tree.decode(streams, left, &mut self.text)?;
        Some(end)
    }
}

impl Tree {
    /// Reads a description (RFC 8878, section 4.2.1), and returns how many bytes it took.
    fn read(&mut self, section: &[u8], table: &mut fse::Table) -> Option<usize> {
        let (&first, rest) = section.split_first()?;
        let mut weights = [0u8; 256];
        let (count, used) = if first < 128 {
            let coded = rest.get(..usize::from(first))?;
            (read_weights(coded, table, &mut weights)?, 1 + coded.len())
        } else {
            let count = usize::from(first) - 127;
            let coded = rest.get(..count.div_ceil(2))?;
            for (at, weight) in weights[..count].iter_mut().enumerate() {
                *weight = if at % 2 == 0 {
                    coded[at / 2] >> 4
                } else {
                    coded[at / 2] & 0xf
                };
            }
            (count, 1 + coded.len())
        };
        self.build(&mut weights, count)?;
        Some(used)
    }

    /// Makes the code of these weights, and of the last one, which is what the others leave.
    fn build(&mut self, weights: &mut [u8; 256], count: usize) -> Option<()> {
        self.entries.clear();
        let share = |weight: u8| (1u32 << weight) >> 1;
        if weights[..count]
            .iter()
            .any(|&weight| u32::from(weight) > BITS_MAX)
        {
            return None;
        }
        let sum: u32 = weights[..count].iter().map(|&weight| share(weight)).sum();
        let bits_max = sum.checked_ilog2()? + 1;
        let left = (1 << bits_max) - sum;
        if bits_max > BITS_MAX || !left.is_power_of_two() {
            return None;
        }
        *weights.get_mut(count)? = left.ilog2() as u8 + 1;
        self.bits_max = bits_max;
        for weight in 1..=bits_max as u8 {
            for (character, _) in
                (weights[..=count].iter().enumerate()).filter(|&(_, &other)| other == weight)
            {
                let bits = bits_max as u8 + 1 - weight;
                let end = self.entries.len() + share(weight) as usize;
                self.entries.resize(end, (character as u8, bits));
            }
        }
        Some(())
    }

    /// Appends the `length` characters that a stream holds, to its last bit.
    fn decode(&self, stream: &[u8], length: usize, text: &mut Vec<u8>) -> Option<()> {
        let mut input = Backward::new(stream)?;
        let entries = &self.entries[..];
        let mut left = length;
        let together = PEEK_BITS_MAX / self.bits_max;
        while left >= together as usize && input.left() >= PEEK_BITS_MAX as isize {
            let bits = input.peek(PEEK_BITS_MAX);
            let mut unread = PEEK_BITS_MAX;
            for _ in 0..together {
                let at = (bits >> (unread - self.bits_max)) as usize & (entries.len() - 1);
                let (character, length) = entries[at];
                text.push(character);
                unread -= u32::from(length);
            }
            input.skip(PEEK_BITS_MAX - unread);
            left -= together as usize;
        }
        for _ in 0..left {
            let (character, length) = entries[input.peek(self.bits_max) as usize];
            text.push(character);
            input.skip(u32::from(length));
        }
        (input.left() == 0).then_some(())
    }
}

/// Reads weights that are coded themselves, by two states in turn, until there are no bits left
/// (RFC 8878, section 4.2.1.2).
fn read_weights(coded: &[u8], table: &mut fse::Table, weights: &mut [u8; 256]) -> Option<usize> {
    let used = table.read(coded, WEIGHT_LOG_MAX, BITS_MAX as u8 + 1)?;
    let mut input = Backward::new(&coded[used..])?;
    let mut states = [table.begin(&mut input), table.begin(&mut input)];
    if input.left() < 0 {
        return None;
    }
    let mut count = 0;
    loop {
        let state = &mut states[count % 2];
        // The last character's weight is not written, so there are 255 at most.
        if count >= 254 {
            return None;
        }
        weights[count] = table.symbol(*state);
        let enough = input.left() >= table.bits(*state) as isize;
        *state = table.next(*state, &mut input);
        count += 1;
        if !enough {
            weights[count] = table.symbol(states[count % 2]);
            return Some(count + 1);
        }
    }
}

/// Of a code (RFC 8878, section 4.2.1).
const BITS_MAX: u32 = 11;

/// Of the table of weights (RFC 8878, section 4.2.1.2).
const WEIGHT_LOG_MAX: u32 = 6;
