//! `bascule-sign-pkcs11`: signs with a key that a PKCS#11 token keeps, as a program of `bascule release … --signer`.
//!
//! A program of its own, because `bascule` is linked statically and can't load a vendor's module, and because such a module
//! runs in the process that loads it: here that holds no other key and no repository.

mod token;
mod uri;

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};

use token::Token;
use uri::Uri;

/// Longest message: TUF metadata is bounded at 2 MiB.
const MAX_MESSAGE: u64 = 4 << 20;

/// Sign standard input with a key in a PKCS#11 token; the signature goes to standard output.
#[derive(Debug, Parser)]
#[command(name = "bascule-sign-pkcs11", version, max_term_width = 120)]
struct Arguments {
    /// The key, as RFC 7512 writes it:
    /// `pkcs11:token=release;object=targets?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/bascule/pin`.
    uri: String,

    /// Make the key pair in the token first, and print its public half as a `.pub.json` file holds it.
    #[arg(long, value_enum, value_name = "KIND")]
    generate: Option<Kind>,

    /// Print the public half as a `.pub.json` file holds it, and sign nothing.
    #[arg(long, conflicts_with = "generate")]
    public: bool,

    /// PKCS#11 module. Default: `module-path` of the key.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// What most tokens have.
    EcdsaP256,
    /// Deterministic; few tokens have it.
    Ed25519,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody can be told when stderr is gone.
            let _ = writeln!(std::io::stderr().lock(), "bascule-sign-pkcs11: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let uri = Uri::parse(&arguments.uri)?;
    let module = arguments.module.clone().or_else(|| uri.module_path.clone());
    let module = module.context("name the PKCS#11 module: --module FILE, or module-path in the key's URI")?;
    let token = Token::open(&module, &uri)?;
    let output = match (arguments.generate, arguments.public) {
        (Some(kind), _) => token.generate(kind)?.into_bytes(),
        (None, true) => token.public()?.into_bytes(),
        (None, false) => {
            let mut message = Vec::new();
            std::io::stdin()
                .lock()
                .take(MAX_MESSAGE + 1)
                .read_to_end(&mut message)
                .context("can't read standard input")?;
            ensure!(message.len() as u64 <= MAX_MESSAGE, "standard input is longer than {MAX_MESSAGE} bytes");
            token.sign(&message)?
        }
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&output).and_then(|()| stdout.flush()).context("can't write to standard output")
}
