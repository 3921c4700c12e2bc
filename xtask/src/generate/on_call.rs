//! The part of docs/on-call.md that a run of the sandbox writes: what an engineer on call reads while a rollout is under way.
//! That it is what `bascule` says today is checked by a test of `bascule`.

use anyhow::{Context as _, bail};
use std::{fs, path::Path};

const PAGE: &str = "docs/on-call.md";
const BEGIN: &str = "<!-- sandbox: begin (cargo xtask generate --on-call target/sandbox/on-call.md) -->\n";
const END: &str = "<!-- sandbox: end -->\n";

/// Replaces the part in the page.
pub(super) fn put(made: &Path, root: &Path) -> anyhow::Result<()> {
    let part = fs::read_to_string(made).with_context(|| {
        format!("reading {}, which `cargo xtask sandbox` writes when its act 4 is over", made.display())
    })?;
    let path = root.join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    fs::write(&path, with(&page, &part)?).with_context(|| format!("writing {}", path.display()))?;
    println!("wrote {PAGE}");
    Ok(())
}

fn with(page: &str, part: &str) -> anyhow::Result<String> {
    let Some((before, rest)) = page.split_once(BEGIN) else { bail!("{PAGE} has no line {BEGIN}") };
    let Some((_, after)) = rest.split_once(END) else { bail!("{PAGE} has no line {END}") };
    Ok(format!("{before}{BEGIN}{}\n{END}{after}", part.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_place_for_it_and_keeps_the_rest() {
        let page = include_str!("../../../docs/on-call.md");
        let other = with(page, "another run\n\n").unwrap();
        assert!(other.contains(&format!("{BEGIN}another run\n{END}")), "{other}");
        let (begin, end) = (page.find(BEGIN).unwrap() + BEGIN.len(), page.find(END).unwrap());
        assert_eq!(with(&other, &page[begin..end]).unwrap(), page);
        assert!(with("no place", "a run").is_err());
    }
}
