//! `cargo xtask images`: container images from scratch with one static program each, without Docker and without root. An
//! image is a tar file and a few JSON documents (OCI Image Format Specification 1.1); beside it lie what it is made of
//! (CycloneDX) and from what it was built (SLSA provenance).

mod dependencies;
mod layout;
mod provenance;
mod push;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use crate::{shipped, workspace_root};
use bascule_os_image::shipped::Architecture;
use dependencies::Dependencies;
use layout::{File, Image};

/// The user of both images. A pod of the agent asks for root; the image never gives it by itself.
const USER: &str = "65532:65532";
/// Where the programs look for certificate authorities (rustls-native-certs, by the places that OpenSSL knows).
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";
/// Where scanners find the dependencies of a Rust program (cargo-auditable, "PARSING.md").
const SECTION: &str = ".dep-v0";

/// What to build, and where to put it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The folder that gets an OCI layout for each image, its SBOM and its provenance.
    #[arg(long, value_name = "FOLDER", default_value = "target/images")]
    pub(crate) out: PathBuf,
    /// Also put the images into this registry, below this path: `registry.example.com/platform`. User and password are
    /// read from REGISTRY_USER and REGISTRY_PASSWORD; without both of them nobody is named.
    #[arg(long, value_name = "REGISTRY")]
    pub(crate) push: Option<String>,
    /// The tag in the registry. Default: the version of this tree.
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    /// What the programs are for; default: this machine's. Several, with commas between, are one tag of which each node takes
    /// its own. Another than this machine's needs `rustup target add` and Debian's compiler for it, which is installed where
    /// that is allowed.
    #[arg(long, value_name = "x86-64|arm64", value_parser = architecture, value_delimiter = ',')]
    pub(crate) architecture: Vec<Architecture>,
    /// A PEM file with the authority of the registry's certificate, beside the system's.
    #[arg(long, value_name = "FILE", requires = "push")]
    pub(crate) ca: Option<PathBuf>,
}

/// What is an image: its package and program, and a sentence about it.
const IMAGES: [(&str, &str); 2] = [
    ("bascule-operator", "Coordinates OS updates of Kubernetes nodes"),
    ("bascule-agent", "Keeps the system slots of one Kubernetes node"),
];

fn architecture(name: &str) -> Result<Architecture, String> {
    match name {
        "x86-64" => Ok(Architecture::X86_64),
        "arm64" => Ok(Architecture::Arm64),
        other => Err(format!("images are built for x86-64 and arm64, not for {other}")),
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    // Building takes long; what is wrong with the environment is said before.
    let registry = match &options.push {
        Some(registry) => Some((registry, push::user()?)),
        None => None,
    };
    let mut architectures = options.architecture.clone();
    if architectures.is_empty() {
        architectures.push(shipped::own_architecture()?);
    }
    architectures.sort_unstable();
    architectures.dedup();
    for architecture in &architectures {
        crate::prerequisites::ensure(match (architecture, architecture.tools().is_empty()) {
            (_, true) => crate::prerequisites::IMAGE_TOOLS,
            (Architecture::Arm64, false) => crate::prerequisites::ARM64_TOOLS,
            (Architecture::X86_64, false) => crate::prerequisites::X86_64_TOOLS,
        })?;
    }
    let workspace = workspace_root();
    let out = workspace.join(&options.out);
    fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let tag = options.tag.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    let source = provenance::Source::of(&workspace)?;
    for (name, about) in IMAGES {
        let labels = labels(name, about, &tag, &source);
        let mut images = Vec::new();
        let mut lists = Vec::new();
        for architecture in &architectures {
            let program = match name {
                "bascule-agent" => shipped::agent(*architecture)?,
                _ => shipped::operator(*architecture)?,
            };
            let dependencies = Dependencies::of(&workspace, name, &architecture.target())?;
            let objcopy = format!("{}objcopy", architecture.tools());
            let program = with_dependencies(&program, &dependencies, &out, &objcopy)?;
            images.push(Image {
                files: vec![
                    File { path: name.to_owned(), mode: 0o755, content: program },
                    File { path: AUTHORITIES.to_owned(), mode: 0o644, content: authorities().into_bytes() },
                ],
                architecture: *architecture,
                entrypoint: format!("/{name}"),
                user: USER,
                labels: labels.clone(),
                created: source.date.clone(),
            });
            lists.push((*architecture, dependencies));
        }
        let layout = out.join(name);
        let written = layout::write(&images, &layout, &tag)?;
        for ((architecture, dependencies), digest) in lists.iter().zip(&written.manifests) {
            let whose = if lists.len() == 1 { name.to_owned() } else { format!("{name}.{}", architecture.name()) };
            let beside = |kind: &str| out.join(format!("{whose}.{kind}.json"));
            write(&beside("cdx"), &dependencies.sbom()?)?;
            let target = architecture.target();
            let statement = provenance::statement((name, target.as_str()), digest, &source, dependencies)?;
            write(&beside("provenance"), &statement)?;
        }
        println!("{name} {} {}", written.tagged, layout.display());
        if let Some((registry, user)) = &registry {
            let pushed = push::push(&layout, &format!("{registry}/{name}:{tag}"), options.ca.as_deref(), user)?;
            println!("pushed {pushed}");
        }
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

/// The program with the list of its dependencies inside, compressed, in the section where scanners look for it.
fn with_dependencies(
    program: &Path,
    dependencies: &Dependencies,
    out: &Path,
    objcopy: &str,
) -> anyhow::Result<Vec<u8>> {
    let folder = tempfile::tempdir_in(out).context("making a folder for the program")?;
    let (list, built) = (folder.path().join("list"), folder.path().join("program"));
    write(&list, &dependencies.auditable()?)?;
    let added = Command::new(objcopy)
        .arg(format!("--add-section={SECTION}={}", list.display()))
        .arg(format!("--set-section-flags={SECTION}=noload,readonly"))
        .args([program, &built])
        .output()
        .with_context(|| format!("starting {objcopy}"))?;
    ensure!(added.status.success(), "objcopy refuses: {}", String::from_utf8_lossy(&added.stderr).trim());
    fs::read(&built).with_context(|| format!("reading {}", built.display()))
}

/// Mozilla's certificate authorities, of the version that Cargo.lock names, as a bundle.
fn authorities() -> String {
    let pem = |der: &[u8]| {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> =
            (0..text.len()).step_by(64).filter_map(|at| text.get(at..(at + 64).min(text.len()))).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|certificate| pem(certificate.as_ref())).collect()
}

fn labels(name: &str, about: &str, tag: &str, source: &provenance::Source) -> BTreeMap<String, String> {
    let pairs = [
        ("title", name),
        ("description", about),
        ("version", tag),
        ("licenses", "Apache-2.0"),
        ("revision", source.revision.as_deref().unwrap_or("unknown")),
    ];
    pairs.map(|(key, value)| (format!("org.opencontainers.image.{key}"), value.to_owned())).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authorities_are_a_bundle_that_tls_libraries_read() {
        let bundle = authorities();
        let count = bundle.matches("BEGIN CERTIFICATE").count();
        assert!(count > 100, "{count}");
        assert!(bundle.lines().all(|line| line.len() <= 64));
    }
}
