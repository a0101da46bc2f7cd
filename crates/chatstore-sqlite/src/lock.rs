//! The lock file beside a database: one process at a time serves, imports into or migrates it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use chatstore_core::migrations::OpenError;

use crate::error::file_error;

/// The held lock; the system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    command: &'static str,
}

/// Where the lock of a database file stands: beside the file itself, also when it is named by a link.
pub fn lock_path(database: &Path) -> PathBuf {
    let database = std::fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut name = database.into_os_string();
    name.push(".lock");
    PathBuf::from(name)
}

impl LockFile {
    /// Takes the lock of `database` for `command`, or tells who holds it.
    ///
    /// # Errors
    /// A sentence that names the process that holds it, or why the file cannot be made.
    pub fn acquire(database: &Path, command: &'static str) -> Result<Self, OpenError> {
        let path = lock_path(database);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| file_error(&path, &error))?;
        match file.try_lock() {
            Ok(()) => {
                let mut lock = Self { file, command };
                lock.write("").map_err(|error| file_error(&path, &error))?;
                Ok(lock)
            }
            Err(TryLockError::WouldBlock) => Err(held(database, &path)),
            Err(TryLockError::Error(error)) => Err(file_error(&path, &error)),
        }
    }

    /// Writes where the holder can be reached, for those it keeps away.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn announce(&mut self, url: &str) -> std::io::Result<()> {
        self.write(url)
    }

    fn write(&mut self, url: &str) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        write!(self.file, "{} {} {url}", std::process::id(), self.command)
    }
}

fn held(database: &Path, path: &Path) -> OpenError {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    let mut words = text.split_whitespace();
    let holder = match (read, words.next(), words.next()) {
        (Ok(_), Some(pid), Some(command)) => format!("`chatstore {command}` (process {pid})"),
        _ => "another process".to_owned(),
    };
    let advice = match words.next() {
        Some(url) => format!("stop it, or go through it: --url {url}"),
        None => "wait until it has finished, or stop it".to_owned(),
    };
    OpenError::new(format!("{} is in use by {holder}; {advice}", database.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("chatstore.db");
        let mut lock = LockFile::acquire(&database, "serve").unwrap();
        lock.announce("http://127.0.0.1:8000").unwrap();
        let refusal = LockFile::acquire(&database, "import").unwrap_err().to_string();
        assert!(refusal.contains(&format!("`chatstore serve` (process {})", std::process::id())), "{refusal}");
        assert!(refusal.contains("--url http://127.0.0.1:8000"), "{refusal}");
        drop(lock);
        LockFile::acquire(&database, "import").unwrap();
    }
}
