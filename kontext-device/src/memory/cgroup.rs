//! Free memory of the control groups of this process.
//!
//! sysinfo reads the group at the root of the mount only, and counts the page cache as used, of which a run
//! fills much by reading weights. The kernel evicts cached pages before it refuses memory, so here they count as
//! free, as in `MemAvailable` of the whole machine.
//!
//! Sources: Linux 6.12 `Documentation/admin-guide/cgroup-v2.rst` ("Memory Interface Files"),
//! `Documentation/admin-guide/cgroup-v1/memory.rst` (5.2 "stat file"), `mm/show_mem.c` `si_mem_available` (cached
//! files and reclaimable slab are available); proc(5) for `mountinfo`, cgroups(7) for `/proc/self/cgroup`.

use std::path::{Component, Path, PathBuf};

use super::files::{number_after, read};

/// v1 writes this much or more (2^63, rounded down to a page) if there is no limit.
const UNLIMITED: u64 = 1 << 62;

/// Returns the bytes that the memory limits of this process's groups leave, the smallest over the own groups and
/// all above; `None` without a limit. `root` is the root of the file system, `/` but for tests.
pub(super) fn free(root: &Path) -> Option<u64> {
    let memberships = read(&root.join("proc/self/cgroup"))?;
    let mounts = read(&root.join("proc/self/mountinfo")).unwrap_or_default();
    let groups = [Version::One, Version::Two].into_iter().flat_map(|version| {
        let path = version.path(&memberships);
        path.map_or_else(Vec::new, |path| version.groups(path, &mounts))
            .into_iter()
            .map(move |group| (version, group))
    });
    groups
        .filter_map(|(version, group)| version.left(&beneath(root, &group)))
        .min()
}

/// Version of the kernel's interface. A machine may mount both, with the memory controller in one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// Returns the process's group, a path within the hierarchy, of lines such as `4:memory:/a` and `0::/a`.
    fn path(self, memberships: &str) -> Option<&str> {
        memberships.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_wanted = match self {
                Self::One => controllers.split(',').any(|name| name == "memory"),
                Self::Two => id == "0" && controllers.is_empty(),
            };
            is_wanted.then_some(path)
        })
    }

    /// Returns the folders of a group and of those above it, as far up as they are mounted.
    fn groups(self, path: &str, mounts: &str) -> Vec<PathBuf> {
        let mut mounts: Vec<Mount> = mounts.lines().filter_map(|line| self.mount(line)).collect();
        if mounts.is_empty() {
            mounts.push(self.usual_mount());
        }
        let mut own: Vec<(&Mount, PathBuf)> = mounts
            .iter()
            .filter_map(|mount| Some((mount, mount.folder(Path::new(path))?)))
            .collect();
        if own.is_empty() {
            // A container may see no mount that holds its group, but one of a group above or of its own.
            own = mounts.iter().map(|mount| (mount, mount.point.clone())).collect();
        }
        let folders = own.iter().flat_map(|(mount, own)| {
            own.ancestors()
                .take_while(|folder| folder.starts_with(&mount.point))
                .map(Path::to_owned)
        });
        folders.collect()
    }

    /// Reads a line of `mountinfo` such as `35 31 0:32 /root /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory`.
    fn mount(self, line: &str) -> Option<Mount> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let mount = Mount {
            root: unescaped(place.next()?),
            point: unescaped(place.next()?),
        };
        let mut kind = kind.split(' ');
        let is_wanted = match (self, kind.next()?) {
            (Self::One, "cgroup") => kind.nth(1)?.split(',').any(|option| option == "memory"),
            (Self::Two, "cgroup2") => true,
            _ => false,
        };
        is_wanted.then_some(mount)
    }

    fn usual_mount(self) -> Mount {
        Mount {
            root: PathBuf::from("/"),
            point: PathBuf::from(match self {
                Self::One => "/sys/fs/cgroup/memory",
                Self::Two => "/sys/fs/cgroup",
            }),
        }
    }

    /// Returns the bytes that a group's limit leaves; `None` without a limit, or without the memory controller.
    fn left(self, group: &Path) -> Option<u64> {
        let number = |file: &str| read(&group.join(file))?.trim().parse::<u64>().ok();
        let stat = read(&group.join("memory.stat")).unwrap_or_default();
        let (limits, used, reclaimed) = match self {
            // The limit in `memory.stat` includes those of groups above, which a container does not see.
            Self::One => (
                [
                    number("memory.limit_in_bytes"),
                    number_after(&stat, "hierarchical_memory_limit"),
                ],
                number("memory.usage_in_bytes")?,
                &["total_inactive_file", "total_active_file"][..],
            ),
            // Above `memory.high` a process is slowed down until it takes less. Both hold "max" without a limit.
            Self::Two => (
                [number("memory.max"), number("memory.high")],
                number("memory.current")?,
                &["inactive_file", "active_file", "slab_reclaimable"][..],
            ),
        };
        let limit = limits.into_iter().flatten().filter(|&limit| limit < UNLIMITED).min()?;
        let reclaimable = reclaimed
            .iter()
            .filter_map(|name| number_after(&stat, name))
            .fold(0, u64::saturating_add);
        Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
    }
}

/// A mounted hierarchy, or a part of one.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The mounted group, as a path within the hierarchy; in a container its own group.
    root: PathBuf,
    /// The folder that it is mounted on.
    point: PathBuf,
}

impl Mount {
    /// Returns the folder of a group; `None` if the group lies outside.
    fn folder(&self, path: &Path) -> Option<PathBuf> {
        let is_inside = |path: &&Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        let inner = path.strip_prefix(&self.root).ok().filter(is_inside)?;
        Some(self.point.join(inner))
    }
}

/// Replaces the kernel's escapes of white space and backslashes in a path.
fn unescaped(path: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(
        escapes
            .iter()
            .fold(path.to_owned(), |path, (from, to)| path.replace(from, to)),
    )
}

/// Returns an absolute path as one beneath `root`.
fn beneath(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests;
