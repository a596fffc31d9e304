//! [`Written`] and the value types that an operator types: durations, sizes,
//! lists that may be a single word.
//!
//! Each type reads itself and refuses with a sentence that says what was
//! expected. None of the sentences quotes what was found: it may be a key.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{
    Deserialize, Deserializer, Error, SeqAccess, Visitor, value::SeqAccessDeserializer,
};

/// A value, and where in its file it stands.
#[derive(Clone)]
pub struct Written<T> {
    /// What was written.
    pub value: T,
    /// Its bytes in the source text.
    pub span: Range<usize>,
}

impl<T> Written<T> {
    /// A value at a place.
    pub fn new(value: T, span: Range<usize>) -> Self {
        Self { value, span }
    }
}

// The span alone: a value may be a key that stands where none belongs.
impl<T> fmt::Debug for Written<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Written({:?})", self.span)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::<T>::deserialize(deserializer)?;
        let span = spanned.span();
        Ok(Self {
            value: spanned.into_inner(),
            span,
        })
    }
}

impl<T: JsonSchema> JsonSchema for Written<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A string, or a list of strings.
#[derive(Debug, Clone, Default)]
pub struct OneOrMany(pub Vec<Written<String>>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        enum Either {
            One(String),
            Many(Vec<Written<String>>),
        }
        impl<'de> Deserialize<'de> for Either {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Read;
                impl<'de> Visitor<'de> for Read {
                    type Value = Either;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string or a list of strings")
                    }
                    fn visit_str<E: Error>(self, text: &str) -> Result<Either, E> {
                        Ok(Either::One(text.to_owned()))
                    }
                    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Either, A::Error> {
                        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Either::Many)
                    }
                }
                deserializer.deserialize_any(Read)
            }
        }
        let either = Written::<Either>::deserialize(deserializer)?;
        Ok(match either.value {
            Either::One(text) => Self(vec![Written::new(text, either.span)]),
            Either::Many(list) => Self(list),
        })
    }
}

impl JsonSchema for OneOrMany {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "OneOrMany".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
        })
    }
}

/// A length of time: a number and `ms`, `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(pub Duration);

/// The longest [`Period`] that is accepted. A longer one is an error: it is
/// surely a slip, and sums of deadlines must not overflow.
pub const PERIOD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

const PERIOD_EXPECTED: &str = "a duration such as \"500ms\", \"10s\", \"5m\", \"2h\" or \"1d\"";

impl Period {
    /// Reads `10s`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        let period = Duration::from_millis(number.checked_mul(ms)?);
        (period <= PERIOD_MAX).then_some(Self(period))
    }
}

/// The same spelling that [`Period::parse`] reads, with the largest unit that fits.
pub fn show_period(period: Duration) -> String {
    let ms = period.as_millis();
    for (unit, length) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ] {
        if ms > 0 && ms.is_multiple_of(length) {
            return format!("{}{unit}", ms / length);
        }
    }
    format!("{ms}ms")
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Period;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(PERIOD_EXPECTED)
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Period, E> {
                Period::parse(text)
                    .ok_or_else(|| E::custom(format!("not a duration, expected {PERIOD_EXPECTED}")))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl JsonSchema for Period {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$" })
    }
}

/// A number of bytes: an integer, or a number with `KiB`, `MiB`, `GiB`, `kB`,
/// `MB`, `GB`; or `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    /// No limit at all.
    pub const UNLIMITED: Size = Size(u64::MAX);

    /// Reads `10MiB`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "unlimited" {
            return Some(Self::UNLIMITED);
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let factor: u64 = match unit {
            "" | "B" => 1,
            "kB" => 1_000,
            "KiB" => 1 << 10,
            "MB" => 1_000_000,
            "MiB" => 1 << 20,
            "GB" => 1_000_000_000,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.checked_mul(factor).map(Self)
    }
}

const SIZE_EXPECTED: &str = "a size such as \"64KiB\", \"10MiB\" or \"unlimited\"";

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZE_EXPECTED)
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Size, E> {
                u64::try_from(number)
                    .map(Size)
                    .map_err(|_| E::custom(format!("a negative size, expected {SIZE_EXPECTED}")))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                Size::parse(text)
                    .ok_or_else(|| E::custom(format!("not a size, expected {SIZE_EXPECTED}")))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl JsonSchema for Size {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "pattern": "^(unlimited|[0-9]+(B|kB|KiB|MB|MiB|GB|GiB)?)$" },
                { "type": "integer", "minimum": 0 }
            ]
        })
    }
}

/// How many workers: `auto`, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// One per core that the process may use.
    Auto,
    /// This many.
    Count(usize),
}

/// The most workers that are accepted; more is an error. It is the size of the
/// largest machine that anybody rents, several times over.
pub const WORKERS_MAX: usize = 1024;

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        const EXPECTED: &str = "\"auto\" or a number from 1 to 1024";
        impl Visitor<'_> for Read {
            type Value = Workers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Workers, E> {
                match usize::try_from(number) {
                    Ok(count) if (1..=WORKERS_MAX).contains(&count) => Ok(Workers::Count(count)),
                    _ => Err(E::custom(format!("out of range, expected {EXPECTED}"))),
                }
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Workers, E> {
                match text {
                    "auto" => Ok(Workers::Auto),
                    _ => Err(E::custom(format!(
                        "not a number of workers, expected {EXPECTED}"
                    ))),
                }
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl JsonSchema for Workers {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Workers".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "const": "auto" },
                { "type": "integer", "minimum": 1, "maximum": 1024 }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods() {
        for (text, ms) in [
            ("500ms", Some(500)),
            ("0s", Some(0)),
            ("10s", Some(10_000)),
            ("5m", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("1d", Some(86_400_000)),
            ("366d", Some(366 * 86_400_000)),
            ("367d", None),
            ("10", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("10 s", None),
            ("10S", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ] {
            let expected = ms.map(|ms| Period(Duration::from_millis(ms)));
            assert_eq!(Period::parse(text), expected, "{text}");
            if let Some(Period(period)) = expected {
                assert_eq!(
                    Period::parse(&show_period(period)),
                    expected,
                    "{text} there and back"
                );
            }
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("1kB", Some(1000)),
            ("1KiB", Some(1024)),
            ("10MiB", Some(10 << 20)),
            ("2GB", Some(2_000_000_000)),
            ("unlimited", Some(u64::MAX)),
            ("10mib", None),
            ("MiB", None),
            ("18446744073709551615GiB", None),
            ("-1", None),
        ] {
            assert_eq!(Size::parse(text), bytes.map(Size), "{text}");
        }
    }
}
