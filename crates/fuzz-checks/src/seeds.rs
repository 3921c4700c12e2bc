//! Good bytes of every kind, made by the code that writes them: where changing by chance begins.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use bascule_image::build::{self, Effort, Image, Options};
use bascule_image::digest::Sha256;
use bascule_image::uki::{self, Parts};
use bascule_image::verity::{Parameters, Superblock};
use bascule_image::work::Watch;

use crate::FRAME_LENGTH;

const BLOCK: usize = 4096;

/// What the frame of [`crate::frame`] must decode to: compressible, and like the base for half of its length.
pub(crate) fn frame_content() -> Vec<u8> {
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let shared = base().into_iter().skip(BLOCK).take(3 * BLOCK);
        shared.chain(std::iter::repeat_n(b'x', FRAME_LENGTH)).take(FRAME_LENGTH).collect()
    });
    CONTENT.clone()
}

/// The base that frames refer to: eight blocks of text that does not repeat.
pub(crate) fn base() -> Vec<u8> {
    static BASE: LazyLock<Vec<u8>> = LazyLock::new(|| text(8 * BLOCK));
    BASE.clone()
}

fn text(length: usize) -> Vec<u8> {
    (0_u64..)
        .flat_map(|number| format!("{:016x}\n", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).into_bytes())
        .take(length)
        .collect()
}

/// The index of a full pack and of a delta pack in which every codec occurs.
pub fn index() -> Vec<Vec<u8>> {
    let base = text(40 * BLOCK);
    let mut image = vec![0; FRAME_LENGTH];
    image.extend(base.get(2 * BLOCK..).unwrap_or_default().iter().take(FRAME_LENGTH));
    image.extend(frame_content());
    let mut changed: Vec<u8> = base.iter().copied().take(FRAME_LENGTH).collect();
    changed.iter_mut().step_by(9000).for_each(|byte| *byte ^= 1);
    image.extend(changed);
    image.extend(Sha256::of(b"noise").as_bytes().iter().cycle().take(BLOCK));
    let options = Options { effort: Effort::Fast, workers: NonZeroUsize::MIN, frame_size: FRAME_LENGTH as u32 };
    let this = Image { root_hash: Sha256::of(&image), bytes: &image };
    let other = Image { root_hash: Sha256::of(&base), bytes: &base };
    let (mut full, mut delta) = (Vec::new(), Vec::new());
    let built = [
        build::build_full(this, &mut full, &options, &Watch::none()),
        build::build_delta(this, other, &mut delta, &options, &Watch::none()),
    ];
    let packs = [full, delta];
    let index = |(built, pack): (Result<build::BuiltPack, _>, &Vec<u8>)| {
        let length = built.expect("packs in memory can be built").index.length as usize;
        pack.get(pack.len() - length..).unwrap_or_default().to_vec()
    };
    built.into_iter().zip(&packs).map(index).collect()
}

/// A manifest and a channel file with every field.
pub fn manifest() -> Vec<Vec<u8>> {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let index = format!(r#"{{"length":184,"digest":"{}"}}"#, digest("1"));
    let manifest = format!(
        r#"{{"format":1,"product":"acme-os","version":"41.3.0","architecture":"x86-64","image":{{"size":1048576}},
        "verity":{{"algorithm":"sha256","blockSize":4096,"salt":"00ff","uuid":"01234567-89ab-cdef-0123-456789abcdef",
        "rootHash":"{root}","hashTreeSize":16384}},"uki":{{"path":"releases/41.3.0/x86-64/uki.efi","size":1000,"digest":"{two}"}},
        "packs":[{{"kind":"full","path":"releases/41.3.0/x86-64/full.pack","size":500000,"index":{index},"transferBytes":500000}},
        {{"kind":"delta","base":"{base}","path":"releases/41.3.0/x86-64/from-b.pack","size":9000,"index":{index},
        "transferBytes":9000}}],"packages":{{"format":"CycloneDX","path":"releases/41.3.0/x86-64/packages.json","size":10,
        "digest":"{three}"}}}}"#,
        root = "a".repeat(64),
        base = "b".repeat(64),
        two = digest("2"),
        three = digest("3"),
    );
    let described =
        format!(r#"{{"x86-64":{{"path":"releases/1.0/x86-64/release.json","size":900,"digest":"{}"}}}}"#, digest("4"));
    let channel = format!(
        r#"{{"format":1,"product":"acme-os","channel":"stable","releases":[{{"version":"1.0","manifests":{described},
        "publishedAt":"2026-11-01T08:00:00Z"}},{{"version":"1.1","manifests":{described},"publishedAt":"2026-11-02T08:00:00Z",
        "severity":"Critical","fixes":["CVE-2026-12345"],"notesUrl":"https://images.example.com/1.1","floor":"1.0",
        "downgrade":true,"withdrawn":{{"at":"2026-11-03T08:00:00Z","reason":"breaks NIC offload"}}}}]}}"#
    );
    vec![manifest.into_bytes(), channel.into_bytes()]
}

/// Stored bytes of the frame for each codec, after the byte that chooses it.
pub fn frame() -> Vec<Vec<u8>> {
    let content = frame_content();
    let with = |codec: u8, stored: Vec<u8>| [vec![codec], stored].concat();
    let compressed = zstd::bulk::compress(&content, 3).expect("memory can be compressed");
    let reference: Vec<u8> = base().into_iter().skip(BLOCK).take(3 * BLOCK).collect();
    let mut encoder = zstd::Encoder::with_ref_prefix(Vec::new(), 3, &reference).expect("a prefix is accepted");
    encoder.write_all(&content).expect("memory can be compressed");
    let referring = encoder.finish().expect("memory can be compressed");
    vec![with(0, content), with(1, compressed), with(2, referring)]
}

