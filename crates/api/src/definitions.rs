//! The custom resource definitions as they are installed: what the derive makes, and what it can't say.

use crate::{Freeze, NodeUpdate, Rollback, UpdatePolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};
use kube_core::CustomResourceExt as _;

/// Every custom resource definition, in the order they are documented.
#[must_use]
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    let mut policy = UpdatePolicy::crd();
    for root in roots(&mut policy) {
        // The derive puts rules on the spec; this one needs the object's metadata, so it stands on the root.
        root.x_kubernetes_validations.get_or_insert_default().push(ValidationRule {
            rule: "size(self.metadata.name) <= 63".to_owned(),
            message: Some("the name becomes a label value and a metric label: use at most 63 characters".to_owned()),
            ..ValidationRule::default()
        });
    }
    let mut all = vec![policy, NodeUpdate::crd(), Freeze::crd(), Rollback::crd()];
    for root in all.iter_mut().flat_map(roots) {
        drop_rust_formats(root);
    }
    all
}

fn roots(crd: &mut CustomResourceDefinition) -> impl Iterator<Item = &mut JSONSchemaProps> {
    let schemas = crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut())
}

/// Rust's unsigned integers are no format of OpenAPI, and the API server warns of each; their bounds stand beside them.
fn drop_rust_formats(schema: &mut JSONSchemaProps) {
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        drop_rust_formats(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_rust_formats(items);
    }
}
