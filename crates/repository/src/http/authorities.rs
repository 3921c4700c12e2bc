//! Which certificate authorities a client trusts. A container image without a bundle of them has none: a client that can't
//! be made there would keep a whole program from starting for want of something that it may never need.

use reqwest::{Certificate, Client, ClientBuilder};

/// A client that trusts `extra` beside the system's authorities, and whether it knows any at all. One that knows none is
/// made all the same; every server's certificate is refused by it.
///
/// # Errors
/// Whatever else keeps the client from being made.
pub fn client_with_authorities(
    builder: impl Fn() -> ClientBuilder,
    extra: &[Certificate],
) -> Result<(Client, bool), reqwest::Error> {
    match builder().tls_certs_merge(extra.iter().cloned()).build() {
        Ok(client) => Ok((client, true)),
        // Beside authorities of one's own, those of the system may be missing.
        Err(_) if extra.is_empty() => Ok((builder().tls_certs_only([]).build()?, false)),
        Err(error) => Err(error),
    }
}
