//! [`Canaries`]: made-up secrets, and the search for them in whatever came out.
//!
//! The search works the other way round than the one in `wire::scrub`, which is
//! under test: that one writes a key in every form and looks for the forms; this
//! one undoes every encoding that it finds in the text, up to [`LAYERS`] of them on
//! top of each other, and looks for the canary itself. They share no line and no
//! idea, so that what one is blind to is not invisible to the other.
//!
//! What it deliberately lacks: decompression, decryption, and a text that was taken
//! apart on purpose. See "limits" in the report.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};

use memchr::memmem::Finder;

/// Bytes of a piece. A canary is several of them, each of which is recognised by
/// itself, so that a part of a canary is found too: any run of twice this length
/// holds a whole one.
const PIECE_BYTES: usize = 12;

/// Pieces of a canary.
const PIECES: usize = 4;

/// The first bytes of each piece, the same within one proof: what the eye of the
/// search catches on. The rest is random.
const TAG_BYTES: usize = 4;

/// Encodings on top of each other that are undone: percent-encoded JSON in base64.
/// What is wrapped more often is not seen.
const LAYERS: usize = 4;

/// Bytes on both sides of an escape that are looked at with it.
const SURROUNDINGS: usize = 256;

/// Digits of the shortest run that is read as hexadecimal: half a piece's worth is
/// left out.
const HEX_RUN_MIN: usize = 2 * PIECE_BYTES;

/// Letters of the shortest run that is read as base64.
const BASE64_RUN_MIN: usize = PIECE_BYTES * 4 / 3;

/// Bytes of a large file that are searched at a time.
const WINDOW_BYTES: usize = 4 << 20;

/// What the rest of a piece is made of: what every slot takes, and what encodings
/// treat differently.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// All canaries of one proof.
#[derive(Debug)]
pub struct Canaries {
    tag: Finder<'static>,
    slots: Vec<String>,
    texts: Vec<String>,
    pieces: HashMap<[u8; PIECE_BYTES], usize>,
    /// Of secrets that cannot be chosen, and so carry no tag.
    untagged: Vec<(Finder<'static>, usize)>,
}

/// Where a canary was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// What had to be undone to see it: `raw`, `base64`, `percent in base64`.
    pub form: String,
    /// The byte of the undone text.
    pub at: usize,
    /// How many pieces, over all forms.
    pub pieces: usize,
}

/// What a search found, by canary.
pub type Found = BTreeMap<usize, Sighting>;

impl Canaries {
    /// None yet.
    ///
    /// # Errors
    /// No random numbers.
    pub fn new() -> io::Result<Self> {
        let mut tag = random_text(TAG_BYTES)?;
        // In each piece, one of each that encodings treat differently.
        tag.replace_range(1..3, "/+");
        // A letter first: `file://` and a slash is the path of a file, which errors
        // name, and `//a:5/` a host, a port and a path, which the audit trail does.
        let first = tag.remove(0);
        tag.insert(
            0,
            if first.is_ascii_alphabetic() {
                first
            } else {
                'x'
            },
        );
        Ok(Self {
            tag: Finder::new(tag.as_bytes()).into_owned(),
            slots: Vec::new(),
            texts: Vec::new(),
            pieces: HashMap::new(),
            untagged: Vec::new(),
        })
    }

    /// Makes a canary for a slot.
    ///
    /// # Errors
    /// No random numbers.
    pub fn plant(&mut self, slot: impl Into<String>) -> io::Result<usize> {
        let id = self.slots.len();
        let mut text = String::new();
        for _ in 0..PIECES {
            let mut piece = [0; PIECE_BYTES];
            piece[..TAG_BYTES].copy_from_slice(self.tag.needle());
            piece[TAG_BYTES..].copy_from_slice(random_text(PIECE_BYTES - TAG_BYTES)?.as_bytes());
            text.push_str(&String::from_utf8_lossy(&piece));
            self.pieces.insert(piece, id);
        }
        self.slots.push(slot.into());
        self.texts.push(text);
        Ok(id)
    }

    /// Takes a secret that others made, such as a private key, for a canary.
    pub fn adopt(&mut self, slot: impl Into<String>, secret: &[u8]) -> usize {
        let id = self.slots.len();
        for piece in secret.chunks_exact(PIECE_BYTES) {
            self.untagged.push((Finder::new(piece).into_owned(), id));
        }
        self.slots.push(slot.into());
        self.texts.push(String::new());
        id
    }

