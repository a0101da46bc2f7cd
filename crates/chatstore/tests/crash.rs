//! Writers append, the process is killed at a random moment, thirty times on the same file: what
//! was acknowledged is there afterwards, unchanged and once, and nothing is there that was never sent.

mod support;

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use support::journal::{End, Writer, check};
use support::{DATABASE, Random, Server, eventually, integrity};

const ROUNDS: u64 = 30;
const WRITERS: usize = 8;
const SESSIONS: usize = 4;
/// From the first append of a round to its end.
const ROUND_MS: std::ops::Range<u64> = 50..400;
const READY_LIMIT: Duration = Duration::from_secs(5);

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let seed = Random::any_seed();
    eprintln!("CHATSTORE_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut writers: Vec<Writer> = (0..WRITERS).map(|number| Writer::new(number, seed)).collect();
    let mut server = Server::start(folder.path());
    let sessions: Vec<String> = (0..SESSIONS).map(|_| server.client().new_session()).collect();
    let never = AtomicBool::new(false);
    let mut ready_max = Duration::ZERO;
    let mut present = 0;
    for round in 0..ROUNDS {
        let life = ROUND_MS.start + random.below(ROUND_MS.end - ROUND_MS.start);
        std::thread::scope(|scope| {
            for writer in &mut writers {
                scope.spawn(|| assert_eq!(writer.append_until(&server.url, &sessions, &never), End::Broken));
            }
            std::thread::sleep(Duration::from_millis(life));
            server.process.kill();
        });
        let started = Instant::now();
        server = Server::start(folder.path());
        let mut client = server.client();
        eventually("readiness", READY_LIMIT, || (client.get("/readyz").status == 200).then_some(()));
        ready_max = ready_max.max(started.elapsed());
        assert!(started.elapsed() < READY_LIMIT, "round {round}: ready after {:?}", started.elapsed());
        present = check(&server.url, &sessions, &writers);
    }
    server.stop();
    assert_eq!(integrity(&folder.path().join(DATABASE)), "ok");
    let (sent, acknowledged) =
        writers.iter().map(Writer::counts).fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
    eprintln!(
        "{ROUNDS} kills: {acknowledged} of {sent} messages acknowledged, {present} there, ready within {ready_max:?}"
    );
    assert_eq!(writers.iter().map(Writer::refused).sum::<usize>(), 0);
    assert!(acknowledged > 500, "the test has hardly tested: {acknowledged} acknowledged");
}
