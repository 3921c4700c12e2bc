//! Good bytes of what a node reads.

use std::sync::LazyLock;

use bascule_agent_core::boot::{BootPartition, PlacedImage};
use bascule_agent_core::{Journal, KnownRelease};
use bascule_gpt::{Change, FileMedium, Medium as _, NewPartition, Table};
use bascule_names::{Digest, RootHash, Version};
use uuid::Uuid;

use super::{SECTOR, SECTORS};
use crate::seeds;

/// A certificate, and the PKCS#7 signature that its key made with sbsign over [`seeds::uki`]'s image. The key is lost.
pub(super) const CERTIFICATE: &[u8] = include_bytes!("../../data/signer.der");
const SIGNATURE: &[u8] = include_bytes!("../../data/signature.p7");

/// A disk with two partitions.
pub(crate) fn gpt() -> Vec<Vec<u8>> {
    let uuid = |number: u32| Uuid::from_bytes([number as u8; 16]);
    let partitions = [1, 2].map(|number| NewPartition {
        number,
        kind: uuid(number),
        uuid: uuid(0x10 + number),
        length: 10 * SECTOR as u64,
        label: "1.0".to_owned(),
    });
    let file = tempfile::tempfile().expect("there is a place for temporary files");
    file.set_len((SECTORS * SECTOR) as u64).expect("there is room for a small file");
    let disk = FileMedium { file: &file, sector: SECTOR as u64 };
    let geometry = disk.geometry().expect("it has a length");
    let mut table = Table::create(geometry, uuid(7), SECTOR as u64, &partitions).expect("there is room for them");
    for number in [1, 2] {
        table.change(number, &Change { set: 1 << 60, ..Change::default() }).expect("it is there");
    }
    table.install(&disk).expect("a file takes a table");
    let mut bytes = vec![0; SECTORS * SECTOR];
    disk.read(0, &mut bytes).expect("what was written can be read");
    vec![bytes]
}

/// A journal that remembers a release, and a new one.
pub(crate) fn journal() -> Vec<Vec<u8>> {
    let digest = |letter: &str| Digest::parse(&format!("sha256:{}", letter.repeat(64))).expect("it is one");
    let mut used = Journal { counting_seen: Some(true), ..Journal::default() };
    used.remember(KnownRelease {
        root_hash: RootHash::from_bytes(&[7; 32]),
        version: Version::parse("1.0").expect("it is one"),
        digest: digest("a"),
        uki_digest: digest("b"),
        uki_size: 1000,
        verified_at: None,
    });
    used.placed.push(PlacedImage {
        root_hash: RootHash::from_bytes(&[7; 32]),
        partition: Some(BootPartition::Xbootldr),
        base: "acme-os_1.0".to_owned(),
        size: 1000,
        digest: Some(digest("b")),
        start: Some(digest("c")),
    });
    [used, Journal::default()].iter().map(|journal| journal.to_bytes().expect("it can be written")).collect()
}

/// Settings of every kind.
pub(crate) fn settings() -> Vec<Vec<u8>> {
    let text = "[boot]\ntries = 3\nbackend = \"auto\"\nreverify-after = \"15m\"\n[slots]\nkind = \"root\"\n\
                [transfer]\npause-at-memory-pressure = 20\n[health]\nunits = [\"kubelet.service\"]\n";
    vec![text.as_bytes().to_vec(), b"node.name = 'n1'\n".to_vec()]
}

/// What is remembered after an update, and a file of the first format.
pub(crate) fn memory() -> Vec<Vec<u8>> {
    let text = |at: usize| crate::seeds::metadata().get(at).and_then(|file| String::from_utf8(file.clone()).ok());
    let now = serde_json::json!({
        "format": 2, "verifiedAt": "2025-10-09T08:53:20Z", "roots": {}, "timestamp": text(1), "snapshot": text(2),
        "targets": text(3), "acceptedBy": null, "newer": {"seen": [1, 2]},
    });
    let first = serde_json::json!({"format": 1, "roots": {"1": text(0)}, "timestamp": text(1)});
    vec![now.to_string().into_bytes(), first.to_string().into_bytes()]
}

/// A list of hashes and one of a certificate.
pub(crate) fn signature_list() -> Vec<Vec<u8>> {
    // EFI_CERT_SHA256_GUID and EFI_CERT_X509_GUID as they lie in memory.
    const SHA256: [u8; 16] =
        [0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28];
    const X509: [u8; 16] =
        [0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];
    let list = |kind: [u8; 16], entry: &[u8]| {
        let mut bytes = kind.to_vec();
        for number in [28 + 16 + entry.len(), 0, 16 + entry.len()] {
            bytes.extend((number as u32).to_le_bytes());
        }
        bytes.extend([0xEE; 16]);
        bytes.extend(entry);
        bytes
    };
    let (hash, certificate) = (list(SHA256, &[1; 32]), list(X509, CERTIFICATE));
    vec![[hash.clone(), certificate.clone()].concat(), certificate, hash]
}

/// The signed image.
pub(super) fn signed() -> Vec<u8> {
    static SIGNED: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut image = seeds::uki().pop().expect("there is one");
        image.resize(image.len().next_multiple_of(8), 0);
        let at = image.len();
        let length = 8 + SIGNATURE.len();
        image.extend((length as u32).to_le_bytes());
        image.extend([0, 2, 2, 0]);
        image.extend(SIGNATURE);
        image.resize(image.len().next_multiple_of(8), 0);
        // The security directory of the headers that the seeds have: PE at 0x80, its optional header behind 24 bytes.
        let directory = 0x80 + 24 + 112 + 4 * 8;
        let entry = [(at as u32).to_le_bytes(), ((image.len() - at) as u32).to_le_bytes()].concat();
        image.iter_mut().skip(directory).zip(entry).for_each(|(to, from)| *to = from);
        image
    });
    SIGNED.clone()
}

/// A signed image.
pub(crate) fn image_signature() -> Vec<Vec<u8>> {
    vec![signed()]
}

/// Entries of type #1.
pub(crate) fn text_entry() -> Vec<Vec<u8>> {
    let entries: [&[u8]; 3] = [
        b"title Acme\nsort-key acme-os\nversion 1.0\nmachine-id 2f\narchitecture x64\nlinux /EFI/acme/linux\noptions roothash=1\n",
        b"# of a person\n sort-key\t\"a b\" \r\nuki \\EFI\\Linux\\x.efi\n",
        b"version 2\nuki-url https://example.org/x.efi\nefi /a\n",
    ];
    entries.map(<[u8]>::to_vec).to_vec()
}
