//! How much memory this machine has left: sizes that a user asks for are compared with it before work begins. And how much
//! this process uses.

use std::fs;

/// Bytes that can still be used: what the system calls available (caches that it would give up included) and free swap,
/// but no more than the control group of this process allows. `None` where the system does not say (it is asked on Linux).
pub fn available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let system = field(&info, "MemAvailable:")? + field(&info, "SwapFree:").unwrap_or(0);
    Some(group().map_or(system, |group| group.min(system)))
}

/// Bytes of memory that the machine has, in use or not. `None` where the system does not say (it is asked on Linux).
pub fn total() -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Bytes of this process that are in memory now.
    pub resident: u64,
    /// The most that was resident since the process began.
    pub peak: u64,
}

/// What this process uses. `None` where the system does not say (it is asked on Linux).
pub fn used() -> Option<Used> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(Used { resident: field(&status, "VmRSS:")?, peak: field(&status, "VmHWM:")? })
}

/// The bytes of a line of /proc/meminfo, or of a process's status, which have them as kB.
fn field(info: &str, name: &str) -> Option<u64> {
    let line = info.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group leaves; a container sees its own as the root.
fn group() -> Option<u64> {
    let root = "/sys/fs/cgroup";
    let number = |file: &str| fs::read_to_string(format!("{root}/{file}")).ok()?.trim().parse::<u64>().ok();
    let used = |stat: &str, name: &str| {
        let text = fs::read_to_string(format!("{root}/{stat}")).ok()?;
        // File caches do not count: they are given up first.
        text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    // Version 2; no number, but "max", where there is no limit. Then version 1, where none is a huge number.
    let (limit, used) = match number("memory.max") {
        Some(limit) => (limit, used("memory.stat", "anon ")),
        None => (number("memory/memory.limit_in_bytes")?, used("memory/memory.stat", "total_rss ")),
    };
    Some(limit.saturating_sub(used.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let info = "MemTotal:  100 kB\nMemAvailable:     62 kB\nSwapFree: 0 kB\nOdd: x kB\n";
        assert_eq!(field(info, "MemAvailable:"), Some(62 * 1024));
        assert_eq!(field(info, "SwapFree:"), Some(0));
        assert_eq!(field(info, "Odd:"), None);
        assert_eq!(field(info, "HugePages_Total:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_some() {
        let bytes = available().unwrap();
        assert!((16 << 20..1 << 50).contains(&bytes), "{bytes}");
        assert!(total().unwrap() > 16 << 20);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_written_to_is_used() {
        let before = used().unwrap();
        assert!(before.resident > 0 && before.resident <= before.peak, "{before:?}");
        let size = 64 << 20;
        let data = std::hint::black_box(vec![1u8; size]);
        let after = used().unwrap();
        assert!(after.peak >= size as u64 && after.resident >= size as u64, "{before:?} {after:?}");
        drop(data);
    }
}