    /// The canary itself; empty for one that was adopted.
    pub fn text(&self, id: usize) -> &str {
        &self.texts[id]
    }

    /// Where it was put.
    pub fn slot(&self, id: usize) -> &str {
        &self.slots[id]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Looks for every canary, in every form.
    pub fn search(&self, hay: &[u8]) -> Found {
        let mut found = Found::new();
        self.search_layers(hay, "", LAYERS, &mut found);
        found
    }

    /// Looks for every canary as it is, in no other form.
    pub fn search_plain(&self, hay: &[u8]) -> Found {
        let mut found = Found::new();
        self.look(hay, "", &mut found);
        found
    }

    fn search_layers(&self, hay: &[u8], form: &str, layers: usize, found: &mut Found) {
        self.look(hay, form, found);
        if layers == 0 {
            return;
        }
        for (name, undone) in undo(hay) {
            let form = if form.is_empty() {
                name.to_owned()
            } else {
                format!("{name} in {form}")
            };
            self.search_layers(&undone, &form, layers - 1, found);
        }
    }

    /// Looks for canaries as they are.
    fn look(&self, hay: &[u8], form: &str, found: &mut Found) {
        let mut note = |id: usize, at: usize| {
            let form = if form.is_empty() { "raw" } else { form };
            found
                .entry(id)
                .or_insert_with(|| Sighting {
                    form: form.to_owned(),
                    at,
                    pieces: 0,
                })
                .pieces += 1;
        };
        for at in self.tag.find_iter(hay) {
            let piece = hay.get(at..at + PIECE_BYTES);
            if let Some(&id) = piece.and_then(|piece| self.pieces.get(piece)) {
                note(id, at);
            }
        }
        for (finder, id) in &self.untagged {
            if let Some(at) = finder.find(hay) {
                note(*id, at);
            }
        }
    }

    /// Looks for every canary as it is in a file of any size, holes left out.
    /// Returns how many bytes were looked at, too.
    ///
    /// # Errors
    /// As reading the file.
    pub fn search_file(&self, file: &mut File) -> io::Result<(Found, u64)> {
        use nix::unistd::{Whence, lseek};
        let mut found = Found::new();
        let mut bytes = 0;
        let mut window = Vec::with_capacity(WINDOW_BYTES + PIECE_BYTES);
        loop {
            let at = lseek(&*file, 0, Whence::SeekCur)?;
            // ENXIO: there is only a hole behind. A file system that knows no holes
            // has data everywhere.
            match lseek(&*file, at, Whence::SeekData) {
                // The pieces do not lie across a hole.
                Ok(data) if data != at => window.clear(),
                Ok(_) | Err(nix::errno::Errno::EINVAL) => {}
                Err(nix::errno::Errno::ENXIO) => return Ok((found, bytes)),
                Err(error) => return Err(error.into()),
            }
            let read = Read::by_ref(file)
                .take(WINDOW_BYTES as u64)
                .read_to_end(&mut window)?;
            if read == 0 {
                return Ok((found, bytes));
            }
            bytes += read as u64;
            self.look(&window, "", &mut found);
            // What a piece that goes on in the next window begins with.
            window.drain(..window.len() - window.len().min(PIECE_BYTES - 1));
        }
    }
}

fn random_text(bytes: usize) -> io::Result<String> {
    let mut random = vec![0; bytes];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte & 63)]))
        .collect())
}

// ---- Undoing ---------------------------------------------------------------

/// What a text is when one encoding is undone, for each that there is something of.
fn undo(hay: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut undone = vec![
        ("percent", undo_escapes(hay, b"%", percent_at)),
        ("escapes", undo_escapes(hay, b"\\&", escape_at)),
    ];
    for offset in 0..2 {
        undone.push(("hex", undo_runs(hay, HEX_RUN_MIN, offset, hex_digit, 4)));
    }
    for offset in 0..4 {
        undone.push((
            "base64",
            undo_runs(hay, BASE64_RUN_MIN, offset, base64_digit, 6),
        ));
    }
    undone.retain(|(_, text)| !text.is_empty());
    undone
}

/// Reads the escape that a text begins with: the byte that it stands for, and its length.
type ReadEscape = fn(&[u8]) -> Option<(u8, usize)>;

