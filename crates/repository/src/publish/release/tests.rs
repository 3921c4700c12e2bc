use serde_json::json;

use super::*;

fn release(version: &str, state_version: Option<u32>, downgrade: bool) -> Release {
    let release = json!({
        "version": version, "manifests": {}, "publishedAt": "2026-01-01T00:00:00Z", "stateVersion": state_version,
        "downgrade": downgrade,
    });
    serde_json::from_value(release).unwrap()
}

#[test]
fn no_channel_gets_a_release_that_all_its_nodes_would_refuse() {
    let releases = vec![release("1.0", None, false), release("1.2", Some(3), false), release("1.4", Some(2), true)];
    let (product, name) = ("acme-os".parse().unwrap(), "stable".parse().unwrap());
    let channel = Channel { format: channel::FORMAT, product, channel: name, releases };
    for (offered, refused) in [
        (release("1.5", Some(3), false), false),
        (release("1.5", Some(4), false), false),
        (release("1.5", Some(2), false), true),
        (release("1.5", None, false), true),
        // Nodes are to go back, and a person is to accept it.
        (release("1.5", Some(2), true), false),
        // Between those that are there: only what is older counts.
        (release("1.1", None, false), false),
        (release("1.3", Some(2), false), true),
    ] {
        let said = refuse_older_state(&channel, &offered).map_err(|error| error.to_string());
        assert_eq!(said.is_err(), refused, "{offered:?}: {said:?}");
        let Err(said) = said else { continue };
        assert!(said.contains("1.2 has state version 3") && said.contains("at 3 or above"), "{said}");
    }
}
