//! [`Report`]: every problem of a configuration at once, each where it stands.
//!
//! A source line is shown only after everything that could be a key has been
//! taken out of it: values that stand where a secret or a reference to one
//! belongs, values of fields that nobody knows, whatever has the shape of a
//! known provider's key, and comments. A [`Place`] holds the line in that form;
//! the original is not kept.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{file, shape};

/// What is put in the place of a value that may be a key.
pub const HIDDEN: &str = "<hidden>";

/// What is said of a key where none belongs.
pub(super) const KEY_IN_THE_OPEN: &str =
    "a key stands here in the open; keys are not written into the configuration";

/// Characters of a source line that are shown; the rest is cut.
const LINE_CHARS_MAX: usize = 160;

/// Changed characters that still count as a slip of the fingers.
const SLIPS_MAX: usize = 3;

/// Characters of a name that a message quotes; the rest is cut.
const QUOTE_CHARS_MAX: usize = 80;

/// Every problem that was found, in the order of their places.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The problems.
    pub problems: Vec<Problem>,
}

/// Whether a problem keeps the configuration from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, and something about it should be looked at.
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Clone)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// Where, if it has a place in a file.
    pub place: Option<Place>,
    /// What would have been right.
    pub expected: Option<String>,
    /// What was probably meant, in backticks.
    pub meant: Option<String>,
    /// What to do about it.
    pub cure: Option<String>,
    /// Other places that belong to it, each with a word on why.
    pub also: Vec<(String, Place)>,
}

/// A place in a file, with its line in a form that may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// The line, masked.
    text: String,
    /// Where the caret starts in `text`, in characters.
    caret: usize,
    /// How many carets.
    width: usize,
}

impl Report {
    /// A report with one error that has no place in a file.
    pub fn of(problem: Problem) -> Self {
        Self {
            problems: vec![problem],
        }
    }

