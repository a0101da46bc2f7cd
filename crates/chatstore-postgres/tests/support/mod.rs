//! What several of these tests wait for.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

/// Waits until so many statements of stores wait for what others hold.
pub(crate) async fn await_waiting(client: &Client, statements: i64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let waiting = "select count(*) from pg_stat_activity
        where application_name = 'chatstore' and datname = current_database() and wait_event_type = 'Lock'";
    loop {
        let is_late = Instant::now() >= deadline;
        // A transaction would see no connection that began after its first look.
        client.batch_execute("select pg_stat_clear_snapshot()").await.expect("everybody may");
        let row = client.query_one(waiting, &[]).await.expect("it can be counted");
        if row.get::<_, i64>(0) >= statements {
            return;
        }
        assert!(!is_late, "fewer than {statements} wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
