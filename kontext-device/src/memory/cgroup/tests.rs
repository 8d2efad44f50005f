//! Groups as files of a temporary folder, laid out as the kernel lays them out.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use super::*;

const GB: u64 = 1_000_000_000;

/// v1 and v2 next to each other, with the memory controller in v1.
const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
const UNIFIED: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

/// The root of a file system.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(memberships: &str, mounts: &str) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine.write("proc/self/cgroup", memberships);
        if !mounts.is_empty() {
            machine.write("proc/self/mountinfo", mounts);
        }
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        kontext_core::create_folder(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Writes a group of v2 with `used` bytes, of which `cached` are files.
    fn group_2(&self, path: &str, limit: &str, used: u64, cached: u64) {
        self.write(&format!("{path}/memory.max"), &format!("{limit}\n"));
        self.write(&format!("{path}/memory.high"), "max\n");
        self.write(&format!("{path}/memory.current"), &format!("{used}\n"));
        let (active, slab) = (cached / 4, cached / 4);
        let stat = format!(
            "anon {}\nfile {cached}\nactive_anon 7\ninactive_file {}\nactive_file {active}\nslab_reclaimable {slab}\n",
            used - cached,
            cached - active - slab,
        );
        self.write(&format!("{path}/memory.stat"), &stat);
    }

    /// Writes a group of v1 as [`Machine::group_2`]; `limit` is the smallest on the way up.
    fn group_1(&self, path: &str, limit: u64, used: u64, cached: u64) {
        self.write(&format!("{path}/memory.limit_in_bytes"), "9223372036854771712\n");
        self.write(&format!("{path}/memory.usage_in_bytes"), &format!("{used}\n"));
        // Without `total_`, the numbers leave out the groups beneath.
        let stat = format!(
            "cache 1\ninactive_file 1\nactive_file 1\nhierarchical_memory_limit {limit}\ntotal_inactive_file {}\n\
             total_active_file {}\n",
            cached - cached / 3,
            cached / 3
        );
        self.write(&format!("{path}/memory.stat"), &stat);
    }

    fn free(&self) -> Option<u64> {
        free(self.0.path())
    }
}

#[test]
fn cached_files_are_free_under_a_limit_of_v2() {
    let machine = Machine::new("0::/app\n", UNIFIED);
    machine.group_2("sys/fs/cgroup/app", "1000000000", 999_000_000, 900_000_000);
    assert_eq!(machine.free(), Some(GB - 99_000_000));
}

#[test]
fn cached_files_are_free_under_a_limit_of_v1() {
    let machine = Machine::new("9:name=systemd:/\n4:cpu,memory:/app\n0::/\n", HYBRID);
    machine.group_1("sys/fs/cgroup/memory/app", GB, 999_000_000, 900_000_000);
    assert_eq!(machine.free(), Some(GB - 99_000_000));
}

#[test]
fn without_a_limit_the_machines_memory_decides() {
    let machine = Machine::new("0::/\n", UNIFIED);
    machine.group_2("sys/fs/cgroup", "max", 24 * GB, 23 * GB);
    assert_eq!(machine.free(), None);
    let machine = Machine::new("4:memory:/app\n0::/\n", HYBRID);
    machine.group_1("sys/fs/cgroup/memory/app", 9_223_372_036_854_771_712, 24 * GB, 23 * GB);
    assert_eq!(machine.free(), None);
}

#[test]
fn the_smallest_of_nested_limits_counts_each_with_its_own_use() {
    let machine = Machine::new("0::/a/b/c\n", UNIFIED);
    machine.group_2("sys/fs/cgroup/a", "8000000000", 7_500_000_000, GB);
    machine.group_2("sys/fs/cgroup/a/b", "max", 100, 0);
    machine.group_2("sys/fs/cgroup/a/b/c", "2000000000", 100, 0);
    // The siblings of `b` take most of `a`'s memory.
    assert_eq!(machine.free(), Some(1_500_000_000));
    machine.group_2("sys/fs/cgroup/a", "80000000000", 7_500_000_000, GB);
    assert_eq!(machine.free(), Some(2 * GB - 100));
}

