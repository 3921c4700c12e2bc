//! Builds images by name, for a look at them and for filling the cache ahead of tests.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use bascule_os_image::{Archive, Distribution, Recipe, Store, container_host, ensure_qemu, sandbox};

const USAGE: &str = "usage: bascule-os-image sandbox | container-host | qemu";

fn main() -> ExitCode {
    match run(std::env::args().nth(1).as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(what: Option<&str>) -> Result<(), Box<dyn std::error::Error>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."));
    let store = Store::new(workspace);
    let recipes: Vec<Recipe> = match what {
        Some("sandbox") => sandbox().to_vec(),
        Some("container-host") => vec![
            container_host("1.0", Distribution::Trixie, Archive::Release, Archive::Release),
            container_host("1.1", Distribution::Trixie, Archive::Updates, Archive::Updates),
            container_host("1.1-same-kernel", Distribution::Trixie, Archive::Updates, Archive::Release),
            container_host("0.9", Distribution::Bookworm, Archive::Updates, Archive::Updates),
        ],
        Some("qemu") => return Ok(ensure_qemu(&store, &say)?),
        _ => return Err(USAGE.into()),
    };
    for recipe in recipes {
        let image = store.build(&recipe, &say)?;
        writeln!(io::stdout(), "{} {}", image.version, image.root().display())?;
    }
    Ok(())
}

fn say(line: &str) {
    // Nobody to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "{line}");
}
