//! A histogram of durations in logarithmic buckets: small, and exact to one part in 64.

use std::time::Duration;

/// Bits of a value kept below its leading one.
const PRECISION_BITS: u32 = 6;
const BUCKETS: usize = ((64 - PRECISION_BITS as usize) + 1) << PRECISION_BITS;

/// Counts of durations by nanosecond bucket.
#[derive(Clone)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }

    pub(super) fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(nanos)] += 1;
        self.total += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The duration in milliseconds that `fraction` of all recorded ones do not exceed; 0 when nothing was recorded.
    pub(super) fn percentile_ms(&self, fraction: f64) -> f64 {
        let rank = ((self.total as f64 * fraction).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest_of(bucket) as f64 / 1e6;
            }
        }
        0.0
    }
}

fn bucket_of(value: u64) -> usize {
    let width = 64 - value.leading_zeros();
    if width <= PRECISION_BITS {
        return value as usize;
    }
    let shift = width - PRECISION_BITS - 1;
    let mantissa = (value >> shift) as usize - (1 << PRECISION_BITS);
    ((shift as usize + 1) << PRECISION_BITS) + mantissa
}

fn highest_of(bucket: usize) -> u64 {
    let group = bucket >> PRECISION_BITS;
    if group == 0 {
        return bucket as u64;
    }
    let mantissa = (bucket & ((1 << PRECISION_BITS) - 1)) + (1 << PRECISION_BITS);
    let shift = group - 1;
    ((mantissa as u64) << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_a_bucket_at_most_one_part_in_64_above_it() {
        for shift in 0..64 {
            for offset in [0_u64, 1, 3, 7] {
                let value = (1_u64 << shift).wrapping_add(offset);
                let highest = highest_of(bucket_of(value));
                assert!(highest >= value, "{value} -> {highest}");
                assert!(highest - value <= value / 64, "{value} -> {highest}");
            }
        }
        assert!(bucket_of(u64::MAX) < BUCKETS);
        assert_eq!(highest_of(bucket_of(u64::MAX)), u64::MAX);
    }

    #[test]
    fn buckets_grow_with_the_value() {
        let mut last = 0;
        for value in 0..100_000_u64 {
            let bucket = bucket_of(value);
            assert!(bucket == last || bucket == last + 1, "a gap at {value}");
            last = bucket;
        }
    }

    #[test]
    fn percentiles_of_one_to_a_thousand_milliseconds() {
        let mut histogram = Histogram::new();
        for millis in 1..=1000 {
            histogram.record(Duration::from_millis(millis));
        }
        for (fraction, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let measured = histogram.percentile_ms(fraction);
            assert!((measured - expected).abs() <= expected / 50.0, "{fraction}: {measured}");
        }
    }

    #[test]
    fn merging_equals_recording_into_one() {
        let (mut left, mut right, mut both) = (Histogram::new(), Histogram::new(), Histogram::new());
        for micros in 1..500 {
            let duration = Duration::from_micros(micros * 7);
            if micros % 3 == 0 {
                left.record(duration)
            } else {
                right.record(duration)
            }
            both.record(duration);
        }
        left.merge(&right);
        assert_eq!(left.total(), both.total());
        assert_eq!(left.counts, both.counts);
    }

    #[test]
    fn an_empty_histogram_answers_zero() {
        assert!(Histogram::new().percentile_ms(0.5).abs() < f64::EPSILON);
    }
}
