//! The limit of the disk and of SQLite: a plain loop of the server's inserts, without a server.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rusqlite::{Connection, Statement, params_from_iter, types::Value};

/// How fast a loop ran.
pub(super) struct Loop {
    pub(super) per_second: f64,
    pub(super) cpu_us: f64,
}

/// Inserts messages into the sessions in turn, `per_transaction` a commit, for a while.
pub(super) fn insert_loop(folder: &Path, per_transaction: usize, length: Duration) -> Result<Loop> {
    let connection = Connection::open(folder.join("chatstore.db"))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -8_192)?;
    let sessions = session_ids(&connection)?;
    let mut inserts = Inserts::prepare(&connection)?;
    let (started, cpu) = (Instant::now(), thread_cpu()?);
    let mut count = 0_usize;
    while started.elapsed() < length {
        connection.execute_batch("begin immediate")?;
        for _ in 0..per_transaction {
            inserts.append(&sessions[count % sessions.len()], count)?;
            count += 1;
        }
        connection.execute_batch("commit")?;
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), thread_cpu()?.saturating_sub(cpu));
    Ok(Loop { per_second: count as f64 / seconds, cpu_us: cpu.as_secs_f64() * 1e6 / count as f64 })
}

fn session_ids(connection: &Connection) -> Result<Vec<Value>> {
    let mut statement = connection.prepare("select session_id from sessions")?;
    let ids = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<_>, _>>()?;
    ensure!(!ids.is_empty(), "the store has no sessions");
    Ok(ids)
}

/// The two statements of an append, and a stored message whose other columns every new one repeats.
struct Inserts<'a> {
    update: Statement<'a>,
    insert: Statement<'a>,
    row: Vec<Value>,
    number: usize,
    id: usize,
}

impl<'a> Inserts<'a> {
    fn prepare(connection: &'a Connection) -> Result<Self> {
        let mut template = connection.prepare("select * from messages limit 1")?;
        let columns: Vec<String> = template.column_names().map(str::to_owned).collect();
        let row = template.query_row([], |row| (0..columns.len()).map(|index| row.get(index)).collect())?;
        let place = |name: &str| {
            let index = columns.iter().position(|column| column == name);
            index.with_context(|| format!("the table of messages has no column {name}"))
        };
        let places = vec!["?"; columns.len()].join(", ");
        Ok(Self {
            update: connection.prepare(
                "update sessions set last_seq = last_seq + 1, message_count = message_count + 1, \
                 stored_bytes = stored_bytes + 100, \
                 updated_at = updated_at + 1, last_message_at = updated_at + 1 where session_id = ? \
                 returning (session_no << 32) + last_seq",
            )?,
            insert: connection.prepare(&format!("insert into messages ({}) values ({places})", columns.join(", ")))?,
            row,
            number: place("message_no")?,
            id: place("message_id")?,
        })
    }

    fn append(&mut self, session: &Value, count: usize) -> Result<()> {
        self.row[self.number] = self.update.query_row([session], |row| row.get(0))?;
        self.row[self.id] = message_id(count);
        self.insert.execute(params_from_iter(&self.row))?;
        Ok(())
    }
}

/// Ids that grow and end in scattered bits, as the server's do.
fn message_id(count: usize) -> Value {
    let count = count as u64;
    let scattered = count.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Value::Blob([count.to_be_bytes(), scattered.to_be_bytes()].concat())
}

/// CPU time of this thread so far.
fn thread_cpu() -> Result<Duration> {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").context("/proc/thread-self/schedstat")?;
    let nanos = schedstat.split(' ').next().and_then(|field| field.parse().ok());
    nanos.map(Duration::from_nanos).context("/proc/thread-self/schedstat is not as expected")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::root;

    /// A store with two sessions and one message, on the engine's own schema.
    fn store(folder: &Path) -> Connection {
        let connection = Connection::open(folder.join("chatstore.db")).unwrap();
        let migrations = fs::read_dir(root().join("crates/chatstore-sqlite/migrations")).unwrap();
        let mut migrations: Vec<_> = migrations.map(|entry| entry.unwrap().path()).collect();
        migrations.sort();
        for migration in migrations {
            connection.execute_batch(&fs::read_to_string(migration).unwrap()).unwrap();
        }
        let seed = "insert into projects (project_id, name, created_at) values (x'01', 'default', 0);
            insert into sessions (session_id, project_id, session_name, is_favorite, metadata, last_seq,
                message_count, version, created_at, updated_at, updated_hour, active_hour)
            values (x'0a', x'01', 'a', 0, '{}', 1, 1, 1, 0, 0, 0, 0), (x'0b', x'01', 'b', 0, '{}', 0, 0, 1, 0, 0, 0, 0);
            insert into messages (message_no, message_id, role, kind, status, content, metadata, version,
                created_at, updated_at)
            values ((1 << 32) + 1, x'ff', 'user', 'message', 'completed', 'hello', '{}', 1, 0, 0);";
        connection.execute_batch(seed).unwrap();
        connection
    }

    #[test]
    fn the_loop_keeps_counters_and_seq_as_the_server_does() {
        let folder = tempfile::tempdir().unwrap();
        let connection = store(folder.path());
        let measured = insert_loop(folder.path(), 4, Duration::from_millis(20)).unwrap();
        assert!(measured.per_second > 0.0 && measured.cpu_us > 0.0);
        let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        let messages = count("select count(*) from messages");
        assert!(messages >= 5, "{messages}");
        assert_eq!(count("select sum(last_seq) from sessions"), messages);
        assert_eq!(count("select max(message_no) - (2 << 32) from messages"), (messages - 1) / 2);
    }
}