    /// Adds a problem.
    pub fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Adds all problems of another report.
    pub fn extend(&mut self, other: Report) {
        self.problems.extend(other.problems);
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether something keeps the configuration from being used.
    pub fn has_errors(&self) -> bool {
        self.errors() > 0
    }

    /// How many problems keep the configuration from being used.
    pub fn errors(&self) -> usize {
        self.problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .count()
    }

    /// How many only want to be looked at.
    pub fn warnings(&self) -> usize {
        self.problems.len() - self.errors()
    }

    /// Puts the problems in the order of their places; those without one last.
    pub fn sort(&mut self) {
        self.problems.sort_by(|a, b| {
            let key = |problem: &Problem| {
                problem
                    .place
                    .as_ref()
                    .map_or((true, PathBuf::new(), 0, 0), |p| {
                        (false, p.path.clone(), p.line, p.column)
                    })
            };
            key(a).cmp(&key(b))
        });
    }

    /// The whole report as text for a terminal or a log, with a last line that counts.
    /// `color` uses ANSI colours.
    pub fn render(&self, color: bool) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            problem.render(color, &mut text);
            text.push('\n');
        }
        if !self.problems.is_empty() {
            text.push_str(&self.summary());
            text.push('\n');
        }
        text
    }

    /// "2 errors, 1 warning".
    pub fn summary(&self) -> String {
        let count = |count: usize, what: &str| match count {
            0 => None,
            1 => Some(format!("1 {what}")),
            _ => Some(format!("{count} {what}s")),
        };
        let parts: Vec<String> = [
            count(self.errors(), "error"),
            count(self.warnings(), "warning"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if parts.is_empty() {
            "no problems".to_owned()
        } else {
            parts.join(", ")
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}

impl Problem {
    /// An error.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Severity::Error, message.into())
    }

    /// A warning.
    pub fn warning(message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, message.into())
    }

    fn new(severity: Severity, message: String) -> Self {
        Self {
            severity,
            message,
            place: None,
            expected: None,
            meant: None,
            cure: None,
            also: Vec::new(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// What would have been right.
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// What was probably meant: the nearest of the candidates, if one is near.
    #[must_use]
    pub fn meant<'a>(mut self, typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        self.meant = nearest(typed, candidates).map(quote);
        self
    }

    /// What to do.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    /// Another place that belongs to it.
    #[must_use]
    pub fn also(mut self, why: impl Into<String>, place: Place) -> Self {
        self.also.push((why.into(), place));
        self
    }

    /// Whether it is about a key where none belongs.
    pub(super) fn is_key_in_the_open(&self) -> bool {
        self.message == KEY_IN_THE_OPEN
    }

    fn render(&self, color: bool, out: &mut String) {
        let paint = Paint { on: color };
        let (word, tint) = match self.severity {
            Severity::Error => ("error", "1;31"),
            Severity::Warning => ("warning", "1;33"),
        };
        paint.push(out, tint, word);
        paint.push(out, "1", &format!(": {}", self.message));
        out.push('\n');
        let notes = [
            ("expected", &self.expected, ""),
            ("did you mean", &self.meant, "?"),
            ("cure", &self.cure, ""),
        ];
        let margin = self
            .place
            .iter()
            .chain(self.also.iter().map(|(_, place)| place))
            .map(|place| place.line.to_string().len())
            .max()
            .unwrap_or(0);
        if let Some(place) = &self.place {
            place.render(paint, margin, tint, out);
        }
        for (why, place) in &self.also {
            out.push_str(&" ".repeat(margin));
            paint.push(out, "1;34", " = ");
            out.push_str(why);
            out.push('\n');
            place.render(paint, margin, "1;34", out);
        }
        for (label, note, end) in notes {
            let Some(note) = note else { continue };
            out.push_str(&" ".repeat(margin));
            paint.push(out, "1;34", " = ");
            paint.push(out, "1", label);
            out.push_str(if end == "?" { " " } else { ": " });
            out.push_str(note);
            out.push_str(end);
            out.push('\n');
        }
    }
}

impl Place {
    fn render(&self, paint: Paint, margin: usize, tint: &str, out: &mut String) {
        let space = " ".repeat(margin);
        out.push_str(&space);
        paint.push(out, "1;34", "--> ");
        out.push_str(&format!(
            "{}:{}:{}\n",
            self.path.display(),
            self.line,
            self.column
        ));
        out.push_str(&space);
        paint.push(out, "1;34", " |");
        out.push('\n');
        paint.push(out, "1;34", &format!("{:>margin$} |", self.line));
        if !self.text.is_empty() {
            out.push(' ');
            out.push_str(&self.text);
        }
        out.push('\n');
        out.push_str(&space);
        paint.push(out, "1;34", " |");
        out.push_str(&" ".repeat(self.caret + 1));
        paint.push(out, tint, &"^".repeat(self.width));
        out.push('\n');
    }
}

/// Puts ANSI colours around text, or does not.
#[derive(Clone, Copy)]
struct Paint {
    on: bool,
}

impl Paint {
    fn push(self, out: &mut String, tint: &str, text: &str) {
        if self.on {
            out.push_str(&format!("\x1b[{tint}m{text}\x1b[0m"));
        } else {
            out.push_str(text);
        }
    }
}

/// One file's text, and which of its bytes are never shown.
pub struct Source {
    /// The file.
    pub path: PathBuf,
    text: String,
    /// Where each line starts.
    lines: Vec<usize>,
    /// Values that may be a key, by where they start. They do not overlap.
    hidden: BTreeMap<usize, usize>,
    /// The text could not be read as TOML, so nothing is known of what is where:
    /// hide all but what is certainly harmless.
    broken: bool,
}

// The text is not shown: it may contain a key that should not be there.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.path.display())
    }
}

impl Source {
    /// The text of a file.
    pub fn new(path: &Path, text: String) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0)
            .chain(breaks.map(|(at, _)| at + 1))
            .collect();
        Self {
            path: path.to_owned(),
            text,
            lines,
            hidden: BTreeMap::new(),
            broken: false,
        }
    }

    /// The whole text. Not for showing.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the text is not TOML.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Never show these bytes.
    pub fn hide(&mut self, span: Range<usize>) {
        let end = self.hidden.entry(span.start).or_insert(span.end);
        *end = span.end.max(*end);
    }

    /// The text is not TOML: show next to nothing of it.
    pub fn set_broken(&mut self) {
        self.broken = true;
    }

    /// The place of some bytes.
    pub fn place(&self, span: Range<usize>) -> Place {
        let start = floor_boundary(&self.text, span.start);
        let line = self.lines.partition_point(|&line| line <= start);
        let line_start = self.lines[line - 1];
        let line_end = self
            .lines
            .get(line)
            .map_or(self.text.len(), |next| next - 1);
        let line_end = if self.text[line_start..line_end].ends_with('\r') {
            line_end - 1
        } else {
            line_end
        };
        let end = floor_boundary(&self.text, span.end).clamp(start.min(line_end), line_end);
        let column = self.text[line_start..start].chars().count() + 1;
        let (text, caret, width) = self.masked(line_start..line_end, start.min(line_end)..end);
        Place {
            path: self.path.clone(),
            line,
            column,
            text,
            caret,
            width,
        }
    }

    /// A line as it may be shown, and where the caret stands in it.
    fn masked(&self, line: Range<usize>, mark: Range<usize>) -> (String, usize, usize) {
        let mut pieces: Vec<(Range<usize>, bool)> = Vec::new(); // (bytes, hidden)
        let code_end = line.start + comment_start(&self.text[line.clone()]);
        let mut hidden: Vec<Range<usize>> = if self.broken {
            file::doubtful(&self.text[line.start..code_end])
                .into_iter()
                .map(|range| line.start + range.start..line.start + range.end)
                .collect()
        } else {
            // One may have started on an earlier line.
            let before = self.hidden.range(..line.start).next_back();
            let within = self.hidden.range(line.clone());
            before
                .into_iter()
                .chain(within)
                .map(|(&start, &end)| start..end)
                .collect()
        };
        hidden.extend(
            shape::keys_in(&self.text[line.start..code_end])
                .into_iter()
                .map(|range| line.start + range.start..line.start + range.end),
        );
        hidden.sort_by_key(|range| range.start);
        let mut at = line.start;
        for range in hidden {
            let start = range.start.max(at);
            let end = range.end.min(code_end);
            if start >= end {
                continue;
            }
            pieces.push((at..start, false));
            pieces.push((start..end, true));
            at = end;
        }
        pieces.push((at..code_end, false));
        let mut text = String::new();
        let (mut caret, mut caret_end) = (None, 0);
        for (range, is_hidden) in pieces {
            let before = text.chars().count();
            if is_hidden {
                let quoted = self.text[range.clone()].starts_with(['"', '\'']);
                text.push_str(if quoted { "\"<hidden>\"" } else { HIDDEN });
                let after = text.chars().count();
                if mark.start < range.end && mark.end > range.start {
                    caret.get_or_insert(before);
                    caret_end = after;
                } else if mark.start == mark.end && range.contains(&mark.start) {
                    caret.get_or_insert(before);
                    caret_end = before + 1;
                }
                continue;
            }
            for (offset, char) in self.text[range.clone()].char_indices() {
                let place = range.start + offset;
                let shown = if char.is_control() { ' ' } else { char };
                if mark.contains(&place) {
                    caret.get_or_insert(text.chars().count());
                    caret_end = text.chars().count() + 1;
                } else if place == mark.start {
                    caret.get_or_insert(text.chars().count());
                }
                text.push(shown);
            }
        }
        if code_end < line.end {
            text.push_str("# ...");
        }
        let trimmed = text.trim_end().chars().count();
        let caret = caret.unwrap_or(trimmed).min(LINE_CHARS_MAX);
        let caret_end = caret_end.min(trimmed.min(LINE_CHARS_MAX));
        let mut text: String = text.trim_end().chars().take(LINE_CHARS_MAX).collect();
        if trimmed > LINE_CHARS_MAX {
            text.push_str("...");
        }
        (text, caret, caret_end.saturating_sub(caret).max(1))
    }
}

