//! Names of what the agent lays down and has not finished. No boot loader looks at them, and all that is called so is the
//! agent's.

use bascule_api::Digest;

/// Name under which a boot image waits. No boot loader looks at files that don't end in `.efi`.
pub fn waiting_name(digest: &Digest) -> String {
    format!("bascule-{}.tmp", start_of(digest))
}

/// Name under which a boot image is written.
pub fn unfinished_name(digest: &Digest) -> String {
    format!("bascule-{}.part", start_of(digest))
}

/// The first 16 hex digits of a digest.
pub(crate) fn start_of(digest: &Digest) -> String {
    digest.as_str().trim_start_matches("sha256:").chars().take(16).collect()
}

/// Takes the name of a waiting boot image apart: the start of its digest.
pub fn parse_waiting(file: &str) -> Option<&str> {
    let start = file.strip_prefix("bascule-")?.strip_suffix(".tmp")?;
    (start.len() == 16 && start.bytes().all(|b| b.is_ascii_hexdigit())).then_some(start)
}

/// Whether a file is one that was never finished, or what power loss left of a waiting one: where a directory entry spans
/// two sectors, its long name can go and the short one stay.
pub fn is_unfinished(file: &str) -> bool {
    let short =
        |ending| file.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bascul~")) && file.ends_with(ending);
    (file.starts_with("bascule-") && file.ends_with(".part")) || short(".TMP") || short(".PAR")
}
