//! Reading control documents: strictly, and with errors for people who write JSON.
//!
//! Serde's derived readers take a list for an object (`[7, []]` would be a seed and no rules) and
//! speak of the types of this program. So documents are parsed to a [`Value`] first, in which no
//! name may occur twice, and then read through [`Strict`], which takes an object for an object
//! alone, and tells which field is wrong, what it was and what was expected.
//!
//! What it lacks: the line of a wrong field, and what our documents have no use for (maps with
//! names of their own, bytes, tuples).

use std::fmt::{self, Write as _};

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

/// Parses and reads a whole document. `example` is shown when it is of the wrong kind.
///
/// # Errors
///
/// A sentence that names the field and says what was expected.
pub fn read<T: DeserializeOwned>(text: &[u8], example: &str) -> Result<T, String> {
    let Unique(value) = serde_json::from_slice(text)
        .map_err(|error| format!("the document cannot be read: {error}; example: {example}"))?;
    read_value(&value, "the document", example)
}

/// Reads a part of a document, which an error calls `whole` if it is wrong as a whole.
///
/// # Errors
///
/// As those of [`read`].
pub fn read_value<T: DeserializeOwned>(
    value: &Value,
    whole: &str,
    example: &str,
) -> Result<T, String> {
    T::deserialize(Strict(value))
        .map_err(|wrong| format!("{}; example: {example}", wrong.of(whole)))
}

/// Carries out `read` on each rule, and calls the rule by its number, from 1, in an error.
pub fn each_rule<T>(
    rules: Vec<Value>,
    mut read: impl FnMut(Value) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    if rules.len() > RULES_MAX {
        return Err(format!(
            "at most {RULES_MAX} rules; there are {}",
            rules.len()
        ));
    }
    (1..)
        .zip(rules)
        .map(|(number, rule)| read(rule).map_err(|error| format!("rule {number}: {error}")))
        .collect()
}

/// Checks the path prefix of a rule. An empty one fits every path.
pub fn check_prefix(prefix: &str) -> Result<(), String> {
    if !prefix.is_empty() && !prefix.starts_with('/') {
        return Err(format!(
            "the path prefix `{prefix}` does not begin with `/`; example: `/v1/`"
        ));
    }
    let possible = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
    if !prefix.bytes().all(possible) {
        return Err(format!(
            "the path prefix `{prefix}` fits no path: a query, a fragment, spaces and letters \
             outside ASCII are no part of one; example: `/v1/`"
        ));
    }
    Ok(())
}

/// More rules than this are refused: each request walks them.
pub const RULES_MAX: usize = 100;

/// What is wrong, and where.
#[derive(Debug)]
struct Wrong {
    /// The fields that lead there, the innermost first.
    path: Vec<String>,
    what: String,
}

impl Wrong {
    fn new(what: impl Into<String>) -> Self {
        Wrong {
            path: Vec::new(),
            what: what.into(),
        }
    }

    fn within(mut self, field: &str) -> Self {
        self.path.push(field.to_string());
        self
    }

