//! What a repository signs: the channel file and the manifest of a release, and the small types they are made of.

pub mod channel;
pub mod manifest;
pub mod measured;
pub mod names;

mod parse;
mod refusal;
#[cfg(test)]
mod tests;

pub use parse::ParseError;
