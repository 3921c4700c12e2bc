//! Where the programs of the control plane come from: `KUBEBUILDER_ASSETS` when it is set, else a build of the Go
//! module in `tests/control-plane`, made once and kept under `target/control-plane/<hash of its inputs>/`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ControlPlaneError;

/// The parts every control plane needs, by the names that envtest's archives use too.
const PARTS: [&str; 5] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];

/// Read into the Go binary's version, so that clients and `kubectl version` see the release it was built from.
const VERSION_VARIABLE: &str = "k8s.io/component-base/version.gitVersion";

/// The programs, all of them known to exist.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Finds the programs, building them if this is the first time. `progress` hears one sentence before a long step.
    ///
    /// Blocks for many minutes when it has to build: call it from a thread that may block.
    ///
    /// # Errors
    /// When `KUBEBUILDER_ASSETS` lacks a program, when no usable Go toolchain is there, when the build fails.
    pub fn locate(progress: &dyn Fn(&str)) -> Result<Self, ControlPlaneError> {
        if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty()) {
            return Self::from_assets(PathBuf::from(folder));
        }
        let module = module_folder();
        let folder =
            build_once(&module, "control-plane", &["go.mod", "go.sum", "kubernetes/main.go"], progress, |to| {
                let version = required_version(&module, "k8s.io/kubernetes")?;
                let flags = format!("-s -w -X {VERSION_VARIABLE}={version}");
                go_build(&module, &flags, "./kubernetes", &to.join("control-plane"))?;
                for part in PARTS {
                    std::os::unix::fs::symlink("control-plane", to.join(part))
                        .map_err(|source| ControlPlaneError::Folder { path: to.join(part), source })?;
                }
                Ok(())
            })?;
        Ok(Self { folder })
    }

    /// Builds KWOK (nodes and pods that exist only in the API), used for scale. Same cache, same conditions as
    /// [`Self::locate`].
    ///
    /// # Errors
    /// When no usable Go toolchain is there or the build fails.
    pub fn kwok(progress: &dyn Fn(&str)) -> Result<PathBuf, ControlPlaneError> {
        let module = module_folder();
        let folder = build_once(&module, "kwok", &["go.mod", "go.sum"], progress, |to| {
            go_build(&module, "-s -w", "sigs.k8s.io/kwok/cmd/kwok", &to.join("kwok"))
        })?;
        Ok(folder.join("kwok"))
    }

    /// Builds Karpenter with its KWOK provider, the judge of the truce with autoscalers. Returns the folder with `karpenter`
    /// and, in `crds`, the definitions that belong to this release of it. Same cache, same conditions as [`Self::locate`].
    ///
    /// # Errors
    /// When no usable Go toolchain is there, the build fails, or the module lacks its definitions.
    pub fn karpenter(progress: &dyn Fn(&str)) -> Result<PathBuf, ControlPlaneError> {
        let module = module_folder();
        build_once(&module, "karpenter", &["go.mod", "go.sum"], progress, |to| {
            go_build(&module, "-s -w", "sigs.k8s.io/karpenter/kwok", &to.join("karpenter"))?;
            let source = module_source(&module, "sigs.k8s.io/karpenter")?;
            let crds = to.join("crds");
            fs::create_dir(&crds).map_err(|source| ControlPlaneError::Folder { path: crds.clone(), source })?;
            copy_files(&source.join("kwok/charts/crds"), &crds)?;
            copy_files(&source.join("kwok/apis/crds"), &crds)
        })
    }

    /// Builds a kubelet of the same release, and the one program that the containers of the boot tests hold. Returns the
    /// folder with `kubelet` and `container`, both static. Same cache, same conditions as [`Self::locate`].
    ///
    /// # Errors
    /// When no usable Go toolchain is there or the build fails.
    pub fn kubelet(progress: &dyn Fn(&str)) -> Result<PathBuf, ControlPlaneError> {
        let module = module_folder();
        build_once(&module, "kubelet", &["go.mod", "go.sum", "container/main.go"], progress, |to| {
            let version = required_version(&module, "k8s.io/kubernetes")?;
            let flags = format!("-s -w -X {VERSION_VARIABLE}={version}");
            go_build(&module, &flags, "k8s.io/kubernetes/cmd/kubelet", &to.join("kubelet"))?;
            go_build(&module, "-s -w", "./container", &to.join("container"))
        })
    }

    /// Builds Helm. Same cache, same conditions as [`Self::locate`].
    ///
    /// # Errors
    /// When no usable Go toolchain is there or the build fails.
    pub fn helm(progress: &dyn Fn(&str)) -> Result<PathBuf, ControlPlaneError> {
        let module = module_folder();
        let folder = build_once(&module, "helm", &["go.mod", "go.sum"], progress, |to| {
            go_build(&module, "-s -w", "helm.sh/helm/v3/cmd/helm", &to.join("helm"))
        })?;
        Ok(folder.join("helm"))
    }

    fn from_assets(folder: PathBuf) -> Result<Self, ControlPlaneError> {
        let missing: Vec<&str> = PARTS.into_iter().filter(|part| !folder.join(part).is_file()).collect();
        if missing.is_empty() {
            return Ok(Self { folder });
        }
        Err(ControlPlaneError::AssetsIncomplete { folder, missing: missing.join(", ") })
    }

    /// The path of one program.
    #[must_use]
    pub fn path(&self, part: &str) -> PathBuf {
        self.folder.join(part)
    }
}