/// Undoes escapes. Only what lies around them is returned, a zero byte between
/// places that are far apart: elsewhere nothing has changed.
fn undo_escapes(hay: &[u8], starts: &[u8], read: ReadEscape) -> Vec<u8> {
    let mut out = Vec::new();
    let mut copied = 0;
    for at in memchr::memchr2_iter(starts[0], starts[starts.len() - 1], hay) {
        // Part of an escape before it, as in `\\`.
        if at < copied {
            continue;
        }
        let Some((byte, length)) = read(&hay[at..]) else {
            continue;
        };
        if at - copied > 2 * SURROUNDINGS || (copied == 0 && at > SURROUNDINGS) {
            if copied > 0 {
                out.extend_from_slice(&hay[copied..copied + SURROUNDINGS]);
                out.push(0);
            }
            copied = at - SURROUNDINGS;
        }
        out.extend_from_slice(&hay[copied..at]);
        out.push(byte);
        copied = at + length;
    }
    if copied > 0 {
        out.extend_from_slice(&hay[copied..hay.len().min(copied + SURROUNDINGS)]);
    }
    out
}

/// `%2F` (RFC 3986, section 2.1).
fn percent_at(text: &[u8]) -> Option<(u8, usize)> {
    match text {
        [b'%', high, low, ..] => Some(((hex_digit(*high)? << 4) | hex_digit(*low)?, 3)),
        _ => None,
    }
}

