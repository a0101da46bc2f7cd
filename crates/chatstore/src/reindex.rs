//! `chatstore reindex`: makes what is derived from messages anew, beside a running server.

use std::time::Duration;

use chatstore_core::clock::Ctx;
use chatstore_core::search::Derived;
use chatstore_core::store::Store;
use clap::Args;
use indicatif::HumanCount;

use crate::audit::audited;
use crate::engine;
use crate::import::progress::{Progress, counted, rate, seconds};
use crate::patience::patiently;
use crate::settings::StoreSettings;

/// Before another look at what a running server, or another process, is doing.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Args)]
pub(crate) struct ReindexArgs {
    /// Only the index of words.
    #[arg(long)]
    text: bool,
    /// Only the embeddings: queue messages that have none, and build the indexes of vectors.
    #[arg(long)]
    embeddings: bool,
    #[command(flatten)]
    settings: StoreSettings,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn reindex(args: ReindexArgs) -> anyhow::Result<()> {
    let config = args.settings.load()?;
    let ctx = Ctx::system();
    let open = engine::open_existing(&config, &ctx).await?;
    let store = open.store.as_ref();
    let is_all = args.text == args.embeddings;
    let result = audited(store, &ctx, "reindex", async |deed| {
        deed.has_begun();
        if args.text || is_all {
            let (messages, progress) = walk(store, Derived::Text).await?;
            tell(&progress, messages, "Made the index of words anew");
        }
        if args.embeddings || is_all {
            embeddings(store).await?;
            engine::build_vector_indexes(&config, |sentence| eprintln!("Indexes of vectors: {sentence}.")).await?;
        }
        Ok(())
    });
    let result = result.await;
    open.store.close().await;
    result
}

/// Queues what has no vectors of the source's model; the vectors are made by a server.
async fn embeddings(store: &dyn Store) -> anyhow::Result<()> {
    let Some(source) = store.get_embedding_source().await? else {
        eprintln!("No embeddings are queued: no server was ever started with EMBEDDINGS_URL.");
        return Ok(());
    };
    let (messages, progress) = walk(store, Derived::Embeddings).await?;
    tell(&progress, messages, &format!("Queued what has no embedding of {}", source.model));
    eprintln!("A running server with EMBEDDINGS_URL makes them; GET /api/v1/admin/embeddings tells how many wait.");
    Ok(())
}

fn tell(progress: &Progress, messages: u64, what: &str) {
    let elapsed = progress.finish();
    let rate = HumanCount(rate(messages, elapsed));
    progress.say(&format!(
        "{what}: looked at {} in {} ({rate} messages/s).",
        counted(messages, "message"),
        seconds(elapsed)
    ));
}

/// Starts a walk over all messages and goes to its end, together with any server that runs.
async fn walk(store: &dyn Store, derived: Derived) -> anyhow::Result<(u64, Progress)> {
    let mut progress = Progress::endless();
    patiently(|| store.start_reindex(derived)).await?;
    let mut messages = 0;
    loop {
        let done = patiently(|| store.reindex_some(derived)).await?;
        messages += done.messages;
        progress.tick(|elapsed| {
            let rate = HumanCount(rate(messages, elapsed));
            format!("{}: {} ({rate} messages/s)", derived.as_str(), counted(messages, "message"))
        });
        if !done.more {
            return Ok((messages, progress));
        }
        if done.messages == 0 {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
