//! Into the store itself, many conversations at once so that they share commits.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use chatstore_core::archive::Imported;
use chatstore_core::clock::Ctx;
use chatstore_core::limits::NAME_BYTES_MAX;
use chatstore_core::projects::DEFAULT_PROJECT;
use chatstore_core::store::{Scope, Store, StoreError};
use chatstore_server::api::archive::{Conversation, ImportError, ImportRules, KeptIds, import_conversation};
use chatstore_server::config::Config;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Report;
use super::lines::{Lines, parse};
use crate::arguments::check_name;
use crate::audit::audited;
use crate::engine;
use crate::projects;

/// Conversations on their way into the store at once.
const IN_FLIGHT_MAX: usize = 128;
/// KiB of lines read but not stored yet. A longer line waits until it is alone.
const PENDING_KIB_MAX: u32 = 32 << 10;
/// How long a busy store is asked again.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
pub(super) async fn import(
    config: &Config,
    project: Option<&str>,
    lines: Lines,
    report: &mut Report<'_>,
) -> anyhow::Result<()> {
    let ctx = Ctx::system();
    let project = project.unwrap_or(DEFAULT_PROJECT);
    check_name("--project", project, NAME_BYTES_MAX)?;
    let open = engine::open_exclusive(config, &ctx, engine::lock(config, "import")?).await?;
    let store = open.store.clone();
    let result = audited(store.as_ref(), &ctx.clone(), "import", async |deed| {
        let project = projects::find_or_create(open.store.as_ref(), &ctx, project).await?;
        deed.concerns(&project);
        deed.has_begun();
        let scope = Scope::project(project.project_id);
        let embed = open.store.get_embedding_source().await?.is_some();
        let rules = ImportRules { content_bytes_max: config.content_bytes_max, embed };
        let mut importer = Importer {
            store: open.store.clone(),
            ctx,
            scope,
            rules,
            running: JoinSet::new(),
            keys: HashSet::new(),
            report,
        };
        importer.run(lines).await
    })
    .await;
    // What was handed over is stored also when a later line could not be.
    open.store.close().await;
    result
}

/// A line that was read, with its share of the memory.
struct Pending {
    number: u64,
    conversation: Result<Conversation, String>,
    permit: OwnedSemaphorePermit,
}

/// A conversation that the store has answered.
struct Stored {
    number: u64,
    key: Key,
    result: Result<Imported, ImportError>,
}

/// Lines with the same key may be parts of one session: they keep their order.
type Key = (Option<String>, Option<String>);

struct Importer<'a, 'b> {
    store: Arc<dyn Store>,
    ctx: Ctx,
    scope: Scope,
    rules: ImportRules,
    running: JoinSet<Stored>,
    keys: HashSet<Key>,
    report: &'a mut Report<'b>,
}

impl Importer<'_, '_> {
    async fn run(&mut self, lines: Lines) -> anyhow::Result<()> {
        let mut pending = read_ahead(lines)?;
        loop {
            tokio::select! {
                Some(stored) = self.running.join_next() => self.settle(stored?)?,
                next = pending.recv(), if self.running.len() < IN_FLIGHT_MAX => match next {
                    Some(Ok(next)) => self.start(next).await?,
                    Some(Err(error)) => {
                        self.finish().await?;
                        return Err(error);
                    }
                    None => return self.finish().await,
                },
            }
            self.report.tick();
        }
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        while let Some(stored) = self.running.join_next().await {
            self.settle(stored?)?;
            self.report.tick();
        }
        Ok(())
    }

    async fn start(&mut self, pending: Pending) -> anyhow::Result<()> {
        let Pending { number, conversation, permit } = pending;
        let conversation = match conversation {
            Ok(conversation) => conversation,
            Err(reason) => {
                self.report.refuse(number, &reason);
                return Ok(());
            }
        };
        let key = (conversation.user_id.clone(), conversation.id.clone().or_else(|| conversation.session_id.clone()));
        while self.keys.contains(&key) {
            match self.running.join_next().await {
                Some(stored) => self.settle(stored?)?,
                None => break,
            }
        }
        self.keys.insert(key.clone());
        let (store, ctx, scope) = (self.store.clone(), self.ctx.clone(), self.scope.clone());
        let rules = self.rules;
        self.running.spawn(async move {
            let result = store_patiently(store.as_ref(), (&ctx, &scope), rules, conversation).await;
            drop(permit);
            Stored { number, key, result }
        });
        // The task runs up to its commit, so that the writer has work while the next line is made ready.
        tokio::task::yield_now().await;
        Ok(())
    }

    fn settle(&mut self, stored: Stored) -> anyhow::Result<()> {
        let Stored { number, key, result } = stored;
        self.keys.remove(&key);
        let tally = &mut self.report.tally;
        match result {
            Ok(imported) => {
                tally.sessions += u64::from(imported.session);
                tally.known += u64::from(!imported.session);
                tally.messages += imported.messages;
            }
            Err(ImportError::Refused(reason)) => self.report.refuse(number, &reason),
            Err(ImportError::Store(StoreError::Full)) => bail!("the disk is full; free some space"),
            Err(ImportError::Store(StoreError::Busy)) => {
                bail!("the database is kept busy by another process; wait until that is done")
            }
            Err(ImportError::Store(error)) => {
                return Err(anyhow!(error).context(format!("line {number} could not be stored")));
            }
        }
        Ok(())
    }
}

/// Reads and parses on a thread of its own, ahead of the store by a bounded number of bytes.
fn read_ahead(mut lines: Lines) -> anyhow::Result<mpsc::Receiver<anyhow::Result<Pending>>> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT_MAX);
    let memory = Arc::new(Semaphore::new(PENDING_KIB_MAX as usize));
    let runtime = tokio::runtime::Handle::current();
    let mut next = move || -> anyhow::Result<Option<Pending>> {
        let Some(line) = lines.next()? else { return Ok(None) };
        let bytes = line.text.as_ref().map_or(0, Vec::len);
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).saturating_add(1).min(PENDING_KIB_MAX);
        let permit = runtime.block_on(memory.clone().acquire_many_owned(kib))?;
        let conversation = line.text.and_then(|text| parse(&text));
        Ok(Some(Pending { number: line.number, conversation, permit }))
    };
    let read = move || {
        // When the receiver is gone, the import has ended.
        while let Some(pending) = next().transpose() {
            let is_last = pending.is_err();
            if sender.blocking_send(pending).is_err() || is_last {
                break;
            }
        }
    };
    std::thread::Builder::new().name("import-reader".to_owned()).spawn(read).context("cannot start a thread")?;
    Ok(receiver)
}

/// Stores it; while the store is busy it waits, longer each time.
async fn store_patiently(
    store: &dyn Store,
    context: (&Ctx, &Scope),
    rules: ImportRules,
    conversation: Conversation,
) -> Result<Imported, ImportError> {
    let (mut pause, mut waited) = (Duration::from_millis(10), Duration::ZERO);
    loop {
        let attempt = import_conversation(store, context, KeptIds::ALL, rules, &conversation);
        match attempt.await {
            Err(ImportError::Store(StoreError::Busy)) if waited < BUSY_TIMEOUT => {
                tokio::time::sleep(pause).await;
                waited += pause;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            result => return result,
        }
    }
}