/// A superblock.
pub fn superblock() -> Vec<Vec<u8>> {
    let parameters = Parameters { salt: vec![0xBA; 32], uuid: [0x5C; 16] };
    vec![Superblock { parameters, data_blocks: 1000 }.to_bytes().to_vec()]
}

/// An EFI stub with the headers of systemd's, and a UKI made of it.
pub fn uki() -> Vec<Vec<u8>> {
    let stub = stub();
    let parts = Parts {
        stub: &stub,
        kernel: b"the kernel",
        initrd: &[7; 3000],
        command_line: "roothash=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad rw quiet",
        os_release: "ID=acme\nVERSION_ID=1.0\n",
        kernel_release: Some("6.1.0-1"),
        pcr_public_key: &[],
        pcr_signature: &[],
    };
    let uki = uki::build(&parts).expect("the stub has room");
    vec![stub, uki]
}

/// DOS header, PE32+ headers with room for 13 more sections, two sections (Microsoft's PE format, "Overview").
fn stub() -> Vec<u8> {
    const PE: usize = 0x80;
    const OPTIONAL: usize = PE + 24;
    const SECTIONS: usize = OPTIONAL + 240;
    let mut file = vec![0; 0x400];
    let mut put = |offset: usize, value: &[u8]| {
        file.iter_mut().skip(offset).zip(value).for_each(|(to, from)| *to = *from);
    };
    put(0, b"MZ");
    put(0x3C, &(PE as u32).to_le_bytes());
    put(PE, b"PE\0\0");
    // Machine, sections, size of the optional header, characteristics.
    for (offset, value) in [(4, 0x8664_u16), (6, 2), (20, 240), (22, 0x206), (24, 0x20B)] {
        put(PE + offset, &value.to_le_bytes());
    }
    // Section and file alignment, image size, headers size, number of data directories.
    for (offset, value) in [(32, 0x1000_u32), (36, 0x200), (56, 0x3000), (60, 0x400), (108, 16)] {
        put(OPTIONAL + offset, &value.to_le_bytes());
    }
    for (at, (name, address, pointer)) in
        [(b".text", 0x1000_u32, 0x400_u32), (b".sbat", 0x2000, 0x600)].iter().enumerate()
    {
        let header = SECTIONS + at * 40;
        put(header, *name);
        for (offset, value) in [(8, 0x150), (12, *address), (16, 0x200), (20, *pointer), (36, 0x4000_0040)] {
            put(header + offset, &value.to_le_bytes());
        }
    }
    file.extend([0xCC; 0x400]);
    file
}

/// When the repository of [`metadata`] is read.
pub fn metadata_time() -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::from_timestamp(1_760_000_000, 0).unwrap_or_default()
}

/// What a server answers to an update of the repository of [`metadata`]: there is no newer root.
pub(crate) fn metadata_answers() -> Vec<Option<Vec<u8>>> {
    std::iter::once(None).chain(metadata().into_iter().skip(1).take(3).map(Some)).collect()
}

/// A root, timestamp, snapshot, targets and a delegated role, all signed by one key.
pub fn metadata() -> Vec<Vec<u8>> {
    static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(make_metadata);
    FILES.clone()
}

fn make_metadata() -> Vec<Vec<u8>> {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::{Value, json};
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("any 32 bytes are a seed");
    let key = json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": hex::encode(pair.public_key())}});
    let role = |kind: &str, more: Value| {
        let mut signed =
            json!({"_type": kind, "spec_version": "1.0.0", "version": 1, "expires": "2100-01-01T00:00:00Z"});
        if let (Value::Object(members), Value::Object(more)) = (&mut signed, more) {
            members.extend(more);
        }
        let message = bascule_repository::tuf::canonical(signed.to_string().as_bytes()).expect("it holds no fractions");
        let signature = json!({"keyid": "k", "sig": hex::encode(pair.sign(&message))});
        json!({"signed": signed, "signatures": [signature]}).to_string().into_bytes()
    };
    let keys = json!({"keyids": ["k"], "threshold": 1});
    let root = json!({
        "consistent_snapshot": true, "keys": {"k": key},
        "roles": {"root": keys, "timestamp": keys, "snapshot": keys, "targets": keys},
    });
    let file = json!({"length": 3, "hashes": {"sha256": "00".repeat(32), "sha512": "11".repeat(64)}});
    let delegation = |name: &str, rule: &str, patterns: Value| json!({"name": name, "keyids": ["k"], "threshold": 1, "terminating": false, rule: patterns});
    let delegations = json!({"keys": {"k": key}, "roles": [
        delegation("channel-edge", "paths", json!(["edge.json", "releases/*/*/[a-z]?*"])),
        delegation("bin", "path_hash_prefixes", json!(["0", "ab"])),
    ]});
    let pinned = json!({"version": 1, "length": 999_999, "hashes": {"sha256": "22".repeat(32)}});
    let snapshot = json!({"meta": {"targets.json": {"version": 1}, "channel-edge.json": pinned}});
    vec![
        role("root", root),
        role("timestamp", json!({"meta": {"snapshot.json": {"version": 1}}})),
        role("snapshot", snapshot),
        role("targets", json!({"targets": {"stable.json": file}, "delegations": delegations})),
        role("targets", json!({"targets": {"edge.json": file}})),
    ]
}
