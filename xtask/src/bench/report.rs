//! What a run found: measurements, facts and aims, as a table and as JSON.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

use super::{cpu::CpuTimes, histogram::Histogram, load::Run, machine::Machine};

/// One kind of request at one number of connections, over all repeats. Zero is what was not measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measurement {
    pub(super) name: String,
    pub(super) connections: usize,
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) requests_per_second: f64,
    /// Requests a second of each repeat.
    pub(super) rates: Vec<f64>,
    pub(super) p50_ms: f64,
    /// The same of each repeat.
    pub(super) p50s_ms: Vec<f64>,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) cpu_us: f64,
    /// CPU of all processes of a database that is not part of the server.
    pub(super) database_cpu_us: f64,
    /// CPU of what sent the requests.
    pub(super) generator_cpu_us: f64,
    /// Cores that processes used which have no part in the run.
    pub(super) others_cores: f64,
    pub(super) rss_mib: f64,
}

impl Measurement {
    /// Throughput and CPU are medians of the repeats, percentiles are over the requests of all of them.
    pub(super) fn new(name: &str, connections: usize, runs: &[Run], rss_mib: f64) -> Self {
        let mut all = Histogram::new();
        for run in runs {
            all.merge(&run.histogram);
        }
        let rates: Vec<f64> = runs.iter().map(Run::throughput).collect();
        let cpu_us =
            |share: fn(&CpuTimes) -> Duration| median(runs.iter().map(|run| run.us_per_request(share(&run.cpu))));
        Self {
            name: name.to_owned(),
            connections,
            requests: runs.iter().map(|run| run.requests).sum(),
            errors: runs.iter().map(|run| run.errors).sum(),
            requests_per_second: median(rates.iter().copied()),
            rates,
            p50_ms: all.percentile_ms(0.5),
            p50s_ms: runs.iter().map(|run| run.histogram.percentile_ms(0.5)).collect(),
            p99_ms: all.percentile_ms(0.99),
            p999_ms: all.percentile_ms(0.999),
            cpu_us: cpu_us(|cpu| cpu.server),
            database_cpu_us: cpu_us(|cpu| cpu.database),
            generator_cpu_us: cpu_us(|cpu| cpu.generator),
            others_cores: median(runs.iter().map(|run| run.cpu.others().as_secs_f64() / run.seconds)),
            rss_mib,
        }
    }

    /// Requests a second as a multiple of those of a limit that took turns with it: the median over the turns, so that
    /// a machine that becomes slower for a while slows both sides of a quotient.
    pub(super) fn rate_over(&self, limit: &Self) -> f64 {
        median_ratio(&self.rates, &limit.rates)
    }

    /// The same of the median times of requests.
    pub(super) fn p50_over(&self, limit: &Self) -> f64 {
        median_ratio(&self.p50s_ms, &limit.p50s_ms)
    }
}

fn median_ratio(values: &[f64], limits: &[f64]) -> f64 {
    median(values.iter().zip(limits).map(|(value, limit)| value / limit))
}

/// The middle of some values; 0 when there are none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// A number that has no aim.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Fact {
    name: String,
    value: f64,
    unit: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Bound {
    AtMost,
    AtLeast,
}

/// What the project wants of a number, and what it was.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Aim {
    name: String,
    bound: Bound,
    limit: f64,
    unit: &'static str,
    value: Option<f64>,
    met: Option<bool>,
}

impl Aim {
    fn new(name: String, bound: Bound, limit: f64, unit: &'static str, value: Option<f64>) -> Self {
        let met = value.map(|value| match bound {
            Bound::AtMost => value <= limit,
            Bound::AtLeast => value >= limit,
        });
        Self { name, bound, limit, unit, value, met }
    }

    fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "NOT MEASURED",
        }
    }
}

/// Everything a run found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    method: Vec<String>,
    measurements: Vec<Measurement>,
    facts: Vec<Fact>,
    aims: Vec<Aim>,
}

impl Report {
    pub(super) fn new(machine: Machine, method: Vec<String>) -> Self {
        Self { machine, method, measurements: Vec::new(), facts: Vec::new(), aims: Vec::new() }
    }

    pub(super) fn measurements(&mut self, measurements: &[Measurement]) {
        self.measurements.extend_from_slice(measurements);
    }

    pub(super) fn fact(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.facts.push(Fact { name: name.into(), value, unit });
    }

