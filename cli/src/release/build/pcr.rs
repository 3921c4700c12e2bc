//! With what a TPM's policies are signed: a key of its own, whose public part goes into the boot image beside its signatures.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use bascule_image::release::measured::MAX_PHASES;
use bascule_image::uki::{MAX_PCR_SECTION, PhasePath};
use bascule_release::policy::PcrPolicy;
use bascule_release::{Pcr, read_bounded};
use clap::Args;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
use x509_parser::public_key::PublicKey;

use crate::release::rsa::RsaKey;

/// Bits of an RSA key that each TPM takes (TCG, "PC Client Platform TPM Profile for TPM 2.0").
const BITS: usize = 2048;

#[derive(Debug, Args)]
pub(crate) struct PcrArguments {
    /// Public key (RSA with 2048 bits, PEM) under whose signatures a TPM opens what was bound to it. It goes into the UKI.
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = "Measured boot")]
    pcr_public_key: Option<PathBuf>,

    /// Its private key (PKCS#8 PEM): signs what PCR 11 will hold.
    #[arg(long, value_name = "FILE", requires = "pcr_public_key", help_heading = "Measured boot")]
    pcr_key: Option<PathBuf>,

    /// Program that signs instead of a key file: it is given the bytes on its standard input and writes the RSA PKCS#1 1.5
    /// signature with SHA-256 to its standard output, raw or in base64.
    #[arg(
        long,
        value_name = "PROGRAM",
        requires = "pcr_public_key",
        conflicts_with = "pcr_key",
        help_heading = "Measured boot"
    )]
    pcr_signer: Option<String>,

    /// What was signed elsewhere, as systemd-measure writes it.
    #[arg(
        long,
        value_name = "FILE",
        requires = "pcr_public_key",
        conflicts_with_all = ["pcr_key", "pcr_signer"],
        help_heading = "Measured boot"
    )]
    pcr_signature: Option<PathBuf>,

    /// Phases of the boot, joined by colons, after which a secret opens; empty: before the first one, as where no systemd runs in
    /// the initrd. May be repeated. Default: each of systemd's own.
    #[arg(long, value_name = "PATH", help_heading = "Measured boot")]
    pcr_phase: Vec<PhasePath>,
}

/// What the arguments name.
pub(super) struct PcrKey {
    pem: Vec<u8>,
    public: Vec<u8>,
    phases: Vec<PhasePath>,
    by: By,
}

enum By {
    Key(RsaKey),
    Elsewhere(Vec<u8>),
}

impl PcrArguments {
    /// Reads what is named, and checks that it belongs together. `None` where nothing is to be signed.
    pub(super) fn read(&self) -> anyhow::Result<Option<PcrKey>> {
        ensure!(self.pcr_phase.len() + 5 <= MAX_PHASES, "--pcr-phase is given more than {} times", MAX_PHASES - 5);
        let Some(path) = &self.pcr_public_key else { return Ok(None) };
        let pem = read_bounded(path, MAX_PCR_SECTION)?;
        let public = public_key(&pem).with_context(|| format!("{} is of no use to a TPM", path.display()))?;
        let by = match (&self.pcr_key, &self.pcr_signer, &self.pcr_signature) {
            (Some(path), ..) => By::Key(RsaKey::read(path)?),
            (None, Some(program), _) => By::Key(RsaKey::Program(program.clone())),
            (None, None, Some(path)) => By::Elsewhere(read_bounded(path, MAX_PCR_SECTION)?),
            (None, None, None) => {
                bail!("--pcr-public-key needs what it signed too: --pcr-key, --pcr-signer or --pcr-signature")
            }
        };
        if let By::Key(key) = &by {
            let fits = key.public().is_none_or(|of_key| of_key == public);
            ensure!(fits, "the key does not belong to the public key {}", path.display());
        }
        let phases = if self.pcr_phase.is_empty() { PhasePath::usual() } else { self.pcr_phase.clone() };
        Ok(Some(PcrKey { pem, public, phases, by }))
    }

    /// What was said of phases.
    pub(super) fn phases(&self) -> &[PhasePath] {
        &self.pcr_phase
    }
}

impl PcrKey {
    /// Calls `with` with what goes into a boot image.
    pub(super) fn put<T>(&self, with: impl FnOnce(Pcr<'_>) -> T) -> T {
        let key = match &self.by {
            By::Elsewhere(signature) => return with(Pcr::Ready { public_key: &self.pem, signature }),
            By::Key(key) => key,
        };
        let sign = |message: &[u8]| -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
            key.sign(message, &self.public, "--pcr-public-key").map_err(Into::into)
        };
        with(Pcr::Signed(&PcrPolicy {
            public_key_pem: &self.pem,
            public_key: &self.public,
            phases: &self.phases,
            sign: &sign,
        }))
    }
}

/// A public key in PEM as RSAPublicKey in DER.
pub(super) fn public_key(pem: &[u8]) -> anyhow::Result<Vec<u8>> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok().context("it is no public key in PEM")?;
    let (_, info) = SubjectPublicKeyInfo::from_der(&der).ok().context("it is no public key in PEM")?;
    let PublicKey::RSA(key) = info.parsed().ok().context("it is no public key in PEM")? else {
        bail!("it is no RSA key")
    };
    let bits = key.key_size();
    ensure!(bits == BITS, "it has {bits} bits, and {BITS} are what each TPM takes");
    Ok(info.subject_public_key.data.to_vec())
}
