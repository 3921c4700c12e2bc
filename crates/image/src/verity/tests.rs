use std::num::NonZeroUsize;
use std::process::Command;

use super::*;
use crate::digest::Sha256;
use crate::work::Watch;

const WORKERS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

fn parameters() -> Parameters {
    Parameters { salt: (0..32).collect(), uuid: *b"0123456789abcdef" }
}

/// Bytes that differ from block to block, without a random source.
fn image(blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK_SIZE).map(|at| (at / 7 + at / BLOCK_SIZE * 31) as u8).collect()
}

fn tree_of(image: &[u8]) -> Tree {
    build(&image.to_vec(), image.len() as u64, &parameters(), WORKERS, &Watch::none()).unwrap()
}

/// Runs Debian's veritysetup (package cryptsetup-bin), the reference this module must agree with.
fn veritysetup(arguments: &[&str]) -> String {
    let output = Command::new("veritysetup").args(arguments).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output();
    let output = output.expect("veritysetup must be installed (Debian package cryptsetup-bin)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn agrees_with_veritysetup_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (data, hash) = (folder.path().join("data"), folder.path().join("hash"));
    let (data, hash) = (data.to_str().unwrap(), hash.to_str().unwrap());
    let uuid = uuid::Uuid::from_bytes(parameters().uuid).to_string();
    // Every shape of tree: no level, one level (one digest more and less than a block), two, three.
    for blocks in [1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1] {
        let image = image(blocks);
        std::fs::write(data, &image).unwrap();
        let _ = std::fs::remove_file(hash);
        let (uuid, salt) = (format!("--uuid={uuid}"), format!("--salt={}", hex::encode(&parameters().salt)));
        let report = veritysetup(&["format", data, hash, "--hash=sha256", &uuid, &salt]);
        let root = report.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim().to_owned();
        let tree = tree_of(&image);
        assert_eq!(tree.root_hash().to_string(), root, "{blocks} blocks");
        assert!(tree.to_bytes() == std::fs::read(hash).unwrap(), "{blocks} blocks");
        assert_eq!(tree.hash_size(), tree.to_bytes().len() as u64);

        std::fs::write(hash, tree.to_bytes()).unwrap();
        veritysetup(&["verify", data, hash, &root]);
    }
}

#[test]
fn leaves_may_come_in_any_order_but_all_must_come() {
    let image = image(300);
    let hasher = BlockHasher::new(&parameters());
    let builder = TreeBuilder::new(&parameters(), image.len() as u64);
    let digests = hasher.blocks(&image);
    for (at, part) in digests.chunks(64 * 32).enumerate().collect::<Vec<_>>().into_iter().rev() {
        builder.put(at as u64 * 64, part);
    }
    builder.put(300, &[7; 32]);
    assert_eq!(builder.finish(), Ok(tree_of(&image)));

    let builder = TreeBuilder::new(&parameters(), image.len() as u64);
    builder.put(1, &digests[32..]);
    assert_eq!(builder.finish(), Err(IncompleteTree { missing: 1, blocks: 300 }));
    assert!(TreeBuilder::new(&parameters(), 0).finish().is_err());
}

#[test]
fn verify_names_what_is_wrong() {
    let image = image(300);
    let tree = tree_of(&image);
    let hash = tree.to_bytes();
    let check = |data: &Vec<u8>, hash: &Vec<u8>, root: Sha256| {
        verify(data, hash, image.len() as u64, &parameters(), root, WORKERS, &Watch::none())
    };
    assert_eq!(check(&image, &hash, tree.root_hash()).unwrap(), tree);

    let mut bad = image.clone();
    bad[299 * BLOCK_SIZE] ^= 1;
    assert_eq!(check(&bad, &hash, tree.root_hash()).unwrap_err().category(), "root-hash-mismatch");
    assert_eq!(check(&image, &hash, Sha256::of(b"")).unwrap_err().category(), "root-hash-mismatch");
    let mut bad = hash.clone();
    bad[2 * BLOCK_SIZE + 5] ^= 1;
    let error = check(&image, &bad, tree.root_hash()).unwrap_err();
    assert!(matches!(error, CheckError::Tree { offset: 8192 }), "{error}");
    let mut bad = hash.clone();
    bad[64] ^= 1;
    let error = check(&image, &bad, tree.root_hash()).unwrap_err();
    assert!(
        matches!(error, CheckError::Superblock(SuperblockError::Field { field: "data block size", .. })),
        "{error}"
    );
    assert!(matches!(
        check(&image[..4096].to_vec(), &hash, tree.root_hash()),
        Err(CheckError::Read { what: "data", .. })
    ));
}

#[test]
fn superblocks_with_anything_else_are_refused() {
    let good = Superblock { parameters: parameters(), data_blocks: 300 };
    let bytes = good.to_bytes();
    assert_eq!(Superblock::parse(&bytes), Ok(good.clone()));
    for length in 0..bytes.len() {
        assert_eq!(Superblock::parse(&bytes[..length]), Err(SuperblockError::Truncated { length }));
    }
    // A changed bit is either refused or changes one of the three values that are free.
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes;
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(parsed) = Superblock::parse(&bad) {
            assert_ne!(parsed, good, "bit {bit} has no meaning");
            assert_eq!(parsed.to_bytes(), bad);
        }
    }
}
