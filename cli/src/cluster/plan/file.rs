//! A policy in a file, with everything that is wrong about it said at once and in the file's own words.

use anyhow::{Context as _, bail, ensure};
use bascule_api as api;
use serde_json::Value;
use std::{io::Read as _, path::Path};

/// The longest file that is read.
const LONGEST: u64 = 1024 * 1024;

/// Reads a policy; `-` is stdin.
///
/// # Errors
/// With a sentence that says what is wrong with the file.
pub(super) fn read(path: &Path) -> anyhow::Result<api::UpdatePolicy> {
    let mut text = String::new();
    let shown = path.display();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().take(LONGEST).read_to_string(&mut text).context("can't read stdin")?;
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("can't read {shown}"))?;
        file.take(LONGEST).read_to_string(&mut text).with_context(|| format!("can't read {shown}"))?;
    }
    parse(&text).with_context(|| format!("{shown} can't be used"))
}

fn parse(text: &str) -> anyhow::Result<api::UpdatePolicy> {
    let document: Value = serde_saphyr::from_str(text).context("it is no YAML of one document")?;
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    ensure!(kind == "UpdatePolicy", "it is no UpdatePolicy (its kind is {kind:?})");
    let version = document.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    ensure!(
        version == "bascule.dev/v1alpha1",
        "its apiVersion is {version:?}; this program knows bascule.dev/v1alpha1"
    );
    let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    ensure!(!name.is_empty(), "it has no metadata.name");
    let mut unknown = Vec::new();
    let known = api::Fields::known().context("this program's own list of fields can't be used")?;
    let known = known.get("UpdatePolicy").and_then(|policy| policy.properties.get("spec"));
    if let (Some(spec), Some(known)) = (document.get("spec"), known) {
        fields(spec, known, "spec", &mut unknown);
    }
    if !unknown.is_empty() {
        bail!("there is no field {}", unknown.join(", "));
    }
    let policy: api::UpdatePolicy = serde_json::from_value(document).context("a field is not what it should be")?;
    bascule_planner::validate(&policy.spec).context("the policy would not be accepted")?;
    Ok(policy)
}

/// Fields that the API server would drop without a word.
fn fields(value: &Value, known: &api::Fields, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            // A map of what anybody likes.
            if known.properties.is_empty() {
                return;
            }
            for (key, value) in map {
                let path = format!("{path}.{key}");
                match known.properties.get(key) {
                    Some(known) => fields(value, known, &path, unknown),
                    None => {
                        let hint = super::super::problem::nearest(key, known.properties.keys().map(String::as_str));
                        let hint = hint.first().map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
                        unknown.push(format!("{path}{hint}"));
                    }
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &known.items else { return };
            for (index, value) in list.iter().enumerate() {
                fields(value, items, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: bascule.dev/v1alpha1\nkind: UpdatePolicy\nmetadata: {name: workers}\nspec:\n  nodeSelector: {}\n  source: {repository: 'https://a.example/os', channel: stable}\n";

    fn refused(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn a_policy_is_read() {
        assert_eq!(parse(GOOD).unwrap().metadata.name.as_deref(), Some("workers"));
    }

    #[test]
    fn every_policy_of_the_cookbook_can_be_used() {
        let page = include_str!("../../../../docs/cookbook.md");
        let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
        let blocks: Vec<&str> = blocks.filter(|block| block.contains("kind: UpdatePolicy")).collect();
        assert!(blocks.len() >= 6);
        for block in blocks {
            parse(block).unwrap_or_else(|error| panic!("{error:#}\n{block}"));
        }
    }

    /// Some pages show a part of a policy's spec and no more.
    #[test]
    fn every_part_of_a_policy_that_a_page_shows_can_be_used() {
        let known = api::Fields::known().unwrap();
        let spec = &known["UpdatePolicy"].properties["spec"].properties;
        let mut seen = 0;
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")).unwrap() {
            let page = entry.unwrap().path();
            let Ok(text) = std::fs::read_to_string(&page) else { continue };
            for block in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
                let begins = block.split_once(':').is_some_and(|(field, _)| spec.contains_key(field));
                if !begins {
                    continue;
                }
                seen += 1;
                let inside: String = block.lines().map(|line| format!("  {line}\n")).collect();
                parse(&format!("{GOOD}{inside}"))
                    .unwrap_or_else(|error| panic!("{}: {error:#}\n{block}", page.display()));
            }
        }
        assert!(seen >= 2, "{seen}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("kind: [", "no YAML"),
            ("kind: Deployment", "no UpdatePolicy"),
            (&GOOD.replace("v1alpha1", "v9"), "knows bascule.dev/v1alpha1"),
            (&GOOD.replace("{name: workers}", "{}"), "metadata.name"),
            (&format!("{GOOD}  maintenanceWindow: []\n"), "spec.maintenanceWindow (did you mean maintenanceWindows?)"),
            (&format!("{GOOD}  failureThreshold: many\n"), "invalid type"),
            (
                &format!(
                    "{GOOD}  maintenanceWindows: [{{schedule: '0 2 * * *', duration: 1h, timeZone: Europe/Berln}}]\n"
                ),
                "Europe/Berln",
            ),
            (&format!("{GOOD}  minReleaseAge: soon\n"), "'soon' is not a duration"),
        ] {
            let said = refused(text);
            assert!(said.contains(part), "{part:?} in {said:?}");
        }
    }
}
