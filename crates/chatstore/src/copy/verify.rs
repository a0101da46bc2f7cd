//! Comparing two stores row by row: what each holds, a checksum over it, and where they differ.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;
use std::sync::Arc;

use anyhow::Context as _;
use chatstore_core::archive::Checksum;
use chatstore_core::audit::AuditEvent;
use chatstore_core::embeddings::Embedding;
use chatstore_core::messages::Message;
use chatstore_core::sessions::Session;
use chatstore_core::store::{Scope, Store};
use indicatif::HumanCount;
use tokio_util::task::AbortOnDropHandle;

use super::events::{Events, is_of_copy};
use super::meter::Meter;
use super::pages::{Sessions, embeddings, messages};
use super::projects::{api_keys, comparable, is_same, projects};
use super::{Ends, IN_FLIGHT_MAX};

/// Differences that are named.
const DIFFERENCES_SHOWN: usize = 10;

/// What either end holds, and where they differ.
#[derive(Default)]
pub(super) struct Comparison {
    source: Totals,
    target: Totals,
    /// The first of them, in words.
    shown: Vec<String>,
    differences: usize,
}

/// What one end holds.
#[derive(Default)]
struct Totals {
    projects: usize,
    api_keys: usize,
    events: u64,
    sessions: u64,
    messages: u64,
    vectors: u64,
    checksum: Checksum,
}

/// Reads both ends whole: projects and keys, then the sessions project by project, each in the
/// order of its ids.
pub(super) async fn compare(ends: &Ends, meter: &Arc<Meter>) -> anyhow::Result<Comparison> {
    let mut comparison = Comparison::default();
    let mut found = [projects(ends.source.as_ref()).await?, projects(ends.target.as_ref()).await?];
    found.iter_mut().flat_map(BTreeMap::values_mut).for_each(|project| *project = comparable(project));
    comparison.add_rows("project", &found, |totals| &mut totals.projects, Checksum::add_project, PartialEq::eq);
    let keys = [api_keys(ends.source.as_ref()).await?, api_keys(ends.target.as_ref()).await?];
    comparison.add_rows("API key", &keys, |totals| &mut totals.api_keys, Checksum::add_api_key, is_same);
    comparison.add_events(ends).await?;
    // In their order, so that the checksum does not depend on who is faster.
    let mut running = VecDeque::new();
    let project_ids: BTreeSet<_> = found.iter().flat_map(BTreeMap::keys).collect();
    for project_id in project_ids {
        let scope = Scope::project(*project_id);
        let mut pairs = Pairs::of(ends, &scope).await?;
        while let Some([source, target]) = pairs.next().await? {
            if running.len() >= IN_FLIGHT_MAX {
                comparison.settle(running.pop_front()).await?;
            }
            let (ends, scope, meter) = (ends.clone(), scope.clone(), meter.clone());
            let comparing = async move { compare_session(&ends, &scope, source, target, &meter).await };
            running.push_back(AbortOnDropHandle::new(tokio::spawn(comparing)));
        }
    }
    while !running.is_empty() {
        comparison.settle(running.pop_front()).await?;
    }
    Ok(comparison)
}

impl Comparison {
    /// Whether nothing differs.
    pub(super) fn is_equal(&self) -> bool {
        self.differences == 0 && self.source.sum() == self.target.sum()
    }

    /// The first differences, one a line.
    pub(super) fn differences(&self) -> impl Iterator<Item = String> {
        let more = self.differences - self.shown.len();
        let more = (more > 0).then(|| format!("and {more} more differences"));
        self.shown.iter().cloned().chain(more)
    }

    /// What either end holds, under one another.
    pub(super) fn table(&self) -> String {
        let mut table = String::new();
        let titles =
            ["", "projects", "API keys", "events", "sessions", "messages", "vectors", "SHA-256"].map(str::to_owned);
        let cells = [titles, self.source.cells("source"), self.target.cells("target")];
        let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
        for row in &cells {
            table.push_str(&format!("{:<6}", row[0]));
            for (column, cell) in row.iter().enumerate().take(7).skip(1) {
                table.push_str(&format!("  {cell:>width$}", width = width(column)));
            }
            table.push_str(&format!("  {}\n", row[7]));
        }
        table
    }

