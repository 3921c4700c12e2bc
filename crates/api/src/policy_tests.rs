//! docs/policies.md takes the fields one by one: each is there, with the default that the types have, and with an example of
//! something else.

use crate::{UpdatePolicySpec, custom_resource_definitions};
use serde_json::{Value, json};

const PAGE: &str = include_str!("../../../docs/policies.md");
const HEAD: &str = "| field | default | example | what you see |";

/// A row of the page: the fields that it is about, their defaults and their examples.
struct Row {
    fields: Vec<String>,
    default: &'static str,
    example: &'static str,
}

fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn rows() -> Vec<Row> {
    let tables = PAGE.split(HEAD).skip(1).map(|table| table.lines().skip(2).take_while(|line| line.starts_with('|')));
    let row = |line: &'static str| {
        let mut cells = line.trim_start_matches("| ").split(" |").map(str::trim);
        let mut cell = || cells.next().unwrap();
        let (field, default, example) = (cell(), cell(), cell());
        let mut fields: Vec<String> = Vec::new();
        for span in spans(field) {
            let parent = fields.first().and_then(|first| first.rsplit_once('.')).map(|(parent, _)| parent.to_owned());
            // `.onTimeout` beside `drain.timeout`.
            let full = match (span.strip_prefix('.'), parent) {
                (Some(last), Some(parent)) => format!("{parent}.{last}"),
                _ => span.to_owned(),
            };
            fields.push(full);
        }
        Row { fields, default, example }
    };
    tables.flatten().map(row).collect()
}

fn at<'a>(document: &'a Value, field: &str) -> Option<&'a Value> {
    field.split('.').try_fold(document, |value, part| value.get(part))
}

#[test]
fn the_page_has_the_default_of_each_field_and_examples_of_something_else() {
    let given =
        json!({"nodeSelector": {}, "source": {"repository": "https://images.example.com", "channel": "stable"}});
    let spec: UpdatePolicySpec = serde_json::from_value(given.clone()).unwrap();
    let defaults = serde_json::to_value(&spec).unwrap();
    let says_nothing = |value: &Value| value.is_null() || *value == json!([]) || *value == json!({});
    for Row { fields, default, example } in rows() {
        assert!(!fields.is_empty() || default.is_empty(), "'{default}' is the default of no field");
        for (index, field) in fields.iter().enumerate() {
            let value = at(&defaults, field).filter(|value| !says_nothing(value));
            if field.contains("[]") {
                assert_eq!(default, "", "{field}");
            } else if at(&given, field).is_some() {
                assert_eq!(default, "required", "{field}");
            } else if let Some(value) = value {
                let printed = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                assert_eq!(spans(default).get(index), Some(&printed.as_str()), "{field}");
                assert_ne!(spans(example).get(index), Some(&printed.as_str()), "{field}: the default is no example");
            } else {
                assert!(default.starts_with("none"), "{field}: '{default}'");
            }
        }
    }
}

#[test]
fn each_field_is_on_the_page() {
    let policy = custom_resource_definitions().swap_remove(0);
    let schema = policy.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
    let fields = schema.properties.unwrap()["spec"].properties.clone().unwrap();
    let told: Vec<String> = rows().into_iter().flat_map(|row| row.fields).collect();
    for (field, schema) in fields {
        for below in schema.properties.unwrap_or_default().keys() {
            let whole = format!("{field}.{below}");
            assert!(told.contains(&field) || told.contains(&whole), "docs/policies.md does not tell of {whole}");
        }
        let begins = |told: &String| *told == field || told.starts_with(&format!("{field}."));
        assert!(told.iter().any(begins), "docs/policies.md does not tell of {field}");
    }
}
