//! Signing what the firmware starts, so that Secure Boot accepts it: an Authenticode signature (PKCS#7 SignedData, RFC 2315) with
//! RSA and SHA-256, by a key in a file or by a program that keeps it. The same input gives the same bytes: there is no signing
//! time in it, and PKCS#1 1.5 has no random part.

mod der;
mod pe;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bascule_image::release::manifest::MAX_UKI_SIZE;
use bascule_release::read_bounded;
use chrono::{DateTime, Utc};
use clap::Args;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::clock;
use crate::exit::Exit;
use crate::output;
use crate::release::rsa::{MAX_PEM, RsaKey};
use der::{BIT_STRING, INTEGER, NULL, OCTET_STRING, OID, SEQUENCE, SET, context, set_of, value};

/// A certificate that ends sooner is worth a word: firmware does not judge it, shim and people do.
const SOON: chrono::TimeDelta = chrono::TimeDelta::days(30);

const SHA256_OID: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const RSA_OID: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];
const SIGNED_DATA_OID: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x02];
const CONTENT_TYPE_OID: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x09, 0x03];
const MESSAGE_DIGEST_OID: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x09, 0x04];
/// SPC_INDIRECT_DATA and SPC_PE_IMAGE_DATA.
const INDIRECT_DATA_OID: &[u8] = &[0x2B, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04];
const PE_IMAGE_DATA_OID: &[u8] = &[0x2B, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0F];

/// With what it is signed.
#[derive(Debug, Args)]
pub(crate) struct SecureBootArguments {
    /// Private key (RSA, PKCS#8 PEM) that signs for Secure Boot.
    #[arg(long, value_name = "FILE", requires = "secure_boot_cert", help_heading = "Secure Boot")]
    secure_boot_key: Option<PathBuf>,

    /// Program that signs instead of a key file: it is given the bytes on its standard input and writes the RSA PKCS#1 1.5
    /// signature with SHA-256 to its standard output, raw or in base64.
    #[arg(
        long,
        value_name = "PROGRAM",
        requires = "secure_boot_cert",
        conflicts_with = "secure_boot_key",
        help_heading = "Secure Boot"
    )]
    secure_boot_signer: Option<String>,

    /// Certificate of the key (PEM), which the firmware's db holds, or one that signed it.
    #[arg(long, value_name = "FILE", help_heading = "Secure Boot")]
    secure_boot_cert: Option<PathBuf>,
}

/// A key, or the way to one, with its certificate.
pub(crate) struct SecureBoot {
    certificate: Vec<u8>,
    public: Vec<u8>,
    issuer: Vec<u8>,
    serial: Vec<u8>,
    key: RsaKey,
}

impl std::fmt::Debug for SecureBoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecureBoot").finish_non_exhaustive()
    }
}

impl SecureBootArguments {
    /// Reads key and certificate, and checks that they belong together. `None` where nothing is to be signed.
    pub(crate) fn read(&self) -> anyhow::Result<Option<SecureBoot>> {
        let Some(path) = &self.secure_boot_cert else { return Ok(None) };
        let key = match (&self.secure_boot_key, &self.secure_boot_signer) {
            (Some(path), _) => RsaKey::read(path)?,
            (None, Some(program)) => RsaKey::Program(program.clone()),
            (None, None) => bail!("--secure-boot-cert needs the key too: --secure-boot-key or --secure-boot-signer"),
        };
        SecureBoot::new(path, key, clock::now()).map(Some)
    }
}

/// A certificate's DER, from a file in PEM.
pub(crate) fn read_certificate(path: &Path) -> anyhow::Result<Vec<u8>> {
    let pem = read_bounded(path, MAX_PEM)?;
    let der = CertificateDer::from_pem_slice(&pem)
        .map_err(|_| anyhow::anyhow!("{} is no certificate in PEM", path.display()))?;
    Ok(der.to_vec())
}

impl SecureBoot {
    fn new(path: &Path, key: RsaKey, now: DateTime<Utc>) -> anyhow::Result<Self> {
        let der = read_certificate(path)?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        let end = certificate.validity().not_after.timestamp();
        let end = DateTime::from_timestamp(end, 0).unwrap_or(DateTime::<Utc>::MAX_UTC);
        ensure!(end > now, "the certificate {} expired at {}", path.display(), output::time(end));
        if end - now < SOON {
            output::say(&format!("the certificate {} expires at {}", path.display(), output::time(end)));
        }
        let public = certificate.public_key().subject_public_key.data.to_vec();
        if let Some(of_key) = key.public() {
            ensure!(of_key == public, "the key does not belong to the certificate {}", path.display());
        }
        Ok(Self {
            issuer: certificate.issuer().as_raw().to_vec(),
            serial: certificate.raw_serial().to_vec(),
            certificate: der.clone(),
            public,
            key,
        })
    }

