//! The names of all fields, without what is said of them: for programs that look for one that does not exist. Making the
//! definitions takes many times as long as everything else that such a program does.

use crate::custom_resource_definitions;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{collections::BTreeMap, fmt};

/// What `cargo xtask generate` wrote.
const KNOWN: &str = include_str!("../fields.json");

/// The fields below a place of a schema.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fields {
    /// Of an object: by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, Fields>,
    /// Of what a list holds.
    #[serde(default, deserialize_with = "schema", skip_serializing_if = "Option::is_none")]
    pub items: Option<Box<Fields>>,
    /// Of the values of a map.
    #[serde(default, deserialize_with = "schema", skip_serializing_if = "Option::is_none")]
    pub additional_properties: Option<Box<Fields>>,
}

impl Fields {
    /// The fields of each kind of this version, by the kind's name.
    ///
    /// # Errors
    /// The text that they are kept in is no list of fields; a test holds that it is.
    pub fn known() -> serde_json::Result<BTreeMap<String, Self>> {
        serde_json::from_str(KNOWN)
    }

    /// The same, made from the definitions.
    ///
    /// # Errors
    /// A definition has a schema that can't be written down as JSON.
    pub fn of_definitions() -> serde_json::Result<BTreeMap<String, Self>> {
        let mut all = BTreeMap::new();
        for definition in custom_resource_definitions() {
            let version = definition.spec.versions.into_iter().next();
            let schema = version.and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
            let fields = serde_json::from_value(serde_json::to_value(schema.unwrap_or_default())?)?;
            all.insert(definition.spec.names.kind, fields);
        }
        Ok(all)
    }
}

/// A schema, or a word whether anything may stand there, which is none.
fn schema<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<Fields>>, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = Option<Box<Fields>>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a schema or a boolean")
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            Fields::deserialize(MapAccessDeserializer::new(map)).map(|fields| Some(Box::new(fields)))
        }
    }
    deserializer.deserialize_any(Either)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_those_of_the_definitions() {
        assert_eq!(Fields::known().unwrap(), Fields::of_definitions().unwrap(), "run `cargo xtask generate`");
    }

    #[test]
    fn a_schema_gives_its_fields_and_nothing_else() {
        let text = r#"{"type": "object", "description": "properties", "additionalProperties": true, "properties": {
            "list": {"type": "array", "items": {"properties": {"name": {"type": "string", "default": {"items": 1}}}}},
            "map": {"additionalProperties": {"properties": {"value": {}}}}, "open": {"additionalProperties": false}}}"#;
        let fields: Fields = serde_json::from_str(text).unwrap();
        let short = r#"{"properties":{"list":{"items":{"properties":{"name":{}}}},"map":{"additionalProperties":{"properties":{"value":{}}}},"open":{}}}"#;
        assert_eq!(serde_json::to_string(&fields).unwrap(), short);
        assert_eq!(serde_json::from_str::<Fields>(short).unwrap(), fields);
    }
}
