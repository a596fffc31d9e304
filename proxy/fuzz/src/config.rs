//! [`config`]: any text as a configuration. Its own file, since the targets for `wire` do without the
//! control plane; that one's tests take it from here.

use std::path::Path;

use controlplane::config::{File, check};

/// What must not be shown.
const KEY: &str = "sk_test_4eC39HqLyjWDarjtT1zdp7dc";

/// Reading a configuration ends with a draft or with what is wrong with it, the same each time; every
/// place that is named is in the text; and a key that stands where its reference belongs is not shown.
///
/// The first byte says whether the input is the whole text, or what stands around such a key.
pub fn config(data: &[u8]) {
    let Some((&options, input)) = data.split_first() else {
        return;
    };
    let input = String::from_utf8_lossy(input);
    let has_key = options & 1 == 1;
    let text = if has_key {
        let at = (usize::from(options >> 1) * input.len()) >> 7;
        let at = (0..=at)
            .rev()
            .find(|&at| input.is_char_boundary(at))
            .unwrap_or(0);
        let (before, after) = input.split_at(at);
        format!("[[route]]\nhost = \"a.example.com\"\ncredential = \"{before}{KEY}{after}\"\n")
    } else {
        input.into_owned()
    };
    let told = told(&text);
    assert_eq!(
        told,
        self::told(&text),
        "another time it says something else"
    );
    // Who says where a key is may say so: then it is a name or a path.
    let is_reference = text.contains("://");
    // A quote ends the value: what follows may be a field's name, and names are shown.
    let is_whole = !text[..text.find(KEY).unwrap_or(0)]
        .trim_start_matches("[[route]]\nhost = \"a.example.com\"\ncredential = \"")
        .contains(['"', '\n', '\\']);
    if has_key && !is_reference && is_whole {
        assert!(!told.contains(KEY), "{told}");
    }
}

/// What `check` says of a text.
fn told(text: &str) -> String {
    let path = Path::new("claviger.toml");
    let file = File::parse(path, text);
    let (_, report) = check(&file);
    let plain = report.render(false);
    assert!(report.has_errors() || !plain.contains("error:"), "{plain}");
    plain
}
