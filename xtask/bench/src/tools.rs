//! What other tools move for the same pair. Each gives bytes to fetch; the shell line is the whole recipe.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bascule_image::digest::Sha256;

use crate::measure::{Usage, measured};
use crate::roots::Pair;

/// Names of the tools in the order of the table.
pub(crate) const ALL: [&str; 7] =
    ["zstd-15", "zstd-patch-9", "zstd-patch-19", "xdelta3", "casync", "bita", "block-index"];

/// What a row of the table is called.
pub(crate) fn describe(tool: &str) -> &'static str {
    match tool {
        "zstd-15" => "whole image, zstd -15",
        "zstd-patch-9" => "zstd -9 --long=30 --patch-from",
        "zstd-patch-19" => "zstd -19 --long=30 --patch-from",
        "xdelta3" => "xdelta3 -9, 768 MiB source window",
        "casync" => "casync, default chunks (new chunks in the store)",
        "bita" => "bita, default chunks (fetched by `bita clone --seed`, without the archive's header)",
        "block-index" => "4 KiB block index, 16 KiB groups in zstd -15 (computed; RAUC's adaptive update)",
        "full" => "**Bascule full pack**",
        "delta-fast" => "**Bascule delta pack, fast**",
        "delta" => "**Bascule delta pack**",
        _ => "",
    }
}

/// The whole image with zstd -15, kept to be downloaded and unpacked.
pub(crate) fn whole(work: &Path, pair: &Pair) -> PathBuf {
    work.join(format!("{}-whole.zst", pair.name))
}

/// Runs a tool and returns the bytes it would fetch.
pub(crate) fn run(work: &Path, pair: &Pair, tool: &str) -> Result<(u64, Usage)> {
    let (base, image) = (pair.base.display(), pair.image.display());
    let output = work.join("tool-output");
    let out = output.display();
    let _ = (fs::remove_file(&output), fs::remove_dir_all(work.join("store")));
    let size_after = |usage| Ok((fs::metadata(&output)?.len(), usage));
    match tool {
        "zstd-15" => {
            let whole = whole(work, pair);
            let usage = measured(work, &format!("zstd -q -f -15 {image} -o {}", whole.display()))?;
            Ok((fs::metadata(whole)?.len(), usage))
        }
        "zstd-patch-9" | "zstd-patch-19" => {
            let level = tool.trim_start_matches("zstd-patch");
            size_after(measured(work, &format!("zstd -q {level} --long=30 --patch-from={base} {image} -o {out}"))?)
        }
        "xdelta3" => size_after(measured(work, &format!("xdelta3 -q -e -9 -B 805306368 -s {base} {image} {out}"))?),
        "casync" => {
            let make = |image| format!("casync make --store={out}.castr {out}.caibx {image}");
            let store = work.join("tool-output.castr");
            let _ = fs::remove_dir_all(&store);
            measured(work, &make(&base))?;
            let before = folder_size(&store)?;
            let usage = measured(work, &make(&image))?;
            let after = folder_size(&store)? + fs::metadata(work.join("tool-output.caibx"))?.len();
            fs::remove_dir_all(&store)?;
            Ok((after - before, usage))
        }
        "bita" => {
            let bita = work.join("tools/bin/bita");
            if !bita.exists() {
                let root = work.join("tools").display().to_string();
                crate::measure::command(
                    "cargo",
                    ["install", "--quiet", "--locked", "--root", &root, "bita"],
                    [] as [&str; 0],
                )?;
            }
            let bita = bita.display();
            let usage = measured(work, &format!("{bita} compress -f -i {image} {out}"))?;
            let log = work.join("bita.log");
            let clone = format!("{bita} clone -f --seed {base} {out} {out}.clone > {} 2>&1", log.display());
            measured(work, &clone)?;
            fs::remove_file(work.join("tool-output.clone"))?;
            let fetched = fetched_by_bita(&fs::read_to_string(log)?).context("bita did not say what it fetched")?;
            Ok((fetched, usage))
        }
        _ => {
            let program = std::env::current_exe()?;
            let note = work.join("block-index");
            let line = format!("{} block-index {image} {base} > {}", program.display(), note.display());
            let usage = measured(work, &line)?;
            Ok((fs::read_to_string(note)?.trim().parse()?, usage))
        }
    }
}

fn folder_size(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        size += if data.is_dir() { folder_size(&entry.path())? } else { data.len() };
    }
    Ok(size)
}

/// `bita clone` says "Fetched 121.6 MiB (127484583 bytes) from archive …"; the archive's header is not counted in it.
fn fetched_by_bita(log: &str) -> Option<u64> {
    let line = log.lines().find(|line| line.starts_with("Fetched ") && line.contains(" from archive"))?;
    line.split_once('(')?.1.split_once(' ')?.0.parse().ok()
}

/// What RAUC's adaptive update (block-hash-index) would fetch: the index of 32 bytes for each 4 KiB block, and of a squashfs
/// with 16 KiB blocks each group of four in which a block is that the base does not have anywhere. RAUC itself can't stream
/// here (it needs NBD), so this is computed.
pub(crate) fn block_index(image: &Path, base: &Path) -> Result<u64> {
    let mut known = HashSet::new();
    each(base, 4096, |block| {
        known.insert(Sha256::of(block));
        Ok(())
    })?;
    let mut fetched = 0;
    each(image, 16 << 10, |group| {
        fetched += 32 * group.len().div_ceil(4096) as u64;
        if group.chunks(4096).any(|block| !known.contains(&Sha256::of(block))) {
            fetched += zstd::bulk::compress(group, 15)?.len() as u64;
        }
        Ok(())
    })?;
    Ok(fetched)
}

fn each(path: &Path, length: usize, mut visit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut file = File::open(path)?;
    let mut chunk = Vec::with_capacity(length);
    loop {
        chunk.clear();
        file.by_ref().take(length as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty() {
            return Ok(());
        }
        visit(&chunk)?;
    }
}