    /// The certificate (DER).
    pub(crate) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Signs a PE file.
    pub(crate) fn sign(&self, file: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let file = pe::Unsigned::read(file)?;
        let sha256 = value(SEQUENCE, &[&value(OID, &[SHA256_OID]), &NULL]);
        // SpcPeImageData: no flags; the file's name is a tradition of which nobody reads anything.
        let image = value(
            SEQUENCE,
            &[&value(BIT_STRING, &[&[0]]), &value(context(0), &[&value(context(2), &[&value(0x80, &[])])])],
        );
        let content = value(
            SEQUENCE,
            &[
                &value(SEQUENCE, &[&value(OID, &[PE_IMAGE_DATA_OID]), &image]),
                &value(SEQUENCE, &[&sha256, &value(OCTET_STRING, &[file.digest().as_ref()])]),
            ],
        );
        // RFC 2315, 9.3: the digest is of the content without its tag and length.
        let inner = content.get(content.len() - body_length(&content)..).unwrap_or_default();
        let attribute = |oid: &[u8], inner: &[u8]| value(SEQUENCE, &[&value(OID, &[oid]), &value(SET, &[inner])]);
        let attributes = vec![
            attribute(CONTENT_TYPE_OID, &value(OID, &[INDIRECT_DATA_OID])),
            attribute(MESSAGE_DIGEST_OID, &value(OCTET_STRING, &[digest(&SHA256, inner).as_ref()])),
        ];
        // Signed as a SET OF, written as [0] (RFC 2315, 9.3).
        let signature = self.key.sign(&set_of(SET, attributes.clone()), &self.public, "the certificate")?;
        let signer = value(
            SEQUENCE,
            &[
                &value(INTEGER, &[&[1]]),
                &value(SEQUENCE, &[&self.issuer, &value(INTEGER, &[&self.serial])]),
                &sha256,
                &set_of(context(0), attributes),
                &value(SEQUENCE, &[&value(OID, &[RSA_OID]), &NULL]),
                &value(OCTET_STRING, &[&signature]),
            ],
        );
        let signed = value(
            SEQUENCE,
            &[
                &value(INTEGER, &[&[1]]),
                &value(SET, &[&sha256]),
                &value(SEQUENCE, &[&value(OID, &[INDIRECT_DATA_OID]), &value(context(0), &[&content])]),
                &value(context(0), &[&self.certificate]),
                &value(SET, &[&signer]),
            ],
        );
        let whole = value(SEQUENCE, &[&value(OID, &[SIGNED_DATA_OID]), &value(context(0), &[&signed])]);
        file.with_signature(&whole)
    }
}

/// Length of a DER value's body, from its own length field.
fn body_length(der: &[u8]) -> usize {
    match der.get(1) {
        Some(long) if long & 0x80 != 0 => der.len() - 2 - usize::from(long & 0x7F),
        _ => der.len().saturating_sub(2),
    }
}

#[derive(Debug, Args)]
pub(crate) struct SignEfiArguments {
    /// What the firmware starts: the boot loader, a UKI, a shell.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Where the signed file goes.
    #[arg(value_name = "OUT")]
    out: PathBuf,

    #[command(flatten)]
    secure_boot: SecureBootArguments,
}

pub(crate) fn sign_efi(arguments: &SignEfiArguments) -> anyhow::Result<Exit> {
    let Some(secure_boot) = arguments.secure_boot.read()? else {
        bail!("say with --secure-boot-key and --secure-boot-cert what it is signed with");
    };
    let file = read_bounded(&arguments.file, MAX_UKI_SIZE)?;
    let signed = secure_boot.sign(file).with_context(|| format!("can't sign {}", arguments.file.display()))?;
    let folder = arguments.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        use std::os::unix::fs::PermissionsExt as _;
        let mut file = tempfile::Builder::new().prefix(".efi-").tempfile_in(folder)?;
        file.write_all(&signed)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(&arguments.out).map(drop).map_err(|error| error.error)
    };
    write().with_context(|| format!("can't write {}", arguments.out.display()))?;
    output::print(&format!("signed: {}\n", arguments.out.display()))?;
    Ok(Exit::Success)
}