/// Where a comment starts in a line, or the line's length. Comments are not
/// shown: a retired key may stand in one.
fn comment_start(line: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, char) in line.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if char == '\\' => escaped = true,
            Some(open) if char == open => quote = None,
            Some(_) => {}
            None if char == '#' => return at,
            None if char == '"' || char == '\'' => quote = Some(char),
            None => {}
        }
    }
    line.len()
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The text without what has the shape of a key.
pub fn without_keys(text: &str) -> String {
    let mut shown = text.to_owned();
    for range in shape::keys_in(text).into_iter().rev() {
        shown.replace_range(range, HIDDEN);
    }
    shown
}

/// A name that the operator typed, fit to stand in a message: no control
/// characters, not too long, and nothing that has the shape of a key.
pub fn quote(typed: &str) -> String {
    let shown = without_keys(typed);
    let cut = shown.chars().count() > QUOTE_CHARS_MAX;
    let mut shown: String = shown
        .chars()
        .take(QUOTE_CHARS_MAX)
        .map(|char| {
            if char.is_control() || char == '`' {
                '?'
            } else {
                char
            }
        })
        .collect();
    if cut {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// "`a`, `b` or `c`".
pub fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut words: Vec<String> = words.into_iter().map(quote).collect();
    words.dedup();
    match words.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// The candidate that is nearest to what was typed, if one is near enough to be
/// a slip of the fingers.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let typed = plain(typed);
    if typed.chars().count() > QUOTE_CHARS_MAX {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&typed, &plain(candidate)),
                candidate,
            )
        })
        .filter(|(distance, candidate)| {
            *distance <= (candidate.chars().count() / 3).clamp(1, SLIPS_MAX)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the marked bytes of a text are shown, and how.
    #[track_caller]
    fn check(
        text: &str,
        hide: &str,
        mark: &str,
        line: usize,
        column: usize,
        shown: &str,
        under: &str,
    ) {
        let mut source = Source::new(Path::new("f.toml"), text.to_owned());
        if let Some(at) = text.find(hide).filter(|_| !hide.is_empty()) {
            source.hide(at..at + hide.len());
        }
        let at = text.find(mark).expect("the mark");
        let place = source.place(at..at + mark.len());
        assert_eq!((place.line, place.column), (line, column));
        assert_eq!(place.text, shown);
        let marked: String = place
            .text
            .chars()
            .skip(place.caret)
            .take(place.width)
            .collect();
        assert_eq!(marked, under);
    }

    #[test]
    fn lines_are_shown_without_what_is_hidden() {
        check("a = 1\nb = 2\n", "", "b", 2, 1, "b = 2", "b");
        check("a = 1\r\nb = 2\r\n", "", "2", 2, 5, "b = 2", "2");
        check(
            "\tä = \"ö\" # \"x\"",
            "",
            "\"ö\"",
            1,
            6,
            " ä = \"ö\" # ...",
            "\"ö\"",
        );
        check(
            "s = \"k1\"",
            "\"k1\"",
            "\"k1\"",
            1,
            5,
            "s = \"<hidden>\"",
            "\"<hidden>\"",
        );
        check("s = \"k1\"", "\"k1\"", "s", 1, 1, "s = \"<hidden>\"", "s");
        check(
            "s = 'k1' # k1",
            "'k1'",
            "s",
            1,
            1,
            "s = \"<hidden>\" # ...",
            "s",
        );
        check("s = \"#k1\"", "", "s", 1, 1, "s = \"#k1\"", "s");
        check(
            "s = \"\"\"k1\nk2\nk3\"\"\"",
            "\"\"\"k1\nk2\nk3\"\"\"",
            "k2",
            2,
            1,
            "<hidden>",
            "<hidden>",
        );
        check("s = \"a\x1b[31m\"", "", "s", 1, 1, "s = \"a [31m\"", "s");
        // A key is hidden wherever it stands.
        check(
            "sk-PLANTED0123456789abcdef = X",
            "",
            "X",
            1,
            30,
            "<hidden> = X",
            "X",
        );
    }

    #[test]
    fn colors_change_nothing_but_colors() {
        let source = Source::new(Path::new("f.toml"), "a = 1\nb = 2\n".to_owned());
        let report = Report::of(
            Problem::error("wrong")
                .at(source.place(0..1))
                .also("first here:", source.place(6..7))
                .expected("right")
                .meant("nam", ["name"])
                .cure("write it right"),
        );
        let painted = report.render(true);
        let mut plain = String::new();
        let mut rest = &*painted;
        while let Some((before, after)) = rest.split_once("\x1b[") {
            plain.push_str(before);
            rest = after.split_once('m').expect("the end of a colour").1;
        }
        plain.push_str(rest);
        assert!(painted.len() > plain.len());
        assert_eq!(plain, report.render(false));
        assert_eq!(
            plain,
            "\
error: wrong
 --> f.toml:1:1
  |
1 | a = 1
  | ^
  = first here:
 --> f.toml:2:1
  |
2 | b = 2
  | ^
  = expected: right
  = did you mean `name`?
  = cure: write it right

1 error
"
        );
    }

    #[test]
    fn long_lines_and_names_are_cut() {
        let text = format!("a = \"{}\" x", "ab ".repeat(100));
        let source = Source::new(Path::new("f.toml"), text.clone());
        let place = source.place(text.len() - 1..text.len());
        assert_eq!(place.text.chars().count(), LINE_CHARS_MAX + 3);
        assert!(place.caret <= LINE_CHARS_MAX);
        assert_eq!(quote(&"x".repeat(500)).len(), QUOTE_CHARS_MAX + 5);
        assert_eq!(quote("a`b\n"), "`a?b?`");
    }

    #[test]
    fn what_was_probably_meant() {
        let words = ["upstream", "upstream_path", "host", "keep_query"];
        for (typed, expected) in [
            ("upstrem", Some("upstream")),
            ("upstream-path", Some("upstream_path")),
            ("UPSTREAM", Some("upstream")),
            ("hots", Some("host")),
            ("hst", Some("host")),
            ("query", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, words), expected, "{typed}");
        }
    }
}
