//! crates/api/fields.json: the names of all fields, for `bascule plan` and `bascule doctor`.

use super::Generated;
use anyhow::Context as _;

pub(super) fn file() -> anyhow::Result<Generated> {
    let fields = bascule_api::Fields::of_definitions().context("reading the fields of the definitions")?;
    let content = serde_json::to_string_pretty(&fields).context("printing the fields")? + "\n";
    Ok(Generated { path: "crates/api/fields.json".to_owned(), content })
}
