//! Builds images by name, for a look at them and for filling the cache ahead of tests; and initrds for trees that were made by hand
//! (`examples/debian/make-root`).

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use bascule_os_image::{Archive, Distribution, Recipe, Store, container_host, ensure_qemu, initrd, sandbox};

const USAGE: &str = "usage: bascule-os-image sandbox | container-host | qemu | initrd ROOT INIT OUT";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."));
    let store = Store::new(workspace);
    let recipes: Vec<Recipe> = match arguments {
        ["sandbox"] => sandbox().to_vec(),
        ["container-host"] => vec![
            container_host("1.0", Distribution::Trixie, Archive::Release, Archive::Release),
            container_host("1.1", Distribution::Trixie, Archive::Updates, Archive::Updates),
            container_host("1.1-same-kernel", Distribution::Trixie, Archive::Updates, Archive::Release),
            container_host("0.9", Distribution::Bookworm, Archive::Updates, Archive::Updates),
        ],
        ["qemu"] => return Ok(ensure_qemu(&store, &say)?),
        ["initrd", root, init, out] => {
            let root = Path::new(root);
            let os_release = fs::read_to_string(root.join("usr/lib/os-release"))?;
            return Ok(initrd::write(root, Path::new(init), &os_release, Path::new(out))?);
        }
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
