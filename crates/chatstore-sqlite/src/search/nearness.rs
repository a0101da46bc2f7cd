//! How near two vectors are.

use chatstore_core::embeddings::{Metric, VectorQuery};

/// Sums kept side by side, so that the compiler can use wide registers.
const LANES: usize = 16;

/// A query's vector, ready to be compared.
pub(super) struct Nearness<'a> {
    metric: Metric,
    vector: &'a [f32],
    length: f64,
}

impl<'a> Nearness<'a> {
    pub(super) fn new(query: &'a VectorQuery) -> Self {
        let vector = query.vector.numbers();
        Self { metric: query.metric, vector, length: length(vector) }
    }

    /// The larger, the nearer. `other_length` is the [`length`] of `other`.
    pub(super) fn score(&self, other: &[f32], other_length: f64) -> f64 {
        let score = match self.metric {
            Metric::Cosine => (product(self.vector, other) / self.length / other_length).clamp(-1.0, 1.0),
            Metric::InnerProduct => product(self.vector, other),
            Metric::L2 => -square_distance(self.vector, other).sqrt(),
        };
        // There is one zero: minus zero would be ranked below it.
        score + 0.0
    }
}

/// The Euclidean length.
pub(super) fn length(vector: &[f32]) -> f64 {
    product(vector, vector).sqrt()
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |a, b| a * b, |a, b| a * b)
}

fn square_distance(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |a, b| (a - b) * (a - b), |a, b| (a - b) * (a - b))
}

/// The sum over all pairs in single precision; in double, slowly, where single cannot hold it.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], single: impl Fn(f32, f32) -> f32, double: impl Fn(f64, f64) -> f64) -> f64 {
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += single(a[lane], b[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| single(*a, *b)).sum();
    let total = sums.iter().sum::<f32>() + rest;
    if total.is_normal() {
        return f64::from(total);
    }
    a.iter().zip(b).map(|(a, b)| double(f64::from(*a), f64::from(*b))).sum()
}

#[cfg(test)]
mod tests {
    use chatstore_core::embeddings::Vector;

    use super::*;

    fn score(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
        let query = VectorQuery { model: String::new(), vector: Vector::new(a.to_vec()).unwrap(), metric };
        Nearness::new(&query).score(b, length(b))
    }

    #[test]
    fn scores_are_those_of_double_precision() {
        let numbers =
            |seed: u32| (0..387_u32).map(move |n| f64::from((n * 7_919 + seed * 104_729) % 2_003) / 1e3 - 1.0);
        let single = |seed| numbers(seed).map(|number| number as f32).collect::<Vec<_>>();
        let (a, b) = (single(1), single(2));
        let product: f64 = numbers(1).zip(numbers(2)).map(|(a, b)| a * b).sum();
        let lengths: f64 = [1, 2].map(|seed| numbers(seed).map(|a| a * a).sum::<f64>().sqrt()).iter().product();
        let distance: f64 = numbers(1).zip(numbers(2)).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!((score(Metric::InnerProduct, &a, &b) - product).abs() < 1e-3);
        assert!((score(Metric::Cosine, &a, &b) - product / lengths).abs() < 1e-6);
        assert!((score(Metric::L2, &a, &b) + distance.sqrt()).abs() < 1e-3);
    }

    #[test]
    fn what_single_precision_cannot_hold_is_still_a_number() {
        let (large, small) = ([1.8e19_f32, 0.0], [0.0, 1.1e-19_f32]);
        assert!((score(Metric::L2, &large, &[-1.8e19, 0.0]) + 3.6e19).abs() < 1e13);
        assert!((score(Metric::Cosine, &small, &small) - 1.0).abs() < 1e-6);
        let across = score(Metric::Cosine, &large, &small);
        assert_eq!((across, across.is_sign_positive()), (0.0, true));
        assert_eq!(score(Metric::InnerProduct, &[-1.0, 0.0], &[0.0, 1.0]).to_bits(), 0.0_f64.to_bits());
    }
}
