//! What a release's boot entry is called, by whoever puts one there: the maker of a disk first, then the agent.

/// File name of an entry without counters and ending: one that FAT can have and that no counter can be confused with, for no
/// version has a `+`. Whoever sorts by file names sorts as releases do.
pub fn entry_base(product: &str, version: &str) -> String {
    format!("{product}_{version}")
}
