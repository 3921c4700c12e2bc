//! PKCS#11 URIs (RFC 7512), as far as they name one key.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

/// Which key, and how to get at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Uri {
    /// Label of the token.
    pub(crate) token: Option<String>,
    /// Serial number of the token.
    pub(crate) serial: Option<String>,
    /// Label of the key.
    pub(crate) object: Option<String>,
    /// Id of the key.
    pub(crate) id: Option<Vec<u8>>,
    /// The module.
    pub(crate) module_path: Option<PathBuf>,
    /// File that holds the PIN.
    pub(crate) pin_source: Option<PathBuf>,
}

impl Uri {
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let rest = text.strip_prefix("pkcs11:").context("a key is written as pkcs11:token=…;object=…")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let attributes = path.split(';').chain(query.split('&')).filter(|part| !part.is_empty());
        for attribute in attributes {
            let (name, value) = attribute.split_once('=').with_context(|| format!("{attribute} has no value"))?;
            let bytes = decode(value).with_context(|| format!("{name} is not properly percent-encoded"))?;
            let text = || String::from_utf8(bytes.clone()).with_context(|| format!("{name} is no text"));
            match name {
                "token" => uri.token = Some(text()?),
                "serial" => uri.serial = Some(text()?),
                "object" => uri.object = Some(text()?),
                "id" => uri.id = Some(bytes),
                "module-path" => uri.module_path = Some(text()?.into()),
                "pin-source" => {
                    let text = text()?;
                    uri.pin_source = Some(text.strip_prefix("file:").unwrap_or(&text).into());
                }
                "pin-value" => bail!("a PIN on the command line is seen by every user of the machine: use pin-source"),
                // What narrows the search in ways that are not looked at would give another key than the one meant.
                "type" if value == "private" => {}
                other => bail!("{other} is not known; a key is named by token, serial, object and id"),
            }
        }
        if uri.object.is_none() && uri.id.is_none() {
            bail!("name the key by object= or id=");
        }
        Ok(uri)
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    Some(decoded)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_the_rfc_says() {
        let uri = Uri::parse("pkcs11:token=My%20token;object=targets;id=%01%ff?module-path=/m.so&pin-source=file:/pin")
            .unwrap();
        assert_eq!(uri.token.as_deref(), Some("My token"));
        assert_eq!(uri.id, Some(vec![1, 255]));
        assert_eq!(uri.pin_source, Some("/pin".into()));
        for bad in [
            "",
            "pkcs11:",
            "pkcs11:token=a",
            "pkcs11:object=%2",
            "pkcs11:object=a?pin-value=1",
            "pkcs11:object=a;slot-id=1",
        ] {
            assert!(Uri::parse(bad).is_err(), "{bad}");
        }
    }
}