fn module_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("control-plane")
}

/// The workspace's target folder, wherever the user moved it.
fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}

/// Runs `build` into a folder named after the hash of `inputs` unless that folder is there already. Several
/// processes may ask at once: one builds, the others wait for it.
fn build_once(
    module: &Path,
    name: &str,
    inputs: &[&str],
    progress: &dyn Fn(&str),
    build: impl FnOnce(&Path) -> Result<(), ControlPlaneError>,
) -> Result<PathBuf, ControlPlaneError> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for input in inputs {
        let path = module.join(input);
        let content = fs::read(&path).map_err(|source| ControlPlaneError::Folder { path, source })?;
        hash.update(&(content.len() as u64).to_le_bytes());
        hash.update(&content);
    }
    let key = hex::encode(hash.finish().as_ref().get(..8).unwrap_or_default());
    let cache = target_folder().join(name);
    let folder = cache.join(key);
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(&cache).map_err(|source| ControlPlaneError::Folder { path: cache.clone(), source })?;
    let lock_path = cache.join("lock");
    let lock = File::create(&lock_path).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.map_err(|source| ControlPlaneError::Folder { path: lock_path, source })?;
    if folder.is_dir() {
        return Ok(folder);
    }
    progress(&format!(
        "building {name} with Go (once; the first of these programs takes 10 to 20 minutes on two cores when nothing is cached)"
    ));
    let half_built =
        tempfile::tempdir_in(&cache).map_err(|source| ControlPlaneError::Folder { path: cache.clone(), source })?;
    build(half_built.path())?;
    let half_built = half_built.keep();
    fs::rename(&half_built, &folder).map_err(|source| ControlPlaneError::Folder { path: folder.clone(), source })?;
    Ok(folder)
}

fn copy_files(from: &Path, to: &Path) -> Result<(), ControlPlaneError> {
    let failed = |source| ControlPlaneError::Folder { path: from.to_owned(), source };
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        fs::copy(entry.path(), to.join(entry.file_name())).map_err(failed)?;
    }
    Ok(())
}

fn go_build(module: &Path, linker_flags: &str, package: &str, output: &Path) -> Result<(), ControlPlaneError> {
    let mut build = Command::new("go");
    build.args(["build", "-trimpath", "-ldflags", linker_flags, "-o"]).arg(output).arg(package);
    go(module, build).map(drop)
}

/// Where the module cache keeps the source of a dependency.
fn module_source(module: &Path, of: &str) -> Result<PathBuf, ControlPlaneError> {
    let mut list = Command::new("go");
    list.args(["list", "-m", "-f", "{{.Dir}}", of]);
    go(module, list).map(|output| PathBuf::from(output.trim()))
}

/// Runs `go` in a module and returns what it printed.
fn go(module: &Path, mut command: Command) -> Result<String, ControlPlaneError> {
    let wanted = go_directive(module)?;
    let result = command.env("CGO_ENABLED", "0").current_dir(module).output();
    let result = match result {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(ControlPlaneError::GoMissing { wanted }),
        other => other.map_err(|source| ControlPlaneError::Folder { path: module.to_owned(), source })?,
    };
    if result.status.success() {
        return Ok(String::from_utf8_lossy(&result.stdout).into_owned());
    }
    let output = String::from_utf8_lossy(&result.stderr);
    let lines: Vec<&str> = output.lines().filter(|line| !line.starts_with("go: downloading")).collect();
    let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
    Err(ControlPlaneError::Build { wanted, output: tail })
}

/// The `go 1.x` line of a module.
fn go_directive(module: &Path) -> Result<String, ControlPlaneError> {
    module_line(module, |line| line.strip_prefix("go "))
}

/// The version that a module requires of another.
fn required_version(module: &Path, of: &str) -> Result<String, ControlPlaneError> {
    // A comment may follow.
    module_line(module, |line| line.trim_start().strip_prefix(of)?.strip_prefix(' ')?.split(' ').next())
}

fn module_line(module: &Path, pick: impl Fn(&str) -> Option<&str>) -> Result<String, ControlPlaneError> {
    let path = module.join("go.mod");
    let text = fs::read_to_string(&path).map_err(|source| ControlPlaneError::Folder { path: path.clone(), source })?;
    let found = text.lines().find_map(|line| pick(line).map(|rest| rest.trim().to_owned()));
    found
        .ok_or_else(|| ControlPlaneError::Folder { path, source: std::io::Error::other("an expected line is missing") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_names_the_release_the_client_library_is_set_to() {
        let version = required_version(&module_folder(), "k8s.io/kubernetes").unwrap();
        assert!(version.starts_with("v1.36."), "k8s-openapi is set to v1_36, the control plane to {version}");
    }

    #[test]
    fn incomplete_assets_are_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("etcd"), "").unwrap();
        let error = Binaries::from_assets(folder.path().to_owned()).unwrap_err().to_string();
        assert!(error.contains("kube-scheduler") && !error.contains("etcd,"), "{error}");
    }
}