    fn differ(&mut self, difference: String) {
        self.differences += 1;
        if self.shown.len() < DIFFERENCES_SHOWN {
            self.shown.push(difference);
        }
    }

    fn add_rows<K: Ord + Display, T>(
        &mut self,
        noun: &str,
        [source, target]: &[BTreeMap<K, T>; 2],
        count: fn(&mut Totals) -> &mut usize,
        add: fn(&mut Checksum, &T),
        same: fn(&T, &T) -> bool,
    ) {
        for (rows, totals) in [(source, &mut self.source), (target, &mut self.target)] {
            *count(totals) = rows.len();
            rows.values().for_each(|row| add(&mut totals.checksum, row));
        }
        let ids: BTreeSet<&K> = source.keys().chain(target.keys()).collect();
        for id in ids {
            match (source.get(id), target.get(id)) {
                (Some(one), Some(other)) if same(one, other) => {}
                (one, other) => self.differ(differs(format!("{noun} {id}"), one, other)),
            }
        }
    }

    /// Adds the audit log of either end, the newest event first, but for what tells of copies.
    async fn add_events(&mut self, ends: &Ends) -> anyhow::Result<()> {
        let (mut source, mut target) = (Events::of(ends.source.as_ref()), Events::of(ends.target.as_ref()));
        let (mut one, mut other) = (source.next().await?, target.next().await?);
        while let Some(id) = one.iter().chain(&other).map(|event| event.event_id).max() {
            let is_next = |event: &AuditEvent| event.event_id == id;
            let mut pair = [None, None];
            if one.as_ref().is_some_and(is_next) {
                pair[0] = std::mem::replace(&mut one, source.next().await?);
            }
            if other.as_ref().is_some_and(is_next) {
                pair[1] = std::mem::replace(&mut other, target.next().await?);
            }
            if pair.iter().flatten().any(is_of_copy) {
                continue;
            }
            for (event, totals) in pair.iter().zip([&mut self.source, &mut self.target]) {
                let Some(event) = event else { continue };
                totals.events += 1;
                totals.checksum.add_audit_event(event);
            }
            let [one, other] = pair;
            if one != other {
                self.differ(differs(format!("audit event {id}"), one, other));
            }
        }
        Ok(())
    }

    async fn settle(&mut self, compared: Option<AbortOnDropHandle<anyhow::Result<Compared>>>) -> anyhow::Result<()> {
        let Compared { source, target, differences } = compared.context("nothing is being compared")?.await??;
        for (reading, totals) in [(source, &mut self.source), (target, &mut self.target)] {
            let Some(session) = reading else { continue };
            totals.sessions += 1;
            totals.messages += session.messages;
            totals.vectors += session.vectors;
            totals.checksum.add_checksum(session.checksum);
        }
        differences.into_iter().for_each(|difference| self.differ(difference));
        Ok(())
    }
}

impl Totals {
    fn sum(&self) -> [u8; 32] {
        self.checksum.clone().finish()
    }

    fn cells(&self, end: &str) -> [String; 8] {
        let count = |number: u64| HumanCount(number).to_string();
        let sum = self.sum().iter().map(|byte| format!("{byte:02x}")).collect();
        let (projects, api_keys) = (count(self.projects as u64), count(self.api_keys as u64));
        let (events, sessions, messages) = (count(self.events), count(self.sessions), count(self.messages));
        [end.to_owned(), projects, api_keys, events, sessions, messages, count(self.vectors), sum]
    }
}

/// How two that are not equal differ.
fn differs<T>(what: impl Display, source: Option<T>, target: Option<T>) -> String {
    match (source, target) {
        (Some(_), None) => format!("{what} is only at the source"),
        (None, Some(_)) => format!("{what} is only at the target"),
        _ => format!("{what} differs"),
    }
}

/// The sessions of either end side by side, by their ids.
struct Pairs<'a> {
    source: Sessions<'a>,
    target: Sessions<'a>,
    heads: [Option<Session>; 2],
}

impl<'a> Pairs<'a> {
    async fn of(ends: &'a Ends, scope: &'a Scope) -> anyhow::Result<Self> {
        let (mut source, mut target) =
            (Sessions::of(ends.source.as_ref(), scope), Sessions::of(ends.target.as_ref(), scope));
        let heads = [source.next().await?, target.next().await?];
        Ok(Self { source, target, heads })
    }