/// `\u002f`, `\x2f`, `\/` (RFC 8259, section 7, and its relatives), `&#47;`, `&#x2f;`.
fn escape_at(text: &[u8]) -> Option<(u8, usize)> {
    let number = |digits: &[u8], radix: u32| -> Option<u8> {
        u8::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
    };
    match text {
        [b'\\', b'u', digits @ ..] => Some((number(digits.get(..4)?, 16)?, 6)),
        [b'\\', b'x', digits @ ..] => Some((number(digits.get(..2)?, 16)?, 4)),
        [b'\\', escaped @ (b'/' | b'\\' | b'"'), ..] => Some((*escaped, 2)),
        [b'&', b'#', rest @ ..] => {
            let end = rest.iter().take(6).position(|&byte| byte == b';')?;
            let byte = match &rest[..end] {
                [b'x' | b'X', digits @ ..] => number(digits, 16)?,
                digits => number(digits, 10)?,
            };
            Some((byte, end + 3))
        }
        _ => None,
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// Both alphabets (RFC 4648, sections 4 and 5).
fn base64_digit(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

/// Reads each run of digits, of so many bits each, from its digit `offset` on.
fn undo_runs(
    hay: &[u8],
    run_min: usize,
    offset: usize,
    digit: fn(u8) -> Option<u8>,
    bits_each: u32,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < hay.len() {
        let run = hay[at..]
            .iter()
            .position(|&byte| digit(byte).is_none())
            .map_or(&hay[at..], |end| &hay[at..at + end]);
        at += run.len() + 1;
        if run.len() < run_min {
            continue;
        }
        let (mut held, mut bits) = (0u32, 0);
        for value in run[offset..].iter().filter_map(|&byte| digit(byte)) {
            held = (held << bits_each) | u32::from(value);
            bits += bits_each;
            if bits >= 8 {
                bits -= 8;
                out.push((held >> bits) as u8);
                held &= (1 << bits) - 1;
            }
        }
        // So that two runs are not read as one.
        out.push(0);
    }
    out
}

// ---- Doing -----------------------------------------------------------------

/// Every form of a text that the proof plants and has echoed, each with its name.
pub fn forms(text: &str) -> Vec<(&'static str, String)> {
    let each = |write: fn(u8) -> String| -> String { text.bytes().map(write).collect() };
    let mut forms = vec![
        ("raw", text.to_owned()),
        ("percent", text.replace('/', "%2F").replace('+', "%2B")),
        (
            "percent, lower case",
            text.replace('/', "%2f").replace('+', "%2b"),
        ),
        ("percent, each byte", each(|byte| format!("%{byte:02X}"))),
        (
            "percent, each byte, lower case",
            each(|byte| format!("%{byte:02x}")),
        ),
        (
            "percent, twice",
            text.replace('/', "%252F").replace('+', "%252B"),
        ),
        ("JSON, escaped slash", text.replace('/', "\\/")),
        (
            "JSON, each character",
            each(|byte| format!("\\u{byte:04x}")),
        ),
        ("HTML, each character", each(|byte| format!("&#{byte};"))),
        ("hex", each(|byte| format!("{byte:02x}"))),
        ("HEX", each(|byte| format!("{byte:02X}"))),
    ];
    for (name, url) in [("base64", false), ("base64url", true)] {
        for before in ["", "u", "me"] {
            forms.push((name, base64(format!("{before}{text}").as_bytes(), url)));
        }
    }
    forms.push((
        "base64 of user:key",
        base64(format!("api:{text}").as_bytes(), false),
    ));
    forms
}

fn base64(bytes: &[u8], url: bool) -> String {
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let held = group
            .iter()
            .fold(0u32, |held, &byte| (held << 8) | u32::from(byte))
            << (8 * (3 - group.len()));
        for digit in 0..=group.len() {
            let letter = char::from(ALPHABET[(held >> (18 - 6 * digit)) as usize & 63]);
            out.push(match letter {
                '+' if url => '-',
                '/' if url => '_',
                letter => letter,
            });
        }
    }
    if !url {
        out.push_str(&"="[..usize::from(bytes.len() % 3 == 2)]);
        out.push_str(&"=="[..2 * usize::from(bytes.len() % 3 == 1)]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> (Canaries, String) {
        let mut canaries = Canaries::new().expect("random numbers");
        let id = canaries.plant("a slot").expect("random numbers");
        let text = canaries.text(id).to_owned();
        (canaries, text)
    }

    #[test]
    fn a_canary_begins_with_a_letter() {
        // Of so many, some would begin with a slash or a digit.
        for _ in 0..1000 {
            let (_, text) = one();
            assert!(
                text.starts_with(|first: char| first.is_ascii_alphabetic()),
                "{text}"
            );
        }
    }

    #[test]
    fn every_form_is_found_and_nothing_else() {
        let (canaries, text) = one();
        for (name, form) in forms(&text) {
            for hay in [
                form.clone(),
                format!("{{\"a\":\"{form}\",\"b\":\"\\u0041%41\"}}"),
                format!("{}%41 \\u0041 {form}", "x ".repeat(1000)),
                format!("{form}{}", " y".repeat(1000)),
            ] {
                let found = canaries.search(hay.as_bytes());
                assert!(found.contains_key(&0), "{name}: {hay}");
            }
        }
        let (_, other) = one();
        for hay in [other, "%2F\\u0041&#65;".repeat(100), "QUJD".repeat(100)] {
            assert_eq!(canaries.search(hay.as_bytes()), Found::new());
        }
    }

    #[test]
    fn forms_within_forms_and_parts_are_found() {
        let (canaries, text) = one();
        for (inner_name, inner) in forms(&text) {
            for (outer_name, outer) in forms(&inner) {
                let found = canaries.search(outer.as_bytes());
                assert!(!found.is_empty(), "{inner_name} in {outer_name}");
            }
        }
        for start in 0..=text.len() - 2 * PIECE_BYTES {
            let part = &text[start..start + 2 * PIECE_BYTES];
            assert!(!canaries.search(part.as_bytes()).is_empty(), "{part}");
        }
    }

    #[test]
    fn a_secret_that_was_adopted_is_found_in_pem_too() {
        let (mut canaries, _) = one();
        let secret: Vec<u8> = (0..32).map(|byte| byte * 7 + 1).collect();
        let id = canaries.adopt("a private key", &secret);
        let der = [&[0x30; 36][..], &secret, &[0xa1; 70]].concat();
        let pem: Vec<u8> = base64(&der, false)
            .as_bytes()
            .chunks(64)
            .flat_map(|line| [line, b"\n"].concat())
            .collect();
        assert!(canaries.search(&pem).contains_key(&id));
        assert!(canaries.search(&der).contains_key(&id));
        assert!(canaries.search(&[0x30; 200]).is_empty());
    }

    #[test]
    fn large_files_are_searched_across_windows_and_holes() {
        use std::io::{Seek, SeekFrom, Write};
        let (canaries, text) = one();
        for at in [0, WINDOW_BYTES - 17, WINDOW_BYTES, 3 * WINDOW_BYTES + 5] {
            let mut file = tempfile::tempfile().expect("a file");
            file.seek(SeekFrom::Start(at as u64)).expect("seek");
            file.write_all(text.as_bytes()).expect("written");
            file.set_len(8 * WINDOW_BYTES as u64).expect("longer");
            file.rewind().expect("seek");
            let (found, bytes) = canaries.search_file(&mut file).expect("readable");
            assert_eq!(found[&0].pieces, PIECES, "at {at}");
            assert!(bytes >= text.len() as u64);
        }
        let mut empty = tempfile::tempfile().expect("a file");
        assert_eq!(
            canaries.search_file(&mut empty).expect("readable"),
            (Found::new(), 0)
        );
    }
}
