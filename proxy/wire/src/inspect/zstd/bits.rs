//! Bits in the two orders in which zstd has them.

/// Reads from the front, each byte's low bits first.
pub(super) struct Forward<'a> {
    bytes: &'a [u8],
    /// Bits that were read.
    at: usize,
}

impl<'a> Forward<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `count` bits, at most 16, without taking them. Behind the end there are zeros.
    pub(super) fn peek(&self, count: u32) -> u32 {
        let mut window = [0; 4];
        let rest = self.bytes.get(self.at / 8..).unwrap_or_default();
        let n = rest.len().min(4);
        window[..n].copy_from_slice(&rest[..n]);
        (u32::from_le_bytes(window) >> (self.at % 8)) & ((1 << count) - 1)
    }

    pub(super) fn skip(&mut self, count: u32) {
        self.at += count as usize;
    }

    /// Bytes that were begun; `None` if there are not so many.
    pub(super) fn bytes_used(&self) -> Option<usize> {
        let used = self.at.div_ceil(8);
        (used <= self.bytes.len()).then_some(used)
    }
}

/// Reads from the back, each byte's high bits first, behind the highest bit that is set: that marks
/// the beginning.
pub(super) struct Backward<'a> {
    bytes: &'a [u8],
    /// Bits that are left; below zero, so many were read that are not there.
    left: isize,
}

impl<'a> Backward<'a> {
    /// `None` without the mark.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let last = *bytes.last()?;
        let left = (bytes.len() * 8).checked_sub(last.leading_zeros() as usize + 1)?;
        (last != 0).then_some(Self {
            bytes,
            left: left as isize,
        })
    }

    /// Bits that are left, or below zero how many too many were taken.
    pub(super) fn left(&self) -> isize {
        self.left
    }

    /// The next `count` bits, at most [`PEEK_BITS_MAX`], without taking them. Where there are fewer, zeros
    /// follow.
    pub(super) fn peek(&self, count: u32) -> u64 {
        let mask = (1u64 << count) - 1;
        let Ok(from) = usize::try_from(self.left - count as isize) else {
            let Ok(left) = u32::try_from(self.left) else {
                return 0;
            };
            return (load(self.bytes, 0) & ((1u64 << left) - 1)) << (count - left);
        };
        (load(self.bytes, from / 8) >> (from % 8)) & mask
    }

    pub(super) fn skip(&mut self, count: u32) {
        self.left -= count as isize;
    }

    pub(super) fn take(&mut self, count: u32) -> u64 {
        let bits = self.peek(count);
        self.skip(count);
        bits
    }
}

/// Eight bytes from `at` on, zeros behind the end.
fn load(bytes: &[u8], at: usize) -> u64 {
    if let Some(eight) = bytes.get(at..at + 8) {
        return u64::from_le_bytes(eight.try_into().expect("eight"));
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let mut eight = [0; 8];
    eight[..rest.len()].copy_from_slice(rest);
    u64::from_le_bytes(eight)
}

/// Bits that can be looked at together: eight bytes, less those of the first that were read.
pub(super) const PEEK_BITS_MAX: u32 = 56;
