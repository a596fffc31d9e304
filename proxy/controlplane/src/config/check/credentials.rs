//! `[credential.NAME]`: where keys are, and how they are written.

use policy::Injection;

use super::Checker;
use crate::config::draft::CredentialDraft;
use crate::config::file::{Inject, Item};
use crate::config::report::{Problem, one_of, quote};
use crate::config::written::Written;
use crate::config::{file, shape};

impl Checker<'_> {
    pub(super) fn credentials(&mut self) {
        let file = self.file;
        for item in &file.credentials {
            let fields = &item.fields;
            self.table_name(item, "credential");
            if item.name == "none" {
                let place = file.place(item);
                self.push(
                    Problem::error(
                        "a credential cannot be named `none`: routes write \"none\" to use no key",
                    )
                    .at(place),
                );
            }
            let injection = self.injection(item);
            self.injections.insert(item.name.clone(), injection);
            let reference = match &fields.source {
                None if item.is_unread("source") => None,
                None => {
                    let place = file.place(item);
                    self.push(
                        Problem::error(format!("the credential {} has no `source`", quote(&item.name)))
                            .at(place)
                            .cure(format!("put the key into a file and write source = \"file:///etc/claviger/keys/{}\"", plain_file_name(&item.name))),
                    );
                    None
                }
                Some(written) => self.reference(file.place_of(item, &written.span), &written.value),
            };
            let index = reference.map(|reference| {
                self.credentials.push(CredentialDraft {
                    name: item.name.clone(),
                    reference,
                    allow_world_readable: fields
                        .allow_world_readable
                        .as_ref()
                        .is_some_and(|allow| allow.value),
                    place: fields.source.as_ref().map_or_else(
                        || file.place(item),
                        |source| file.place_of(item, &source.span),
                    ),
                });
                self.credentials.len() - 1
            });
            self.credential_sections.insert(item.name.clone(), index);
        }
    }

    /// How a credential says that it is written; `None` leaves it to the preset.
    fn injection(&mut self, item: &Item<file::Credential>) -> Option<Injection> {
        let fields = &item.fields;
        let file = self.file;
        let how = fields.inject.as_ref().map(|inject| inject.value);
        let slots = [
            (
                "name",
                &fields.name,
                [Inject::Header, Inject::Query].as_slice(),
            ),
            ("template", &fields.template, &[Inject::Header]),
            ("username", &fields.username, &[Inject::Basic]),
        ];
        for (field, written, belongs) in slots {
            let Some(written) = written else { continue };
            if how.is_some_and(|how| belongs.contains(&how)) || item.is_unread("inject") {
                continue;
            }
            let with: Vec<&str> = belongs
                .iter()
                .map(|inject| match inject {
                    Inject::Bearer => "inject = \"bearer\"",
                    Inject::Basic => "inject = \"basic\"",
                    Inject::Header => "inject = \"header\"",
                    Inject::Query => "inject = \"query\"",
                })
                .collect();
            let with = one_of(with);
            self.push(
                Problem::error(format!("`{field}` without {with}, where it belongs"))
                    .at(file.place_of(item, &written.span))
                    .cure(format!("write {with} too, or leave `{field}` out")),
            );
        }
        let place = |written: &Option<Written<String>>| {
            written.as_ref().map_or_else(
                || file.place(item),
                |written| file.place_of(item, &written.span),
            )
        };
        match how? {
            Inject::Bearer => Some(Injection::Bearer),
            Inject::Basic => {
                let username = fields
                    .username
                    .as_ref()
                    .map(|username| username.value.clone());
                if let Some(name) = &username
                    && (name.contains(':') || name.chars().any(char::is_control))
                {
                    self.push(
                        Problem::error(
                            "a user name with a colon or a control character (RFC 7617, section 2)",
                        )
                        .at(place(&fields.username)),
                    );
                }
                Some(Injection::Basic { username })
            }
            Inject::Header => {
                let name = match &fields.name {
                    Some(name) => name.value.clone(),
                    None => {
                        if !item.is_unread("name") {
                            self.push(
                                Problem::error("`inject = \"header\"` without `name`")
                                    .at(file.place(item))
                                    .cure("write the header's name, as in name = \"X-Api-Key\""),
                            );
                        }
                        return None;
                    }
                };
                self.header_name(&name, place(&fields.name), true);
                let template = fields
                    .template
                    .as_ref()
                    .map_or_else(|| "{key}".to_owned(), |template| template.value.clone());
                if template.matches("{key}").count() != 1
                    || !template.bytes().all(|byte| (0x20..0x7f).contains(&byte))
                {
                    self.push(
                        Problem::error("not a template for a header")
                            .at(place(&fields.template))
                            .expected(
                                "printable ASCII with `{key}` exactly once, as in \"Token {key}\"",
                            ),
                    );
                }
                Some(Injection::Header { name, template })
            }
            Inject::Query => match &fields.name {
                Some(name) if name.value.is_empty() => {
                    self.push(Problem::error("an empty parameter name").at(place(&fields.name)));
                    None
                }
                Some(name) => Some(Injection::Query {
                    name: name.value.clone(),
                }),
                None => {
                    if !item.is_unread("name") {
                        self.push(
                            Problem::error("`inject = \"query\"` without `name`")
                                .at(file.place(item))
                                .cure("write the parameter's name, as in name = \"key\""),
                        );
                    }
                    None
                }
            },
        }
    }
}

/// A name as a file's name, for a cure that can be copied.
pub(super) fn plain_file_name(name: &str) -> String {
    if shape::has_key(name)
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        "NAME".to_owned()
    } else {
        name.to_owned()
    }
}
