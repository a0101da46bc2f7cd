//! Stores to measure on: folders that vanish with the run, filled through the server's own API.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    client::request,
    load::{block_on, send_all},
    server_process::{API_KEY, ServerProcess},
};

/// The owner of every session.
pub(super) const USER: &str = "bench-user";
pub(super) const SESSIONS: usize = 1000;
/// The sessions that begin with a batch of messages, so that there is a page to read.
pub(super) const LONG_SESSIONS: usize = 100;
const SETUP_CONNECTIONS: usize = 32;
const FILL_CONNECTIONS: usize = 4;

/// A folder on the disk of the build, removed at the end.
pub(super) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub(super) fn create(target: &Path) -> Result<Self> {
        let root = target.join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
        Ok(Self { root })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(name);
        fs::create_dir(&folder)?;
        Ok(folder)
    }

    /// A copy of a closed store.
    pub(super) fn copy(&self, from: &Path, name: &str) -> Result<PathBuf> {
        let folder = self.folder(name)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
        Ok(folder)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

pub(super) const CONTENT: &str = "How do I keep the answers of a long conversation apart from the questions that led \
                                  to them, and where would you store the sources that each of them was based on?";

/// The body of one message, about 200 bytes of JSON.
pub(super) fn message_body() -> String {
    json!({ "role": "user", "content": CONTENT }).to_string()
}

/// `count` messages as one array.
pub(super) fn batch_body(count: usize) -> String {
    format!("[{}]", vec![message_body(); count].join(","))
}

pub(super) fn messages_path(session: &str) -> String {
    format!("/api/v1/sessions/{session}/messages")
}

/// Creates sessions, all of one user; gives their ids.
pub(super) fn create_sessions(server: &ServerProcess, count: usize) -> Result<Vec<String>> {
    let make = |index: usize| {
        let body = json!({ "user_id": USER, "session_name": format!("Conversation {index}") }).to_string();
        request("POST", "/api/v1/sessions", API_KEY, &body)
    };
    let bodies = block_on(send_all(server.port(), SETUP_CONNECTIONS, count, true, make))?;
    bodies
        .iter()
        .map(|body| {
            let session: Value = serde_json::from_slice(body)?;
            let id = session.get("session_id").and_then(Value::as_str);
            Ok(id.context("a created session has no `session_id`")?.to_owned())
        })
        .collect()
}

/// Appends `batches` arrays of `batch` messages, to the sessions in turn.
pub(super) fn fill(server: &ServerProcess, sessions: &[String], batches: usize, batch: usize) -> Result<()> {
    let body = batch_body(batch);
    let make = |index: usize| request("POST", &messages_path(&sessions[index % sessions.len()]), API_KEY, &body);
    block_on(send_all(server.port(), FILL_CONNECTIONS, batches, false, make)).map(|_| ())
}

/// The answer to one GET, which has to be a success.
pub(super) fn get(server: &ServerProcess, path: &str) -> Result<Vec<u8>> {
    let mut bodies = block_on(send_all(server.port(), 1, 1, true, |_| request("GET", path, API_KEY, "")))?;
    bodies.pop().context("no answer")
}

/// The answer to one GET of a list, which has to have `count` items; a measurement of shorter pages would mislead.
pub(super) fn get_page(server: &ServerProcess, path: &str, count: usize) -> Result<Vec<u8>> {
    let body = get(server, path)?;
    let items: Vec<Value> = serde_json::from_slice(&body).with_context(|| format!("{path} gave no JSON array"))?;
    ensure!(items.len() == count, "{path} gave {} items instead of {count}", items.len());
    Ok(body)
}

/// A closed store of 1,000 sessions, 100 of which begin with 100 messages.
pub(super) struct Seeded {
    pub(super) folder: PathBuf,
    pub(super) sessions: Vec<String>,
}

impl Seeded {
    pub(super) fn create(binary: &Path, workspace: &Workspace) -> Result<Self> {
        let folder = workspace.folder("seeded")?;
        let server = ServerProcess::start_chatstore(binary, &folder)?;
        let sessions = create_sessions(&server, SESSIONS)?;
        fill(&server, &sessions[..LONG_SESSIONS], LONG_SESSIONS, 100)?;
        server.stop()?;
        Ok(Self { folder, sessions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_about_200_bytes() {
        let bytes = message_body().len();
        assert!((180..=220).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_batch_is_an_array_of_messages() {
        let batch: Vec<Value> = serde_json::from_str(&batch_body(3)).unwrap();
        assert_eq!(batch.len(), 3);
    }
}