    /// The sentence, in which `whole` stands for an empty path.
    fn of(&self, whole: &str) -> String {
        let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        match path.is_empty() {
            true => format!("{whole} {}", self.what),
            false => format!("`{}` {}", path.join("."), self.what),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of("it"))
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Wrong::new(format!("is wrong: {what}"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Wrong::new(format!(
            "has an unknown field `{field}`: expected {}",
            names(expected)
        ))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Wrong::new(format!(
            "cannot be `{variant}`: expected {}",
            names(expected)
        ))
    }

    fn missing_field(field: &'static str) -> Self {
        Wrong::new(format!("lacks the field `{field}`"))
    }
}

fn names(names: &[&str]) -> String {
    let mut out = String::new();
    for (index, name) in names.iter().enumerate() {
        let separator = match index {
            0 => "",
            _ if index + 1 == names.len() => " or ",
            _ => ", ",
        };
        let _ = write!(out, "{separator}`{name}`");
    }
    out
}

/// A value, of which only what was asked for is taken.
#[derive(Clone, Copy)]
struct Strict<'v>(&'v Value);

impl<'v> Strict<'v> {
    fn expected(self, what: &str) -> Wrong {
        let kind = match self.0 {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        match self.0 {
            Value::Number(number) => Wrong::new(format!("is {number}: expected {what}")),
            _ => Wrong::new(format!("is {kind}: expected {what}")),
        }
    }

    fn whole(self, max: u64) -> Result<u64, Wrong> {
        self.0
            .as_u64()
            .filter(|number| *number <= max)
            .ok_or_else(|| {
                self.expected(&format!(
                    "a whole number from 0 to {max}, without quotes, as in `3`"
                ))
            })
    }

    fn object(self) -> Result<&'v Map<String, Value>, Wrong> {
        self.0
            .as_object()
            .ok_or_else(|| self.expected("an object, as in `{\"field\": ...}`"))
    }
}

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.0
            .deserialize_any(visitor)
            .map_err(|error| Wrong::new(format!("is wrong: {error}")))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Bool(value) => visitor.visit_bool(*value),
            _ => Err(self.expected("`true` or `false`, without quotes")),
        }
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_u64(self.whole(u16::MAX.into())?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_u64(self.whole(u32::MAX.into())?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_u64(self.whole(u64::MAX)?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0.as_f64() {
            Some(number) => visitor.visit_f64(number),
            None => Err(self.expected("a number without quotes, as in `0.5`")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::String(text) => visitor.visit_str(text),
            _ => Err(self.expected("a text in double quotes")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(Items(items.iter())),
            _ => Err(self.expected("a list, as in `[...]`")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_map(Fields {
            fields: self.object()?.iter(),
            current: None,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let expected = || self.expected(&format!("one of {}", names(variants)));
        match self.0 {
            Value::String(name) => visitor.visit_enum(Variant {
                name,
                content: None,
            }),
            Value::Object(fields) => match fields.iter().next() {
                Some((name, content)) if fields.len() == 1 => visitor.visit_enum(Variant {
                    name,
                    content: Some(content),
                }),
                _ => Err(Wrong::new(format!(
                    "has {} fields: expected one, out of {}",
                    fields.len(),
                    names(variants)
                ))),
            },
            _ => Err(expected()),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u128 f32 char bytes byte_buf unit unit_struct newtype_struct tuple
        tuple_struct map identifier ignored_any
    }
}

struct Items<'v>(std::slice::Iter<'v, Value>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Wrong> {
        self.0
            .next()
            .map(|item| seed.deserialize(Strict(item)))
            .transpose()
    }
}

struct Fields<'v> {
    fields: serde_json::map::Iter<'v>,
    /// The field whose value comes next.
    current: Option<(&'v str, &'v Value)>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Wrong> {
        let Some((name, value)) = self.fields.next() else {
            return Ok(None);
        };
        self.current = Some((name, value));
        let name: StrDeserializer<'_, Wrong> = name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Wrong> {
        let (name, value) = self
            .current
            .take()
            .ok_or_else(|| Wrong::new("has a value without a name"))?;
        seed.deserialize(Strict(value))
            .map_err(|wrong| wrong.within(name))
    }
}

struct Variant<'v> {
    name: &'v str,
    content: Option<&'v Value>,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Wrong;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Wrong> {
        let name: StrDeserializer<'_, Wrong> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Wrong;

    fn unit_variant(self) -> Result<(), Wrong> {
        match self.content {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(Wrong::new(format!(
                "has no settings: expected the name alone, `\"{}\"`",
                self.name
            ))
            .within(self.name)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Wrong> {
        match self.content {
            Some(content) => seed
                .deserialize(Strict(content))
                .map_err(|wrong| wrong.within(self.name)),
            None => Err(Wrong::new(format!(
                "lacks its settings: expected `{{\"{}\": {{...}}}}`",
                self.name
            ))
            .within(self.name)),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Wrong> {
        Err(Wrong::new("is of a kind that no document has"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Wrong> {
        Err(Wrong::new("is of a kind that no document has"))
    }
}

/// A value in which no object has a name twice: `serde_json` alone would keep the last.
struct Unique(Value);

impl<'de> de::Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(de::Error::custom(format!(
                    "the field `{name}` stands twice"
                )));
            }
            let Unique(value) = fields.next_value()?;
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "read only to see what is refused")]
    struct Outer {
        small: Option<u16>,
        share: Option<f64>,
        name: Option<String>,
        open: Option<bool>,
        inner: Option<Inner>,
        kind: Option<Kind>,
        rules: Vec<Value>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "read only to see what is refused")]
    struct Inner {
        a: u64,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    #[expect(dead_code, reason = "read only to see what is refused")]
    enum Kind {
        Plain,
        Rich(Inner),
    }

    #[test]
    fn takes_what_fits() {
        for text in [
            r#"{"rules": []}"#,
            r#"{"rules": [1, {"x": [null]}], "small": 65535, "share": 1, "open": true}"#,
            r#"{"rules": [], "small": null, "inner": {"a": 0}, "kind": "plain"}"#,
            r#"{"rules": [], "kind": {"rich": {"a": 1}}, "name": "x"}"#,
        ] {
            read::<Outer>(text.as_bytes(), "E").expect(text);
        }
    }

    #[test]
    fn tells_what_is_wrong_and_where() {
        for (text, sentence) in [
            (
                "[[]]",
                "the document is a list: expected an object, as in `{\"field\": ...}`",
            ),
            (
                "7",
                "the document is 7: expected an object, as in `{\"field\": ...}`",
            ),
            ("{}", "the document lacks the field `rules`"),
            (
                r#"{"rules": {}}"#,
                "`rules` is an object: expected a list, as in `[...]`",
            ),
            (
                r#"{"rules": [], "small": 65536}"#,
                "`small` is 65536: expected a whole number from 0 to 65535, without quotes, as in `3`",
            ),
            (
                r#"{"rules": [], "share": "1"}"#,
                "`share` is a text: expected a number without quotes, as in `0.5`",
            ),
            (
                r#"{"rules": [], "name": 1}"#,
                "`name` is 1: expected a text in double quotes",
            ),
            (
                r#"{"rules": [], "open": 1}"#,
                "`open` is 1: expected `true` or `false`, without quotes",
            ),
            (
                r#"{"rules": [], "inner": [1]}"#,
                "`inner` is a list: expected an object, as in `{\"field\": ...}`",
            ),
            (
                r#"{"rules": [], "kind": {"rich": {"a": -1}}}"#,
                "`kind.rich.a` is -1: expected a whole number from 0 to 18446744073709551615, without quotes, as in `3`",
            ),
            (
                r#"{"rules": [], "kind": {"rich": [1]}}"#,
                "`kind.rich` is a list: expected an object, as in `{\"field\": ...}`",
            ),
            (
                r#"{"rules": [], "kind": "rich"}"#,
                "`kind.rich` lacks its settings: expected `{\"rich\": {...}}`",
            ),
            (
                r#"{"rules": [], "kind": {"plain": {}}}"#,
                "`kind.plain` has no settings: expected the name alone, `\"plain\"`",
            ),
            (
                r#"{"rules": [], "kind": "x"}"#,
                "`kind` cannot be `x`: expected `plain` or `rich`",
            ),
            (
                r#"{"rules": [], "kind": 1}"#,
                "`kind` is 1: expected one of `plain` or `rich`",
            ),
            (
                r#"{"rules": [], "kind": {}}"#,
                "`kind` has 0 fields: expected one, out of `plain` or `rich`",
            ),
            (
                r#"{"rules": [], "more": 1}"#,
                "the document has an unknown field `more`: expected `small`, `share`, `name`, `open`, `inner`, `kind` or `rules`",
            ),
            (
                "{",
                "the document cannot be read: EOF while parsing an object at line 1 column 1",
            ),
            (
                r#"{"rules": [{"a": 1, "a": 1}]}"#,
                "the document cannot be read: the field `a` stands twice at line 1 column 23",
            ),
        ] {
            let error = read::<Outer>(text.as_bytes(), "E").expect_err(text);
            assert_eq!(error, format!("{sentence}; example: E"), "{text}");
        }
    }

    #[test]
    fn rules_count_from_one() {
        let refuse = |value: Value| match value.as_u64() {
            Some(_) => Ok(()),
            None => Err("no".to_string()),
        };
        let error = each_rule(vec![1.into(), "x".into()], refuse).unwrap_err();
        assert_eq!(error, "rule 2: no");
        let error = each_rule(vec![1.into(); RULES_MAX + 1], refuse).unwrap_err();
        assert!(error.contains("at most 100 rules"), "{error}");
    }
}
