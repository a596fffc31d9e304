//! [`Table`]: finite state entropy (RFC 8878, section 4.1).

use super::bits::{Backward, Forward};

/// What each state stands for, and what follows it.
#[derive(Clone, Default)]
pub(super) struct Table {
    /// Bits of a state's number. The list has 2 to the power of it entries.
    log: u32,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    symbol: u8,
    /// Bits to be read for the next state, and what they are added to.
    bits: u8,
    base: u16,
}

/// A place in a table.
#[derive(Clone, Copy)]
pub(super) struct State(u16);

impl Table {
    /// One symbol, always, without any bits.
    pub(super) fn of_one(&mut self, symbol: u8) {
        self.log = 0;
        self.entries.clear();
        self.entries.push(Entry {
            symbol,
            ..Entry::default()
        });
    }

    /// Reads a table's description (RFC 8878, section 4.1.1), and returns how many bytes it took.
    pub(super) fn read(&mut self, bytes: &[u8], log_max: u32, symbol_max: u8) -> Option<usize> {
        let mut input = Forward::new(bytes);
        let log = input.peek(4) + 5;
        input.skip(4);
        if log > log_max {
            return None;
        }
        let mut shares = [0i16; 256];
        let mut count = 0;
        let mut left = (1i32 << log) + 1;
        let mut threshold = 1i32 << log;
        let mut bits = log + 1;
        while left > 1 {
            if count > usize::from(symbol_max) {
                return None;
            }
            // Values that are possible here have one bit less where that suffices.
            let short_max = 2 * threshold - 1 - left;
            let short = input.peek(bits - 1) as i32;
            let value = if short < short_max {
                input.skip(bits - 1);
                short
            } else {
                let long = input.peek(bits) as i32;
                input.skip(bits);
                if long >= threshold {
                    long - short_max
                } else {
                    long
                }
            };
            // 0 stands for a share of less than one state, which gets one.
            let share = value - 1;
            left -= share.abs();
            if left < 1 {
                return None;
            }
            shares[count] = share as i16;
            count += 1;
            if share == 0 {
                loop {
                    let zeros = input.peek(2) as usize;
                    input.skip(2);
                    count += zeros;
                    if count > usize::from(symbol_max) + 1 {
                        return None;
                    }
                    if zeros < 3 {
                        break;
                    }
                    // Behind the end there are zeros, so this ends.
                }
            }
            while left < threshold {
                bits -= 1;
                threshold >>= 1;
            }
        }
        let used = input.bytes_used()?;
        self.build(log, &shares[..count])?;
        Some(used)
    }

    /// Makes the table of these shares (RFC 8878, section 4.1.1): so many states of a symbol, or -1 for one that
    /// has less than a whole one.
    pub(super) fn build(&mut self, log: u32, shares: &[i16]) -> Option<()> {
        let size = 1usize << log;
        self.log = log;
        self.entries.clear();
        self.entries.resize(size, Entry::default());
        let mut next = [0u16; 256];
        let mut high = size;
        for (symbol, &share) in shares.iter().enumerate() {
            if share == -1 {
                high = high.checked_sub(1)?;
                self.entries[high].symbol = symbol as u8;
                next[symbol] = 1;
            } else {
                next[symbol] = u16::try_from(share).ok()?;
            }
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut place = 0;
        for (symbol, &share) in shares.iter().enumerate() {
            for _ in 0..share.max(0) {
                // Every place below `high` is passed once; more shares than places were refused.
                self.entries[place].symbol = symbol as u8;
                loop {
                    place = (place + step) & (size - 1);
                    if place < high {
                        break;
                    }
                }
            }
        }
        if place != 0 {
            return None;
        }
        for entry in &mut self.entries {
            let next = &mut next[usize::from(entry.symbol)];
            let bits = log - next.checked_ilog2()?;
            entry.bits = bits as u8;
            entry.base = ((u32::from(*next) << bits) - size as u32) as u16;
            *next += 1;
        }
        Some(())
    }

    /// Whether there is nothing in it yet.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// The first state.
    pub(super) fn begin(&self, input: &mut Backward<'_>) -> State {
        State(input.take(self.log) as u16)
    }

    /// What a state stands for.
    pub(super) fn symbol(&self, state: State) -> u8 {
        self.entries[usize::from(state.0)].symbol
    }

    /// The state that follows.
    pub(super) fn next(&self, state: State, input: &mut Backward<'_>) -> State {
        let entry = self.entries[usize::from(state.0)];
        State(entry.base + input.take(u32::from(entry.bits)) as u16)
    }

    /// Bits that [`next`](Self::next) reads.
    pub(super) fn bits(&self, state: State) -> u32 {
        u32::from(self.entries[usize::from(state.0)].bits)
    }
}
