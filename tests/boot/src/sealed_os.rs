//! The reference OS with a volume that only its TPM opens, while what boots is a release that the vendor signed. What differs from
//! the usual one lies in `tests/boot/os-sealed/`.

use std::path::Path;

use bascule_os_image::{ImageFile, Recipe};

use crate::example_os::folder;
use crate::reference::{self, Edition, Programs};

/// Beside the packages of the reference OS. systemd loads the libraries for a TPM only where they are.
pub(crate) const PACKAGES: [&str; 4] = ["e2fsprogs", "libtss2-esys-3.0.2-0t64", "libtss2-rc0t64", "systemd-cryptsetup"];
/// Makes the volume at the first start.
const MAKER: &str = "bascule-test-seal.service";

/// The recipe of one edition, with the vendor's first root of trust.
///
/// # Errors
/// When a file can't be read.
pub fn recipe(edition: Edition<'_>, programs: &Programs, trust_root: &str) -> anyhow::Result<Recipe> {
    let mut recipe = reference::recipe(edition, programs, trust_root)?;
    let files = &mut recipe.files;
    files.extend(folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("os-sealed"), "")?);
    let link = format!("etc/systemd/system/sysinit.target.wants/{MAKER}");
    files.push(ImageFile::link(&link, &format!("/usr/lib/systemd/system/{MAKER}")));
    Ok(recipe)
}
