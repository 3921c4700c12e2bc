//! What a program is made of, by Cargo.lock: for the program itself (as `cargo auditable` has it) and for an SBOM beside
//! its image (CycloneDX 1.5).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use auditable_serde::{DependencyKind as Audited, Package as AuditedPackage, Source, VersionInfo};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Node, PackageId, TargetKind};
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::dependency::{Dependencies as BomDependencies, Dependency};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::metadata::Metadata as BomMetadata;
use cyclonedx_bom::prelude::{Bom, Purl, SpdxExpression, Validate as _};

/// The dependencies of one program, in an order that follows from their names and versions.
#[derive(Debug)]
pub(crate) struct Dependencies {
    packages: Vec<Package>,
    root: usize,
}

#[derive(Debug)]
struct Package {
    name: String,
    version: cargo_metadata::semver::Version,
    license: Option<String>,
    from_registry: bool,
    /// Part of the program, and not only of its build.
    runs: bool,
    needs: Vec<usize>,
}

impl Dependencies {
    /// Of a package of the workspace, for a target of cargo's.
    ///
    /// # Errors
    /// When cargo fails, or the package is not there.
    pub(crate) fn of(workspace: &Path, package: &str, target: &str) -> anyhow::Result<Self> {
        let metadata = MetadataCommand::new()
            .manifest_path(workspace.join("Cargo.toml"))
            .other_options(["--locked".to_owned(), "--filter-platform".to_owned(), target.to_owned()])
            .exec()
            .context("asking cargo for the dependencies")?;
        Self::read(&metadata, package)
    }

    fn read(metadata: &Metadata, package: &str) -> anyhow::Result<Self> {
        let own =
            metadata.packages.iter().find(|one| *one.name == package && metadata.workspace_members.contains(&one.id));
        let own = &own.with_context(|| format!("there is no package {package}"))?.id;
        let resolve = metadata.resolve.as_ref().context("cargo resolved nothing")?;
        let nodes: BTreeMap<&PackageId, &Node> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
        let builds =
            |id: &PackageId| metadata[id].targets.iter().any(|target| target.kind.contains(&TargetKind::ProcMacro));
        // Twice over the graph: what is linked, then all that takes part.
        let runs = reachable(own, &nodes, &|id, kind| kind == DependencyKind::Normal && !builds(id));
        let all = reachable(own, &nodes, &|_, kind| kind != DependencyKind::Development);
        let mut ids: Vec<&PackageId> = all.into_iter().collect();
        ids.sort_by_key(|id| (metadata[*id].name.to_string(), metadata[*id].version.clone()));
        let places: BTreeMap<&PackageId, usize> = ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        let packages = ids.iter().map(|id| {
            let package = &metadata[*id];
            let needs = nodes.get(id).into_iter().flat_map(|node| &node.deps);
            let needs = needs
                .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development))
                .filter_map(|dep| places.get(&dep.pkg).copied());
            Package {
                name: package.name.to_string(),
                version: package.version.clone(),
                license: package.license.clone(),
                from_registry: package.source.is_some(),
                runs: runs.contains(id),
                needs: needs.collect::<BTreeSet<_>>().into_iter().collect(),
            }
        });
        let packages = packages.collect();
        Ok(Self { packages, root: places.get(own).copied().context("a package is no dependency of itself")? })
    }

    /// `name@version` of everything that is linked, for the provenance.
    pub(crate) fn linked(&self) -> impl Iterator<Item = (&str, String)> {
        self.packages
            .iter()
            .filter(|one| one.runs && one.from_registry)
            .map(|one| (one.name.as_str(), one.version.to_string()))
    }

    /// For the program: zlib over JSON.
    pub(crate) fn auditable(&self) -> anyhow::Result<Vec<u8>> {
        let packages = self.packages.iter().enumerate().map(|(place, one)| AuditedPackage {
            name: one.name.clone(),
            version: one.version.clone(),
            source: if one.from_registry { Source::CratesIo } else { Source::Local },
            kind: if one.runs { Audited::Runtime } else { Audited::Build },
            dependencies: one.needs.clone(),
            root: place == self.root,
        });
        let list = serde_json::to_vec(&VersionInfo { packages: packages.collect(), format: 1 })?;
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&list)?;
        Ok(packed.finish()?)
    }

    /// For people and scanners.
    pub(crate) fn sbom(&self) -> anyhow::Result<Vec<u8>> {
        let reference = |one: &Package| format!("{}@{}", one.name, one.version);
        let component = |one: &Package, kind| -> anyhow::Result<Component> {
            let mut component = Component::new(kind, &one.name, &one.version.to_string(), Some(reference(one)));
            component.purl = Some(Purl::new("cargo", &one.name, &one.version.to_string())?);
            let license = one.license.clone().map(SpdxExpression::parse_lax).transpose()?;
            component.licenses = license.map(|license| Licenses(vec![LicenseChoice::Expression(license)]));
            Ok(component)
        };
        let root = self.packages.get(self.root).context("no root")?;
        let linked = || self.packages.iter().enumerate().filter(|(_, one)| one.runs);
        let components = linked().filter(|(place, _)| *place != self.root);
        let components =
            components.map(|(_, one)| component(one, Classification::Library)).collect::<anyhow::Result<_>>()?;
        let needs = linked().map(|(_, one)| {
            let named = one.needs.iter().filter_map(|place| self.packages.get(*place)).filter(|need| need.runs);
            Dependency { dependency_ref: reference(one), dependencies: named.map(reference).collect() }
        });
        let bom = Bom {
            serial_number: None,
            metadata: Some(BomMetadata {
                component: Some(component(root, Classification::Application)?),
                ..BomMetadata::default()
            }),
            components: Some(Components(components)),
            dependencies: Some(BomDependencies(needs.collect())),
            ..Bom::default()
        };
        anyhow::ensure!(bom.validate().passed(), "the SBOM is not valid: {:?}", bom.validate());
        let mut text = Vec::new();
        bom.output_as_json_v1_5(&mut text).context("writing the SBOM")?;
        text.push(b'\n');
        Ok(text)
    }
}

/// What can be reached from a package over the dependencies that `follow` agrees to.
fn reachable<'a>(
    from: &'a PackageId,
    nodes: &BTreeMap<&'a PackageId, &'a Node>,
    follow: &dyn Fn(&PackageId, DependencyKind) -> bool,
) -> BTreeSet<&'a PackageId> {
    let (mut seen, mut next) = (BTreeSet::from([from]), vec![from]);
    while let Some(id) = next.pop() {
        let deps = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        for dep in deps.filter(|dep| dep.dep_kinds.iter().any(|kind| follow(&dep.pkg, kind.kind))) {
            if seen.insert(&dep.pkg) {
                next.push(&dep.pkg);
            }
        }
    }
    seen
}
