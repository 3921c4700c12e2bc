//! How much memory the agent may use: the limit of its unit or container.

use std::fs::read_to_string;
use std::path::Path;

/// The lowest limit of the control groups that this process is in, in bytes; `None` where there is none or the kernel does
/// not tell (kernel, Documentation/admin-guide/cgroup-v2.rst, `memory.max`).
pub fn memory_limit() -> Option<u64> {
    let groups = read_to_string("/proc/self/cgroup").ok()?;
    limit_below(Path::new("/sys/fs/cgroup"), &groups)
}

fn limit_below(root: &Path, groups: &str) -> Option<u64> {
    // The unified hierarchy has number 0 and no controllers named.
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = root.join(group);
    let above = folder.ancestors().take_while(|folder| folder.starts_with(root));
    above.filter_map(|folder| read_to_string(folder.join("memory.max")).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let service = root.path().join("system.slice/bascule-agent.service");
        std::fs::create_dir_all(&service).unwrap();
        let groups = "1:name=systemd:/else\n0::/system.slice/bascule-agent.service\n";
        assert_eq!(limit_below(root.path(), groups), None);
        std::fs::write(service.join("memory.max"), "134217728\n").unwrap();
        std::fs::write(root.path().join("system.slice/memory.max"), "max\n").unwrap();
        assert_eq!(limit_below(root.path(), groups), Some(128 << 20));
        std::fs::write(root.path().join("system.slice/memory.max"), "1000\n").unwrap();
        assert_eq!(limit_below(root.path(), groups), Some(1000));
        // In a container of its own name space.
        assert_eq!(limit_below(&service, "0::/\n"), Some(128 << 20));
        assert_eq!(limit_below(root.path(), "3:cpu:/\n"), None);
    }
}