    /// The next session, from either end that has it.
    async fn next(&mut self) -> anyhow::Result<Option<[Option<Session>; 2]>> {
        let Some(id) = self.heads.iter().flatten().map(|session| session.session_id).min() else { return Ok(None) };
        let mut pair = [None, None];
        for (n, sessions) in [&mut self.source, &mut self.target].into_iter().enumerate() {
            if self.heads[n].as_ref().is_some_and(|session| session.session_id == id) {
                pair[n] = std::mem::replace(&mut self.heads[n], sessions.next().await?);
            }
        }
        Ok(Some(pair))
    }
}

/// A session with its messages, as far as it was read.
struct Reading<'a> {
    store: &'a dyn Store,
    scope: &'a Scope,
    session: Session,
    page: VecDeque<(Message, Vec<Embedding>)>,
    seq: i64,
    messages: u64,
    vectors: u64,
    checksum: Checksum,
}

impl<'a> Reading<'a> {
    fn of(store: &'a dyn Store, scope: &'a Scope, session: Session) -> Self {
        let mut checksum = Checksum::default();
        checksum.add_session(&session);
        Self { store, scope, session, page: VecDeque::new(), seq: 0, messages: 0, vectors: 0, checksum }
    }

    /// The next message with its vectors.
    async fn next(&mut self) -> anyhow::Result<Option<(Message, Vec<Embedding>)>> {
        if self.page.is_empty() {
            let page = messages(self.store, self.scope, &self.session, self.seq).await?;
            let mut found = VecDeque::from(embeddings(self.store, self.scope, &page).await?);
            self.page = page
                .into_iter()
                .map(|message| {
                    let is_others = |embedding: &Embedding| embedding.message_id != message.message_id;
                    let own = found.iter().position(is_others).unwrap_or(found.len());
                    let own = found.drain(..own).collect();
                    (message, own)
                })
                .collect();
        }
        let Some((message, vectors)) = self.page.pop_front() else { return Ok(None) };
        self.seq = message.seq;
        self.messages += 1;
        self.vectors += vectors.iter().map(|embedding| embedding.vectors.len() as u64).sum::<u64>();
        self.checksum.add_message(&message);
        vectors.iter().for_each(|embedding| self.checksum.add_embedding(embedding));
        Ok(Some((message, vectors)))
    }
}

/// What was read of a session.
struct Summed {
    messages: u64,
    vectors: u64,
    checksum: Checksum,
}

/// A session of either end that has it.
struct Compared {
    source: Option<Summed>,
    target: Option<Summed>,
    differences: Vec<String>,
}

async fn compare_session(
    ends: &Ends,
    scope: &Scope,
    source: Option<Session>,
    target: Option<Session>,
    meter: &Meter,
) -> anyhow::Result<Compared> {
    let mut differences = Vec::new();
    let id = source.as_ref().or(target.as_ref()).map(|session| session.session_id).context("a pair of nothing")?;
    if source != target {
        differences.push(differs(format!("session {id}"), source.as_ref(), target.as_ref()));
    }
    let both = source.is_some() && target.is_some();
    let mut source = source.map(|session| Reading::of(ends.source.as_ref(), scope, session));
    let mut target = target.map(|session| Reading::of(ends.target.as_ref(), scope, session));
    let mut named = !both;
    loop {
        let (one, other) = tokio::try_join!(next(&mut source), next(&mut target))?;
        let Some((message, _)) = one.as_ref().or(other.as_ref()) else { break };
        meter.add(0, 1);
        if !named && one != other {
            named = true;
            let what = format!("message {} ({} of session {id})", message.message_id, message.seq);
            differences.push(differs(what, one.as_ref(), other.as_ref()));
        }
    }
    let summed = |reading: Reading<'_>| Summed {
        messages: reading.messages,
        vectors: reading.vectors,
        checksum: reading.checksum,
    };
    meter.add(1, 0);
    Ok(Compared { source: source.map(summed), target: target.map(summed), differences })
}

async fn next(reading: &mut Option<Reading<'_>>) -> anyhow::Result<Option<(Message, Vec<Embedding>)>> {
    match reading {
        Some(reading) => reading.next().await,
        None => Ok(None),
    }
}
