//! `chatstore export`: every conversation of a project as JSON Lines, beside a running server.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use chatstore_core::clock::Ctx;
use chatstore_core::projects::DEFAULT_PROJECT;
use chatstore_core::sessions::Session;
use chatstore_core::store::{Scope, Store};
use chatstore_server::api::archive::{Conversation, ConversationMessage};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use indicatif::HumanCount;

use crate::engine;
use crate::import::progress::{Progress, counted, rate, seconds};
use crate::projects;
use crate::settings::StoreSettings;

const BUFFER_BYTES: usize = 256 << 10;
const SESSIONS_A_PAGE: u32 = 100;
const MESSAGES_A_PAGE_MAX: u32 = 500;
/// What a page of messages should hold, so that long messages come in short pages.
const PAGE_BYTES: u64 = 512 << 10;

#[derive(Args)]
pub(crate) struct ExportArgs {
    /// The file to write, compressed if its name ends in `.gz`; standard output if not given or `-`.
    file: Option<PathBuf>,
    /// The project.
    #[arg(long, default_value = DEFAULT_PROJECT)]
    project: String,
    /// Replace FILE if it exists.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    settings: StoreSettings,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn export(args: ExportArgs) -> anyhow::Result<()> {
    let config = args.settings.load()?;
    let file = args.file.filter(|file| file.as_os_str() != "-");
    if let Some(file) = &file
        && !args.force
        && file.is_file()
    {
        bail!("{} exists; name another file, or replace it with --force", file.display());
    }
    let ctx = Ctx::system();
    let open = engine::open_existing(&config, &ctx).await?;
    let result = run(open.store.as_ref(), &args.project, file.as_deref()).await;
    open.store.close().await;
    result
}

async fn run(store: &dyn Store, project: &str, file: Option<&Path>) -> anyhow::Result<()> {
    let found = projects::find(store, project).await?;
    let out = Output::open(file)?;
    let mut export = Export::new(store, Scope::project(found.project_id), out);
    let written = export.write_all().await;
    let elapsed = export.progress.finish();
    match written.and_then(|()| Ok(export.out.finish()?)) {
        // A reader that has seen enough (`| head`) is no error.
        Err(error) if file.is_none() && is_broken_pipe(&error) => return Ok(()),
        result => {
            let name = file.map_or("standard output".into(), Path::to_string_lossy);
            result.with_context(|| format!("the export to {name} stopped"))?;
        }
    }
    let rate = HumanCount(rate(export.messages, elapsed));
    export.progress.say(&format!(
        "Exported {} and {} in {} ({rate} messages/s).",
        counted(export.sessions, "session"),
        counted(export.messages, "message"),
        seconds(elapsed),
    ));
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

struct Export<'a> {
    store: &'a dyn Store,
    scope: Scope,
    out: Output,
    progress: Progress,
    sessions: u64,
    messages: u64,
}

impl<'a> Export<'a> {
    fn new(store: &'a dyn Store, scope: Scope, out: Output) -> Self {
        Self { store, scope, out, progress: Progress::endless(), sessions: 0, messages: 0 }
    }

    async fn write_all(&mut self) -> anyhow::Result<()> {
        let mut after = None;
        loop {
            let page = self.store.export_sessions(&self.scope, after, SESSIONS_A_PAGE).await?;
            for session in &page {
                self.write_session(session).await?;
                after = Some(session.session_id);
            }
            if page.len() < SESSIONS_A_PAGE as usize {
                return Ok(());
            }
        }
    }

    /// Writes a line, page by page of its messages.
    async fn write_session(&mut self, session: &Session) -> anyhow::Result<()> {
        let writer = &mut self.out.writer;
        writer.write_all(line_head(&Conversation::of(session))?.as_bytes())?;
        let (mut seq, mut limit) = (0, MESSAGES_A_PAGE_MAX / 8);
        while seq < session.last_seq {
            let id = session.session_id;
            let page = self.store.export_messages(&self.scope, id, seq, session.last_seq, limit).await?;
            if page.is_empty() {
                bail!(
                    "session {id} has {} messages, but only {seq} can be read; the database is damaged",
                    session.last_seq
                );
            }
            let (count, mut bytes) = (page.len() as u64, 0);
            for message in page {
                let comma = if seq > 0 { "," } else { "" };
                seq = message.seq;
                let text = serde_json::to_string(&ConversationMessage::of(message))?;
                writer.write_all(comma.as_bytes())?;
                writer.write_all(text.as_bytes())?;
                bytes += text.len() as u64;
            }
            self.messages += count;
            let fitting = count * PAGE_BYTES / bytes.max(1);
            limit = u32::try_from(fitting).unwrap_or(u32::MAX).clamp(1, MESSAGES_A_PAGE_MAX);
            let (sessions, messages) = (self.sessions, self.messages);
            self.progress.tick(|elapsed| {
                let rate = HumanCount(rate(messages, elapsed));
                format!("{}, {} ({rate} messages/s)", counted(sessions, "session"), counted(messages, "message"))
            });
        }
        writer.write_all(b"]}\n")?;
        self.sessions += 1;
        Ok(())
    }
}

/// A conversation's line up to its first message, which is what it ends with.
pub(crate) fn line_head(conversation: &Conversation) -> anyhow::Result<String> {
    let mut head = serde_json::to_string(conversation)?;
    let end = head.strip_suffix("]}").context("a conversation does not end with its messages")?.len();
    head.truncate(end);
    Ok(head)
}

/// Where the lines go. A file has its name only when it is whole.
struct Output {
    writer: Writer,
    /// The file under its passing name and its final one.
    file: Option<(PathBuf, PathBuf)>,
}

enum Writer {
    Plain(BufWriter<Box<dyn Write>>),
    Gzip(GzEncoder<BufWriter<Box<dyn Write>>>),
}

impl Output {
    fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            let out = BufWriter::with_capacity(BUFFER_BYTES, Box::new(io::stdout()) as Box<dyn Write>);
            return Ok(Self { writer: Writer::Plain(out), file: None });
        };
        // A pipe or device is written as it stands.
        let in_place = path.metadata().is_ok_and(|metadata| !metadata.is_file());
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = if in_place { path.to_owned() } else { PathBuf::from(partial) };
        let file = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
        let out = BufWriter::with_capacity(BUFFER_BYTES, Box::new(file) as Box<dyn Write>);
        let writer = match path.extension().is_some_and(|extension| extension == "gz") {
            true => Writer::Gzip(GzEncoder::new(out, Compression::default())),
            false => Writer::Plain(out),
        };
        Ok(Self { writer, file: (!in_place).then(|| (partial, path.to_owned())) })
    }

    /// Writes what is buffered and gives the file its name.
    fn finish(&mut self) -> io::Result<()> {
        self.writer.end()?;
        let Some((partial, path)) = &self.file else { return Ok(()) };
        File::open(partial)?.sync_all()?;
        std::fs::rename(partial, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        self.file = None;
        Ok(())
    }
}

impl Drop for Output {
    /// What is not whole is not left behind.
    fn drop(&mut self) {
        if let Some((partial, _)) = &self.file {
            let _ = std::fs::remove_file(partial);
        }
    }
}

impl Writer {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Gzip(out) => out.write_all(bytes),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Gzip(out) => {
                out.try_finish()?;
                out.get_mut().flush()
            }
        }
    }
}