    pub(super) fn at_most(&mut self, name: impl Into<String>, limit: f64, unit: &'static str, value: f64) {
        self.aims.push(Aim::new(name.into(), Bound::AtMost, limit, unit, Some(value)));
    }

    pub(super) fn at_least(&mut self, name: impl Into<String>, limit: f64, unit: &'static str, value: Option<f64>) {
        self.aims.push(Aim::new(name.into(), Bound::AtLeast, limit, unit, value));
    }

    /// The report for people.
    pub(super) fn table(&self) -> String {
        let mut text = format!("\n{}\n", self.machine);
        for line in &self.method {
            text.push_str(&format!("  {line}\n"));
        }
        self.write_measurements(&mut text);
        self.write_facts(&mut text);
        self.write_aims(&mut text);
        text
    }

    fn write_measurements(&self, text: &mut String) {
        if self.measurements.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "\n{:<46} {:>5} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>6} {:>8} {:>6}",
            "request",
            "conns",
            "req/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "CPU µs",
            "DB CPU",
            "gen CPU",
            "others",
            "RSS MiB",
            "errors"
        );
        for row in &self.measurements {
            let _ = writeln!(
                text,
                "{:<46} {:>5} {:>9.0} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>6} {:>8} {:>6}",
                row.name,
                row.connections,
                row.requests_per_second,
                measured(row.p50_ms, 3),
                measured(row.p99_ms, 3),
                measured(row.p999_ms, 3),
                measured(row.cpu_us, 1),
                measured(row.database_cpu_us, 1),
                measured(row.generator_cpu_us, 1),
                measured(row.others_cores, 1),
                measured(row.rss_mib, 1),
                row.errors
            );
        }
    }

    fn write_facts(&self, text: &mut String) {
        if !self.facts.is_empty() {
            text.push('\n');
        }
        for fact in &self.facts {
            let _ = writeln!(text, "{:<66} {:>12} {}", fact.name, number(fact.value), fact.unit);
        }
    }

    fn write_aims(&self, text: &mut String) {
        if self.aims.is_empty() {
            return;
        }
        let _ = writeln!(text, "\n{:<66} {:>12} {:>12}", "aim", "wanted", "measured");
        for aim in &self.aims {
            let sign = if aim.bound == Bound::AtMost { "≤" } else { "≥" };
            let wanted = format!("{sign} {}{}", aim.limit, aim.unit);
            let measured = aim.value.map_or_else(|| "-".to_owned(), |value| format!("{}{}", number(value), aim.unit));
            let _ = writeln!(text, "{:<66} {wanted:>12} {measured:>12}  {}", aim.name, aim.verdict());
        }
    }
}

/// A value with so many decimals; a dash for zero, which was not measured.
fn measured(value: f64, decimals: usize) -> String {
    if value > 0.0 { format!("{value:.decimals$}") } else { "-".to_owned() }
}

/// Three digits that matter, and no more than two decimals.
fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_odd_even_and_nothing() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median([]).abs() < 1e-9);
    }

    #[test]
    fn a_ratio_is_taken_turn_by_turn() {
        let runs = |counts: [u64; 3]| {
            let run = |requests| Run {
                requests,
                histogram: Histogram::new(),
                seconds: 2.0,
                cpu: CpuTimes { server: Duration::from_millis(requests), ..CpuTimes::default() },
                errors: 0,
                first_error: None,
            };
            Measurement::new("a", 1, &counts.map(run), 0.0)
        };
        // The second turn fell on a slow moment of the machine, the third only on the limit.
        let (ours, limit) = (runs([200, 20, 200]), runs([100, 10, 50]));
        assert!((ours.rate_over(&limit) - 2.0).abs() < 1e-9);
        assert!((ours.requests_per_second - 100.0).abs() < 1e-9 && (ours.cpu_us - 1000.0).abs() < 1e-9);
        assert_eq!(measured(ours.database_cpu_us, 1), "-");
    }

    #[test]
    fn an_aim_says_whether_it_was_met() {
        let verdict = |bound, value| Aim::new("a".to_owned(), bound, 6.0, "", value).verdict();
        assert_eq!(verdict(Bound::AtMost, Some(6.0)), "ok");
        assert_eq!(verdict(Bound::AtMost, Some(6.1)), "MISSED");
        assert_eq!(verdict(Bound::AtLeast, Some(5.9)), "MISSED");
        assert_eq!(verdict(Bound::AtLeast, None), "NOT MEASURED");
    }
}
