//! Where events go: one line each, to standard output.

mod buffer;
mod json;

use std::fmt::{self, Write as _};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;

use chatstore_core::clock::Ctx;

use buffer::{LineThread, line_buffer};
use json::JsonLine;

use crate::config::{LogFormat, LogLevel};

/// Dependencies that tell more than an operator wants to read, by the beginning of their targets.
const NOISY_TARGETS: [&str; 3] = ["h2", "hyper", "rustls"];

/// Keeps the log going; writes out what is left when dropped.
#[must_use = "the log ends when this is dropped"]
#[derive(Debug)]
pub struct TelemetryGuard {
    _thread: LineThread,
}

/// Starts to log to standard output, which `is_terminal` or is not.
///
/// A thread of its own writes the lines a moment later: when the reader of the output is too slow, lines are lost and
/// counted rather than requests held up. Only the first call in a process takes effect.
///
/// # Errors
/// If no thread can be started.
pub fn init(level: LogLevel, format: LogFormat, is_terminal: bool) -> std::io::Result<TelemetryGuard> {
    let (writer, thread) = line_buffer(std::io::stdout())?;
    // It fails when there is a subscriber already; that one is as good.
    let _ = tracing::subscriber::set_global_default(subscriber(level, format, is_terminal, writer));
    Ok(TelemetryGuard { _thread: thread })
}

fn subscriber<W>(
    level: LogLevel,
    format: LogFormat,
    is_terminal: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync + 'static>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let is_human = match format {
        LogFormat::Auto => is_terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let registry = tracing_subscriber::registry().with(targets(level));
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    if !is_human {
        return Box::new(registry.with(layer.with_ansi(false).event_format(JsonLine { ctx: Ctx::system() })));
    }
    let layer = layer.fmt_fields(debug_fn(write_field).delimited(" "));
    // On a terminal the layer decides by itself, which honours NO_COLOR.
    let layer = if is_terminal { layer } else { layer.with_ansi(false) };
    Box::new(registry.with(layer))
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Critical => LevelFilter::ERROR,
        LogLevel::Off => LevelFilter::OFF,
    };
    let noisy_level = if level == Level::TRACE { level } else { level.min(LevelFilter::INFO) };
    Targets::new().with_targets(NOISY_TARGETS.map(|target| (target, noisy_level))).with_default(level)
}

/// Writes a field so that it stays on its line, whatever a caller sent: the library escapes terminal sequences, but not
/// line ends.
fn write_field(writer: &mut Writer<'_>, field: &tracing::field::Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() == "message" {
        return write!(OneLine(writer), "{value:?}");
    }
    if writer.has_ansi_escapes() {
        write!(writer, "\x1b[3m{}\x1b[0m\x1b[2m=\x1b[0m", field.name())?;
    } else {
        write!(writer, "{}=", field.name())?;
    }
    write!(OneLine(writer), "{value:?}")
}

/// Escapes what would end a line, move the cursor or turn the direction of the text.
struct OneLine<'a, 'b>(&'a mut Writer<'b>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => write!(self.0, "{}", c.escape_unicode())?,
                _ if c.is_control() => write!(self.0, "{}", c.escape_default())?,
                _ => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: LogLevel, format: LogFormat, is_terminal: bool, act: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        tracing::subscriber::with_default(subscriber(level, format, is_terminal, move || writer.clone()), act);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const HOSTILE: &str = "a\nb\r\x1b[31m\u{85}\u{2028}\u{202e}\"c\0";

    #[test]
    fn json_has_one_flat_object_a_line() {
        let text = logged(LogLevel::Info, LogFormat::Auto, false, || {
            let span = tracing::info_span!("request", path = HOSTILE);
            span.in_scope(|| tracing::info!(target: "chatstore", status = 200, text = HOSTILE, "hello {HOSTILE}"));
        });
        assert_eq!(text.lines().count(), 1, "{text:?}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["target"], "chatstore");
        assert_eq!(line["status"], 200);
        assert_eq!(line["text"], HOSTILE);
        assert_eq!(line["message"], format!("hello {HOSTILE}"));
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.ends_with('Z') && timestamp.parse::<jiff::Timestamp>().is_ok(), "{timestamp}");
    }

    #[test]
    fn a_human_line_cannot_be_broken_by_what_is_in_it() {
        let act = || {
            let span = tracing::info_span!("request", path = %HOSTILE);
            span.in_scope(|| {
                let error = io::Error::other(HOSTILE);
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(text = HOSTILE, shown = %HOSTILE, error, count = 3, "hello {HOSTILE}");
            });
        };
        let text = logged(LogLevel::Info, LogFormat::Human, false, act);
        let line = text.strip_suffix('\n').unwrap();
        assert!(!line.contains(|c: char| c.is_control() || c == '\u{2028}' || c == '\u{202e}'), "{line:?}");
        assert!(line.contains("WARN") && line.contains("count=3") && line.contains(r"hello a\nb\r"), "{line}");
        assert!(line.contains(r"shown=a\nb\r\u{1b}[31m") && line.contains(r"error=a\nb"), "{line}");

        let coloured = logged(LogLevel::Info, LogFormat::Auto, true, act);
        let line = coloured.strip_suffix('\n').unwrap();
        assert!(!line.contains(|c: char| c.is_control() && c != '\x1b') && !line.contains("\x1b[31m"), "{line:?}");
    }

    #[test]
    fn levels_decide_and_noisy_dependencies_are_capped() {
        let act = || {
            tracing::error!(target: "chatstore", "error");
            tracing::debug!(target: "chatstore", "debug");
            tracing::trace!(target: "chatstore", "trace");
            tracing::info!(target: "hyper_util::client", "hyper-info");
            tracing::debug!(target: "h2::codec", "h2-debug");
            tracing::trace!(target: "rustls::conn", "rustls-trace");
        };
        let cases = [
            (LogLevel::Off, ""),
            (LogLevel::Critical, "error"),
            (LogLevel::Warn, "error"),
            (LogLevel::Info, "error hyper-info"),
            (LogLevel::Debug, "error debug hyper-info"),
            (LogLevel::Trace, "error debug trace hyper-info h2-debug rustls-trace"),
        ];
        for (level, expected) in cases {
            let text = logged(level, LogFormat::Json, false, act);
            let messages: Vec<String> = text
                .lines()
                .map(|line| {
                    serde_json::from_str::<serde_json::Value>(line).unwrap()["message"].as_str().unwrap().into()
                })
                .collect();
            assert_eq!(messages.join(" "), expected, "{level:?}");
        }
    }

    #[test]
    fn what_is_dropped_is_written_first() {
        let sink = Sink::default();
        let (writer, thread) = line_buffer(sink.clone()).unwrap();
        let guard = TelemetryGuard { _thread: thread };
        let subscriber = subscriber(LogLevel::Info, LogFormat::Json, false, writer);
        tracing::subscriber::with_default(subscriber, || (0..100).for_each(|n| tracing::info!(n, "line")));
        drop(guard);
        assert_eq!(sink.0.lock().unwrap().iter().filter(|&&byte| byte == b'\n').count(), 100);
    }
}
