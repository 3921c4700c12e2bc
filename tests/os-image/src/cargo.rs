//! Calling cargo from a program that cargo itself started.

use std::process::Command;

/// What cargo sets for the programs it runs (The Cargo Book, "Environment variables Cargo sets for crates").
const SET_BY_CARGO: [&str; 5] =
    ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"];

/// cargo, as somebody at a shell would call it.
///
/// The build script of ring watches the variables that cargo sets for the programs it runs. Handed on to another cargo
/// they differ from those of a shell, and ring, with everything above it, is compiled anew each time.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let given = name.to_str().is_some_and(|name| SET_BY_CARGO.iter().any(|prefix| name.starts_with(prefix)));
        if given {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_set_for_this_test_is_not_handed_on() {
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "cargo runs this test");
        let command = cargo();
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert!(removed.contains(&"CARGO_PKG_NAME".as_ref()));
        assert!(!removed.contains(&"CARGO_HOME".as_ref()));
    }
}
