//! Whether firmware with Secure Boot on would start what is published, judged as a node judges before it is drained.

use bascule_secure_boot::{Databases, Refusal, SignatureList, SignedImage, judge};

use super::{Finding, NOT_SIGNED};

/// A boot image, for firmware whose db has these certificates (DER). No certificates: nothing was asked.
#[allow(clippy::ptr_arg, reason = "the reader of signatures takes a sized thing")]
pub(crate) fn vouched(what: &str, boot_image: &Vec<u8>, certificates: &[Vec<u8>]) -> Vec<Finding> {
    if certificates.is_empty() {
        return Vec::new();
    }
    let allowed = SignatureList { certificates: certificates.to_vec(), ..SignatureList::default() };
    let databases = Databases { allowed, ..Databases::default() };
    let why = match judge(boot_image, &databases) {
        Ok(_) => return Vec::new(),
        Err(Refusal::Unsigned) => "is not signed for Secure Boot".to_owned(),
        Err(Refusal::Unknown { signers }) => format!("is signed by '{signers}', for whom no given certificate vouches"),
        Err(Refusal::Signature(error)) => format!("has a signature for Secure Boot that does not hold: {error}"),
        Err(other) => format!("can't be judged for Secure Boot: {other}"),
    };
    vec![NOT_SIGNED.found(format!("{what} {why}"))]
}

/// Whether there is a signature at all.
///
/// # Errors
/// It is no file that firmware starts.
#[allow(clippy::ptr_arg, reason = "the reader of signatures takes a sized thing")]
pub(crate) fn is_signed(file: &Vec<u8>) -> anyhow::Result<bool> {
    Ok(!SignedImage::open(file)?.signatures().is_empty())
}
