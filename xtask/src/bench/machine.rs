//! The machine a run happened on, and how long its disk takes to keep something.

use std::{
    fmt,
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::Command,
    time::Instant,
};

use anyhow::Result;
use serde::Serialize;

use super::report::median;

const SYNCS: usize = 200;

/// Where and when a run happened.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    date: String,
    kernel: String,
    processor: String,
    cores: usize,
    filesystem: String,
    sync_data_us: f64,
}

impl Machine {
    pub(super) fn read(folder: &Path) -> Result<Self> {
        Ok(Self {
            date: date(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            filesystem: filesystem(&fs::read_to_string("/proc/self/mounts").unwrap_or_default(), folder),
            sync_data_us: sync_data_us(folder)?,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, kernel, processor, cores, filesystem, sync_data_us } = self;
        write!(
            formatter,
            "{date}: {cores} cores ({processor}), Linux {kernel}, {filesystem}, 4 KiB write + fdatasync {sync_data_us:.0} µs"
        )
    }
}

fn date() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn processor(cpuinfo: &str) -> String {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// The type of the filesystem with the longest mount point above `folder`.
fn filesystem(mounts: &str, folder: &Path) -> String {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(mount, _)| folder.starts_with(mount))
        .max_by_key(|(mount, _)| mount.len())
        .map_or_else(|| "unknown filesystem".to_owned(), |(_, kind)| kind.to_owned())
}

/// The median time to append 4 KiB to a file and have the disk confirm it.
fn sync_data_us(folder: &Path) -> Result<f64> {
    let path = folder.join("sync-probe");
    let mut file = File::create(&path)?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(path)?;
    Ok(median(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_names_the_filesystem() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n";
        assert_eq!(filesystem(mounts, Path::new("/tmp/x")), "tmpfs");
        assert_eq!(filesystem(mounts, Path::new("/tmpfoo/x")), "ext4");
        assert_eq!(filesystem("", Path::new("/x")), "unknown filesystem");
    }

    #[test]
    fn the_processor_is_named_or_its_architecture() {
        assert_eq!(processor("vendor: x\nmodel name\t: Fast 9000\n"), "Fast 9000");
        assert_eq!(processor(""), std::env::consts::ARCH);
    }
}
