//! What the server costs before anyone asks it anything.

use std::{fs, time::Duration};

use anyhow::Result;

use super::{Bench, report::median, server_process::ServerProcess};

const STARTS: usize = 5;
const IDLE: Duration = Duration::from_secs(2);

pub(super) fn start(bench: &mut Bench) -> Result<()> {
    let folder = bench.workspace.copy(&bench.seeded.folder, "start")?;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let server = ServerProcess::start_chatstore(&bench.binary, &folder)?;
        times.push(server.started_in().as_secs_f64() * 1e3);
        server.stop()?;
    }
    let server = ServerProcess::start_chatstore(&bench.binary, &folder)?;
    std::thread::sleep(IDLE);
    let rss_mib = server.rss_mib()?;
    server.stop()?;
    let binary_mib = fs::metadata(&bench.binary)?.len() as f64 / f64::from(1 << 20);
    let report = &mut bench.report;
    report.at_most("start on an existing store, until the first 200 of /readyz", 200.0, " ms", median(times));
    report.at_most("memory 2 s after the start", 40.0, " MiB", rss_mib);
    report.at_most("release binary", 25.0, " MiB", binary_mib);
    Ok(())
}
