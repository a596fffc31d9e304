//! [`Sequences`]: what of a block is repeated from before (RFC 8878, sections 3.1.1.3.2 and 3.1.1.4).

use super::bits::Backward;
use super::fse::Table;

/// Some literals, and then a repetition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    /// How many literals.
    pub(super) literals: usize,
    /// How far back the repetition begins, at least 1.
    pub(super) offset: usize,
    /// How long it is.
    pub(super) length: usize,
}

/// What one block's sequences may leave to the next one's.
pub(super) struct Sequences {
    /// For the numbers of literals, offsets, and the lengths of repetitions.
    tables: [Table; 3],
    /// The tables that are used where nothing is said.
    usual: [Table; 3],
    /// The last three offsets.
    recent: [u32; 3],
}

impl Sequences {
    pub(super) fn new() -> Self {
        let mut usual = [Table::default(), Table::default(), Table::default()];
        for (table, code) in usual.iter_mut().zip(&CODES) {
            // Constant shares, and a test builds them.
            let _ = table.build(code.usual_log, code.usual);
        }
        Self {
            tables: Default::default(),
            usual,
            recent: RECENT,
        }
    }

    /// A frame knows nothing of the one before.
    pub(super) fn begin_frame(&mut self) {
        self.tables.iter_mut().for_each(Table::clear);
        self.recent = RECENT;
    }

    /// Reads the section, which is the rest of its block, and hands out each sequence; `None` from there
    /// ends it.
    pub(super) fn read(
        &mut self,
        section: &[u8],
        mut take: impl FnMut(Sequence) -> Option<()>,
    ) -> Option<()> {
        let (count, rest) = match *section {
            [0] => return Some(()),
            [0, ..] => return None,
            [low @ ..128, ref rest @ ..] => (usize::from(low), rest),
            [255, low, high, ref rest @ ..] => {
                let count = u16::from_le_bytes([low, high]);
                (usize::from(count) + 0x7f00, rest)
            }
            [high @ ..=254, low, ref rest @ ..] => {
                (usize::from(u16::from_be_bytes([high - 128, low])), rest)
            }
            _ => return None,
        };
        let (&modes, mut rest) = rest.split_first()?;
        if modes & 3 != 0 {
            return None;
        }
        for (number, code) in CODES.iter().enumerate() {
            let used = self.table(number, code, modes >> (6 - 2 * number) & 3, rest)?;
            rest = &rest[used..];
        }
        let Self { tables, recent, .. } = self;
        let [literal_table, offset_table, length_table] = &*tables;
        let mut input = Backward::new(rest)?;
        let mut literals = literal_table.begin(&mut input);
        let mut offset = offset_table.begin(&mut input);
        let mut length = length_table.begin(&mut input);
        for left in (0..count).rev() {
            let offset_code = u32::from(offset_table.symbol(offset));
            let offset_value = (1u64 << offset_code) + input.take(offset_code);
            let (base, bits) = LENGTHS[usize::from(length_table.symbol(length))];
            let match_length = base + input.take(u32::from(bits)) as u32;
            let (base, bits) = LITERALS[usize::from(literal_table.symbol(literals))];
            let literal_length = base + input.take(u32::from(bits)) as u32;
            let value = u32::try_from(offset_value).ok()?;
            let far = offset_of(recent, value, literal_length == 0)?;
            if left > 0 {
                literals = literal_table.next(literals, &mut input);
                length = length_table.next(length, &mut input);
                offset = offset_table.next(offset, &mut input);
            }
            if input.left() < 0 {
                return None;
            }
            take(Sequence {
                literals: literal_length as usize,
                offset: far as usize,
                length: match_length as usize,
            })?;
        }
        (input.left() == 0).then_some(())
    }

    /// Readies one table, and returns how many bytes that took.
    fn table(&mut self, number: usize, code: &Code, mode: u8, bytes: &[u8]) -> Option<usize> {
        let table = &mut self.tables[number];
        match mode {
            0 => {
                table.clone_from(&self.usual[number]);
                Some(0)
            }
            1 => {
                let symbol = *bytes.first()?;
                if symbol > code.symbol_max {
                    return None;
                }
                table.of_one(symbol);
                Some(1)
            }
            2 => table.read(bytes, code.log_max, code.symbol_max),
            // As in the block before.
            _ => (!table.is_empty()).then_some(0),
        }
    }
}

/// The offset that a value stands for (RFC 8878, section 3.1.1.5).
fn offset_of(recent: &mut [u32; 3], value: u32, without_literals: bool) -> Option<u32> {
    let [first, second, third] = *recent;
    let (offset, now) = match value + u32::from(without_literals) {
        _ if value > 3 => (value - 3, [value - 3, first, second]),
        1 => (first, *recent),
        2 => (second, [second, first, third]),
        3 => (third, [third, first, second]),
        _ => (first - 1, [first - 1, first, second]),
    };
    *recent = now;
    (offset > 0).then_some(offset)
}

/// How one of the three kinds of numbers is coded.
struct Code {
    log_max: u32,
    symbol_max: u8,
    usual_log: u32,
    usual: &'static [i16],
}

// RFC 8878, sections 3.1.1.3.2.1.1 and 3.1.1.3.2.2.
const CODES: [Code; 3] = [
    Code {
        log_max: 9,
        symbol_max: 35,
        usual_log: 6,
        usual: &[
            4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1,
            1, 1, 1, -1, -1, -1, -1,
        ],
    },
    Code {
        log_max: 8,
        symbol_max: OFFSET_CODE_MAX,
        usual_log: 5,
        usual: &[
            1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1,
            -1,
        ],
    },
    Code {
        log_max: 9,
        symbol_max: 52,
        usual_log: 6,
        usual: &[
            1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
            1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
        ],
    },
];

/// No window that is allowed here needs more bits; the format has up to 31.
const OFFSET_CODE_MAX: u8 = 31;

/// The last offsets of a text that has none (RFC 8878, section 3.1.1.5).
const RECENT: [u32; 3] = [1, 4, 8];

/// By code: what is added to how many bits. RFC 8878, section 3.1.1.3.2.1.1.
const LITERALS: [(u32, u8); 36] = numbers(
    0,
    16,
    &[
        1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ],
);

/// The same for repetitions.
const LENGTHS: [(u32, u8); 53] = numbers(
    3,
    32,
    &[
        1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ],
);

/// Codes up to `plain` stand for themselves and `first`; each behind them begins where the one before ends.
const fn numbers<const N: usize>(first: u32, plain: usize, bits: &[u8]) -> [(u32, u8); N] {
    let mut numbers = [(0, 0); N];
    let (mut at, mut base) = (0, first);
    while at < N {
        let bits = if at < plain { 0 } else { bits[at - plain] };
        numbers[at] = (base, bits);
        base += 1 << bits;
        at += 1;
    }
    numbers
}
