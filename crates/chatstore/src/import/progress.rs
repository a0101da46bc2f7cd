//! How far a command has come: a bar on a terminal, else a line now and then.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::lines::Lines;

/// Between two looks of the bar.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// Between two lines where no terminal shows a bar.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: Instant,
    /// Bytes read so far, counted where they are read, and how many there are.
    read: Arc<AtomicU64>,
    total: Option<u64>,
}

impl Progress {
    /// For a file that is read.
    pub(crate) fn reading(lines: &Lines) -> Self {
        let mut progress = Self::new(lines.total());
        progress.read = lines.read_counter();
        progress
    }

    /// For work of unknown size.
    pub(crate) fn endless() -> Self {
        Self::new(None)
    }

    fn new(total: Option<u64>) -> Self {
        // Hidden by itself where standard error is no terminal.
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = match total {
            Some(_) => "{bar:24} {percent:>3} %  {bytes} of {total_bytes}  {msg}  {eta} left",
            None => "{elapsed}  {msg}",
        };
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        let now = Instant::now();
        Self { bar, started: now, shown: now, read: Arc::default(), total }
    }

    /// Shows `message`, if it is time to; it is told how much time has passed.
    pub(crate) fn tick(&mut self, message: impl FnOnce(Duration) -> String) {
        let interval = if self.bar.is_hidden() { LINE_INTERVAL } else { BAR_INTERVAL };
        if self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let message = message(self.started.elapsed());
        let read = self.read.load(Ordering::Relaxed);
        if !self.bar.is_hidden() {
            self.bar.set_position(read);
            self.bar.set_message(message);
            return;
        }
        let percent =
            self.total.filter(|total| *total > 0).map(|total| format!("{} %: ", 100 * read.min(total) / total));
        self.say(&format!("{}{message}", percent.unwrap_or_default()));
    }

    /// Writes a line beside the bar.
    pub(crate) fn say(&self, line: &str) {
        // That nobody reads it is no reason to stop.
        self.bar.suspend(|| drop(writeln!(std::io::stderr(), "{line}")));
    }

    /// Takes the bar away and tells how long it all took.
    pub(crate) fn finish(&self) -> Duration {
        self.bar.finish_and_clear();
        self.started.elapsed()
    }
}

/// `1 line`, `2 lines`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// How many a second.
pub(crate) fn rate(count: u64, elapsed: Duration) -> u64 {
    let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
    count.saturating_mul(1_000_000) / us
}

pub(crate) fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_fit_their_numbers() {
        assert_eq!([counted(0, "line"), counted(1, "line"), counted(2, "line")], ["0 lines", "1 line", "2 lines"]);
        assert_eq!(rate(46_903, Duration::from_millis(1_900)), 24_685);
        assert_eq!(rate(0, Duration::ZERO), 0);
        assert_eq!(seconds(Duration::from_millis(1_949)), "1.9 s");
    }
}
