//! Writing what was taken from the queue: a batch in one statement, what it left out of a session together, or each
//! append alone.

use chatstore_core::idempotency::Answered;
use chatstore_core::ids::SessionId;
use chatstore_core::store::StoreError;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use super::batch::{Batch, Job, Left, must_run_alone};
use super::{Answer, Appender};
use crate::AppendForm;
use crate::idempotency::is_recorded;
use crate::messages::append::alone::{Alone, Lost};
use crate::messages::append::{Group, Held, append_batch};
use crate::pool::{Attempt, Failure, Lease, Undone, too_slow, transact, unknown};
use crate::sqlstate::is_lost;

impl Appender {
    /// Writes a batch and answers it, but for what has to run alone.
    pub(super) async fn run_batch(&self, batch: Batch) -> Vec<Left> {
        let mut groups: Vec<_> = batch.groups.into_values().collect();
        if self.form == AppendForm::PerSession {
            for group in groups {
                self.store_each(Left::surely(group)).await;
            }
            return Vec::new();
        }
        groups.sort_by_key(|group| group[0].append.session_id);
        let (alone, plain): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| must_run_alone(group));
        let mut left: Vec<_> = alone.into_iter().map(Left::surely).collect();
        left.extend(self.store(plain, Held::Skip).await);
        left
    }

    /// Writes what a batch did not, of one session: together if there are several, then each alone. Those that may be at
    /// work elsewhere go first, each alone, for they wait a shorter time.
    pub(super) async fn store_left(&self, left: Left) {
        if left.runs_alone() {
            return self.store_each(left).await;
        }
        let (brief, patient): (Vec<_>, Vec<_>) = left.jobs.into_iter().partition(|job| job.append.may_be_at_work());
        self.store_each(Left::surely(brief)).await;
        for left in self.store(vec![patient], Held::Wait).await {
            self.store_each(left).await;
        }
    }

    /// Writes the groups in one statement and answers those that it stored. Gives back those that
    /// must run alone; what cannot run now is refused.
    async fn store(&self, mut groups: Vec<Vec<Job>>, held: Held) -> Vec<Left> {
        let Some(deadline) = groups.iter().flatten().map(|job| job.deadline).max() else { return Vec::new() };
        // A batch that may wait for a row is one of the writes that may hold the pool up.
        let permit = match held {
            Held::Skip => Ok(None),
            Held::Wait => self.pool.write_permit(deadline).await.map(Some),
        };
        let lease = match permit {
            Ok(permit) => self.pool.lease(deadline).await.map(|lease| (lease, permit)),
            Err(error) => Err(error),
        };
        let (mut lease, _permit) = match lease {
            Ok(lent) => lent,
            Err(error) => return refuse(groups, &error),
        };
        let mut left = Vec::new();
        let mut written = write(&lease, deadline, &groups, held).await;
        if matches!(&written, Ok(Err(Failure::Postgres(error))) if is_recorded(error)) {
            // Another replica has done one of these meanwhile, which is no matter of the others. On this connection the
            // rows are free by now.
            let has_key = |group: &Vec<Job>| group.iter().any(|job| job.append.keyed().is_some());
            let (keyed, others): (Vec<_>, Vec<_>) = groups.into_iter().partition(has_key);
            left.extend(keyed.into_iter().map(Left::surely));
            groups = others;
            written = write(&lease, deadline, &groups, held).await;
        }
        match written {
            Ok(Ok(stored)) => {
                lease.rest();
                drop(lease);
                left.extend(self.answer(groups, stored));
            }
            Ok(Err(failure)) => {
                let is_uncertain = !matches!(&failure, Failure::Postgres(error) if !is_lost(error));
                if is_uncertain {
                    lease.close()
                } else {
                    lease.rest()
                }
                left.extend(groups.into_iter().map(|jobs| Left { jobs, is_uncertain }));
            }
            Err(_) => left.extend(refuse(groups, &too_slow())),
        }
        left
    }

    /// Answers the groups that were stored; gives back the others.
    fn answer(&self, groups: Vec<Vec<Job>>, stored: Vec<Option<i64>>) -> Vec<Left> {
        // Counted before anybody is answered, so that who has an answer finds it in the counts.
        let done = groups.iter().zip(&stored).filter(|(_, last_seq)| last_seq.is_some());
        self.count(done.map(|(group, _)| group.len() as u64).sum());
        let mut left = Vec::new();
        for (group, last_seq) in groups.into_iter().zip(stored) {
            match last_seq {
                Some(last_seq) => answer_group(group, last_seq),
                None => left.push(Left::surely(group)),
            }
        }
        left
    }

    /// Writes appends of one session one after the other, and answers each.
    async fn store_each(&self, left: Left) {
        let mut has_waited = false;
        for mut job in left.jobs {
            job.has_waited |= has_waited;
            let answer = self.store_alone(&job, left.is_uncertain).await;
            if matches!(answer, Err(StoreError::InFlight)) {
                has_waited = true;
                self.note_wait(job.append.session_id);
            }
            let _ = job.reply.send(answer);
        }
    }

    /// Notes that a session was held for long: what stands in the queue for it has waited, too.
    fn note_wait(&self, session_id: SessionId) {
        for job in self.queue().jobs.iter_mut().filter(|job| job.append.session_id == session_id) {
            job.has_waited = true;
        }
    }

    /// Writes one append in a transaction, again while that is safe and there is time: what was
    /// stored by a lost attempt is found by its ids.
    async fn store_alone(&self, job: &Job, is_uncertain: bool) -> Answer {
        let mut lost = is_uncertain.then_some(Lost::Batched);
        match self.try_alone(job, &mut lost).await {
            // Busy says that nothing was done.
            Err(StoreError::Busy) if lost.is_some() => Err(unknown("the database is busy")),
            answer => answer,
        }
    }

    async fn try_alone(&self, job: &Job, lost: &mut Option<Lost>) -> Answer {
        let mut attempt = Attempt::new(job.deadline);
        loop {
            if Instant::now() >= job.deadline {
                return Err(too_slow());
            }
            let permit = self.pool.write_permit(job.deadline).await?;
            let mut lease = self.pool.lease(job.deadline).await?;
            let result = transact(&mut lease, job.deadline, async |db| {
                let (form, lost, patience) = (self.form, lost.as_ref(), job.patience());
                Alone { append: &job.append, form, lost, patience }.run(&db).await
            })
            .await;
            drop((lease, permit));
            match result {
                Ok(answer) => {
                    // What was there already keeps the id that it has.
                    let mut pairs = answer.value.iter().zip(&job.append.messages);
                    self.count(u64::from(pairs.any(|(stored, new)| stored.message_id == new.message_id)));
                    return Ok(answer);
                }
                Err(Undone::Surely(failure)) => attempt.again(failure).await?,
                Err(Undone::Perhaps(error, answer)) => {
                    *lost = Some(Lost::Alone(answer));
                    attempt.pause(error).await?;
                }
            }
        }
    }
}

/// Writes the groups in one statement. The `last_seq` from which each goes on; `None` for one that must run alone.
async fn write(
    lease: &Lease,
    deadline: Instant,
    groups: &[Vec<Job>],
    held: Held,
) -> Result<Result<Vec<Option<i64>>, Failure>, Elapsed> {
    if groups.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let lists: Vec<Group<'_>> = groups.iter().map(|group| group.iter().map(|job| &job.append).collect()).collect();
    let db = lease.db();
    lease.in_time(deadline, append_batch(&db, &lists, held)).await
}

/// Answers what cannot run now; nothing of it is left.
fn refuse(groups: Vec<Vec<Job>>, error: &StoreError) -> Vec<Left> {
    for job in groups.into_iter().flatten() {
        let _ = job.reply.send(Err(error.clone()));
    }
    Vec::new()
}

/// Answers the appends of one session.
fn answer_group(group: Vec<Job>, mut last_seq: i64) {
    for job in group {
        let stored = job.append.into_stored(last_seq);
        last_seq = stored.last().map_or(last_seq, |message| message.seq);
        let _ = job.reply.send(Ok(Answered::first(stored)));
    }
}