#[test]
fn a_limit_above_a_container_is_seen_by_v1() {
    // The container sees its own group as the root of the mount.
    let mounts = "35 31 0:32 /docker/7f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
    let machine = Machine::new("4:memory:/docker/7f\n", mounts);
    machine.group_1("sys/fs/cgroup/memory", GB, 300_000_000, 100_000_000);
    assert_eq!(machine.free(), Some(800_000_000));
    // A group that the container made within.
    let machine = Machine::new("4:memory:/docker/7f/job\n", mounts);
    machine.group_1("sys/fs/cgroup/memory", GB, 300_000_000, 100_000_000);
    machine.group_1("sys/fs/cgroup/memory/job", GB / 2, 0, 0);
    assert_eq!(machine.free(), Some(500_000_000));
}

#[test]
fn a_slowing_limit_counts_as_a_limit() {
    let machine = Machine::new("0::/app\n", UNIFIED);
    machine.group_2("sys/fs/cgroup/app", "max", 100, 0);
    machine.write("sys/fs/cgroup/app/memory.high", "500\n");
    assert_eq!(machine.free(), Some(400));
}

#[test]
fn a_group_outside_the_mount_is_the_mounted_one() {
    for path in ["/../other", "/elsewhere"] {
        let mounts = "29 23 0:26 /mine /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let machine = Machine::new(&format!("0::{path}\n"), mounts);
        machine.group_2("sys/fs/cgroup", "1000", 300, 0);
        assert_eq!(machine.free(), Some(700), "{path}");
    }
}

#[test]
fn a_mount_of_other_groups_does_not_limit_this_process() {
    let mounts = "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                  30 23 0:26 /other /mnt/other rw - cgroup2 cgroup2 rw\n";
    let machine = Machine::new("0::/app\n", mounts);
    machine.group_2("sys/fs/cgroup/app", "1000000", 300, 0);
    machine.group_2("mnt/other", "1000", 300, 0);
    assert_eq!(machine.free(), Some(999_700));
    // Both show it.
    let machine = Machine::new("0::/other/app\n", mounts);
    machine.group_2("mnt/other/app", "1000", 300, 0);
    machine.group_2("sys/fs/cgroup/other", "500", 300, 0);
    assert_eq!(machine.free(), Some(200));
}

#[test]
fn a_mount_in_an_unusual_place_is_found() {
    let machine = Machine::new("0::/app\n", "29 23 0:26 / /my\\040groups rw - cgroup2 none rw\n");
    machine.group_2("my groups/app", "1000", 300, 0);
    assert_eq!(machine.free(), Some(700));
}

#[test]
fn the_usual_places_serve_without_a_list_of_mounts() {
    let machine = Machine::new("0::/\n", "");
    machine.group_2("sys/fs/cgroup", "1000", 300, 0);
    assert_eq!(machine.free(), Some(700));
    let machine = Machine::new("4:memory:/app\n", "");
    machine.group_1("sys/fs/cgroup/memory/app", 1000, 300, 0);
    assert_eq!(machine.free(), Some(700));
}

#[test]
fn missing_files_and_garbage_are_no_limit_or_no_cache() {
    assert_eq!(free(tempfile::tempdir().unwrap().path()), None);
    for memberships in ["", "\n::\n0\n:::::\n", "\u{0}\u{1}"] {
        assert_eq!(
            Machine::new(memberships, "garbage\n - \n1 2 3 - cgroup2\n").free(),
            None
        );
    }
    let machine = Machine::new("0::/app\n", UNIFIED);
    assert_eq!(machine.free(), None);
    for limit in ["", "-1", "1e9", "99999999999999999999999", "18446744073709551615"] {
        machine.group_2("sys/fs/cgroup/app", limit, 100, 0);
        assert_eq!(machine.free(), None, "{limit}");
    }
    machine.group_2("sys/fs/cgroup/app", "1000", 100, 0);
    machine.write("sys/fs/cgroup/app/memory.stat", "inactive_file\nactive_file x\n\u{0}\n");
    assert_eq!(machine.free(), Some(900));
    // More cache than use: the numbers are read at different times.
    machine.write(
        "sys/fs/cgroup/app/memory.stat",
        "inactive_file 18446744073709551615\nactive_file 5\n",
    );
    assert_eq!(machine.free(), Some(1000));
    // Above the limit.
    machine.group_2("sys/fs/cgroup/app", "1000", 1100, 0);
    assert_eq!(machine.free(), Some(0));
    std::fs::remove_file(machine.0.path().join("sys/fs/cgroup/app/memory.current")).unwrap();
    assert_eq!(machine.free(), None);
}
