//! Would this machine's firmware start this boot image?
//!
//! A boot image that Secure Boot refuses costs a drain and a reboot and comes back as a failed trial, on each node of a
//! fleet. The answer lies in plain sight before that: the image's Authenticode signatures, and the variables `db` and
//! `dbx` that the firmware judges by (UEFI 2.10, section 32.5; EDK2, DxeImageVerificationLib). This crate reads both and
//! judges as the firmware does. It grants nothing: where it is wrong, the firmware still decides.
//!
//! Parsing of ASN.1, CMS and X.509 is RustCrypto's (`der`, `cms`, `x509-cert`), hashing and RSA are `ring`'s.
//!
//! Not looked at: SBAT levels, which shim keeps, and time stamps (a certificate that `dbx` revokes from some time on counts
//! as revoked). What shim accepts beside `db` (its own certificate and enrolled machine owner keys) it shows as `MokListRT`.

mod certificate;
mod image;
mod judge;
mod list;
mod signature;
mod state;

pub use image::{ImageError, SignedImage};
pub use judge::{Acceptance, Databases, Refusal, judge};
pub use list::{ListError, SignatureList, parse_lists};
pub use signature::SignatureError;
pub use state::{GLOBAL, IMAGE_SECURITY, SHIM, SecureBoot, StateError};
