//! Runs the programs that make images and turns their failures into one sentence each.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};

use crate::Error;

/// How many of a failing program's last lines are shown.
const SHOWN_LINES: usize = 6;

/// Which Debian package brings a program.
fn package_of(tool: &str) -> &'static str {
    match tool {
        "mmdebstrap" => "mmdebstrap",
        "mkfs.erofs" => "erofs-utils",
        "xz" => "xz-utils",
        "dpkg-deb" | "dpkg-query" => "dpkg",
        "apt-get" => "apt",
        "cp" | "chroot" => "coreutils",
        "cargo" => "cargo",
        _ => "apt-file",
    }
}

/// Runs `command` to its end without input and returns what it wrote.
pub(crate) fn run(step: &str, command: &mut Command) -> Result<Output, Error> {
    let tool = OsStr::to_string_lossy(command.get_program()).into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::MissingTool { package: package_of(&tool), tool: tool.clone() },
        _ => Error::Io { path: tool.clone().into(), source },
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES)).copied().collect::<Vec<_>>();
    Err(Error::Tool { step: step.to_owned(), status: output.status.to_string(), output: shown.join(" | ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = run("make", &mut Command::new("mkfs.erofs-of-nobody")).unwrap_err();
        assert_eq!(error.category(), "missing-tool");
    }

    #[test]
    fn a_failing_program_shows_its_last_lines() {
        let error = run("count", Command::new("sh").args(["-c", "seq 1 20 >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "count failed (exit status: 3): 15 | 16 | 17 | 18 | 19 | 20");
    }
}
