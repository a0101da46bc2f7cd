//! Vectors kept in memory between searches: a matrix for each owner and model. Never needed for a
//! right answer: every search compares its age with the rows it sees.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::nearness::length;

/// Numbers of one piece of a matrix: what is copied when a vector is added beside a search.
const PIECE_NUMBERS: usize = 64 << 10;

/// The vectors of one owner under one model, as they stood at some time.
#[derive(Clone, Default)]
pub(super) struct Matrix {
    /// The owner's generation: while it is the same, vectors were added only.
    generation: i64,
    /// The last vector that is in it.
    pub(super) last_embedding_no: i64,
    pieces: Vec<Arc<Piece>>,
    bytes: usize,
}

#[derive(Clone, Default)]
struct Piece {
    rows: Vec<PieceRow>,
    numbers: Vec<f32>,
}

/// What is known of a vector.
#[derive(Clone, Copy)]
struct PieceRow {
    embedding_no: i64,
    message_no: i64,
    length: f64,
}

impl Matrix {
    pub(super) fn new(generation: i64) -> Self {
        Self { generation, ..Self::default() }
    }

    pub(super) fn generation(&self) -> i64 {
        self.generation
    }

    /// Brings it to a later generation: of its vectors those are left whose numbers are given, in
    /// rising order.
    pub(super) fn retain(&mut self, generation: i64, kept: &[i64]) {
        let mut rest = kept;
        let mut is_kept = |row: &PieceRow| {
            let passed = rest.iter().take_while(|embedding_no| **embedding_no < row.embedding_no).count();
            rest = &rest[passed..];
            rest.first() == Some(&row.embedding_no)
        };
        for piece in &mut self.pieces {
            let kept: Vec<bool> = piece.rows.iter().map(&mut is_kept).collect();
            if kept.contains(&false) {
                let left = piece.only(&kept);
                self.bytes -= piece.bytes() - left.bytes();
                *piece = Arc::new(left);
            }
        }
        self.pieces.retain(|piece| !piece.rows.is_empty());
        self.generation = generation;
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the vector `embedding_no` of a message.
    pub(super) fn push(&mut self, embedding_no: i64, message_no: i64, vector: &[f32]) {
        let has_room = |piece: &Arc<Piece>| piece.numbers.len() + vector.len() <= PIECE_NUMBERS;
        if !self.pieces.last().is_some_and(has_room) {
            self.pieces.push(Arc::default());
        }
        if let Some(piece) = self.pieces.last_mut() {
            // Copied only if another search still has it.
            let piece = Arc::make_mut(piece);
            piece.rows.push(PieceRow { embedding_no, message_no, length: length(vector) });
            if piece.numbers.capacity() - piece.numbers.len() < vector.len() {
                // Twice as much as before, but no more than a piece can have.
                let held = piece.numbers.len();
                piece.numbers.reserve_exact(held.clamp(vector.len(), PIECE_NUMBERS - held));
            }
            piece.numbers.extend_from_slice(vector);
        }
        self.last_embedding_no = embedding_no;
        self.bytes += size_of_val(vector) + size_of::<PieceRow>();
    }

    /// Shows every message, its vector and the vector's length.
    pub(super) fn visit(&self, dimensions: usize, mut visit: impl FnMut(i64, &[f32], f64)) {
        for piece in &self.pieces {
            for (row, vector) in piece.rows.iter().zip(piece.numbers.chunks_exact(dimensions)) {
                visit(row.message_no, vector, row.length);
            }
        }
    }
}

impl Piece {
    fn bytes(&self) -> usize {
        size_of_val(&*self.rows) + size_of_val(&*self.numbers)
    }

    /// A copy of those rows that are kept.
    fn only(&self, kept: &[bool]) -> Self {
        let dimensions = self.numbers.len() / self.rows.len().max(1);
        let rows = self.rows.iter().zip(self.numbers.chunks_exact(dimensions.max(1))).zip(kept);
        let mut left = Self::default();
        for ((row, vector), _) in rows.filter(|(_, kept)| **kept) {
            left.rows.push(*row);
            left.numbers.extend_from_slice(vector);
        }
        left
    }
}

/// Owner and model.
pub(super) type MatrixKey = (i64, i64);

/// The matrices, within bounds.
pub(crate) struct VectorCache {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    matrices: HashMap<MatrixKey, (Matrix, u64)>,
    bytes: usize,
    /// Grows with every use: what was used least recently has the least.
    uses: u64,
}

impl VectorCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, kept: Mutex::default() }
    }

    /// What is kept, if anything.
    pub(super) fn get(&self, key: MatrixKey) -> Option<Matrix> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.uses += 1;
        let uses = kept.uses;
        let (matrix, used) = kept.matrices.get_mut(&key)?;
        *used = uses;
        Some(matrix.clone())
    }

    /// Bytes a matrix may have to be kept: all that there are, or those that are free beside the
    /// others.
    pub(super) fn room(&self, key: MatrixKey, beside_others: bool) -> usize {
        if !beside_others {
            return self.bytes_max;
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let own = kept.matrices.get(&key).map_or(0, |(matrix, _)| matrix.bytes);
        self.bytes_max.saturating_sub(kept.bytes - own)
    }

    /// Keeps a matrix unless it is empty or a newer one is there; those used least recently make room.
    pub(super) fn put(&self, key: MatrixKey, matrix: Matrix) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |matrix: &Matrix| (matrix.generation, matrix.last_embedding_no);
        if kept.matrices.get(&key).is_some_and(|(other, _)| age(other) >= age(&matrix)) {
            return;
        }
        kept.remove(key);
        if matrix.bytes == 0 {
            return;
        }
        while kept.bytes + matrix.bytes > self.bytes_max
            && let Some(oldest) = kept.least_recently_used()
        {
            kept.remove(oldest);
        }
        if kept.bytes + matrix.bytes <= self.bytes_max {
            kept.bytes += matrix.bytes;
            kept.uses += 1;
            let uses = kept.uses;
            kept.matrices.insert(key, (matrix, uses));
        }
    }
}

impl Kept {
    fn remove(&mut self, key: MatrixKey) {
        if let Some((matrix, _)) = self.matrices.remove(&key) {
            self.bytes -= matrix.bytes;
        }
    }

    fn least_recently_used(&self) -> Option<MatrixKey> {
        self.matrices.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(generation: i64, vectors: i64) -> Matrix {
        let mut matrix = Matrix::new(generation);
        (1..=vectors).for_each(|n| matrix.push(n, n * 10, &[1.0, 2.0]));
        matrix
    }

    #[test]
    fn what_was_used_least_recently_makes_room() {
        let cache = VectorCache::new(3 * matrix(0, 4).bytes());
        for owner in 1..=3 {
            cache.put((owner, 1), matrix(0, 4));
        }
        assert!(cache.get((1, 1)).is_some());
        cache.put((4, 1), matrix(0, 4));
        let kept: Vec<bool> = (1..=4).map(|owner| cache.get((owner, 1)).is_some()).collect();
        assert_eq!(kept, [true, false, true, true]);
        assert_eq!((cache.room((9, 1), true), cache.room((4, 1), true)), (0, matrix(0, 4).bytes()));
        cache.put((5, 1), matrix(0, 13));
        assert!(cache.get((5, 1)).is_none(), "larger than all");
    }

    #[test]
    fn an_older_matrix_never_replaces_a_newer_one() {
        let cache = VectorCache::new(1 << 20);
        cache.put((1, 1), matrix(2, 3));
        for older in [matrix(2, 2), matrix(1, 9)] {
            cache.put((1, 1), older);
            let kept = cache.get((1, 1)).unwrap();
            assert_eq!((kept.generation, kept.last_embedding_no), (2, 3));
        }
        cache.put((1, 1), matrix(3, 1));
        assert_eq!(cache.get((1, 1)).unwrap().last_embedding_no, 1);
    }

    #[test]
    fn what_was_removed_is_left_out_and_nothing_else() {
        let mut matrix = Matrix::new(1);
        let vector = vec![1.0; PIECE_NUMBERS / 4];
        (1..=12).for_each(|n| matrix.push(n, n * 10, &vector));
        let (before, full) = (matrix.clone(), matrix.bytes());
        matrix.retain(2, &[1, 3, 4, 5, 6, 7, 8, 12, 13]);
        let messages = |matrix: &Matrix| {
            let mut seen = Vec::new();
            matrix.visit(vector.len(), |message_no, _, _| seen.push(message_no));
            seen
        };
        assert_eq!(messages(&matrix), [10, 30, 40, 50, 60, 70, 80, 120]);
        assert_eq!((matrix.generation(), matrix.last_embedding_no, matrix.bytes()), (2, 12, full / 12 * 8));
        assert!(Arc::ptr_eq(&matrix.pieces[1], &before.pieces[1]), "copied without need");
        assert_eq!(messages(&before).len(), 12);
        matrix.retain(3, &[]);
        assert_eq!((messages(&matrix), matrix.bytes()), (vec![], 0));
        matrix.push(14, 140, &vector);
        assert_eq!(messages(&matrix), [140]);
    }

    #[test]
    fn a_copy_in_use_does_not_change_while_vectors_are_added() {
        let first = matrix(1, 2);
        let mut second = first.clone();
        second.push(3, 30, &[5.0, 6.0]);
        let messages = |matrix: &Matrix| {
            let mut seen = Vec::new();
            matrix.visit(2, |message_no, vector, _| seen.push((message_no, vector[1])));
            seen
        };
        assert_eq!(messages(&first), [(10, 2.0), (20, 2.0)]);
        assert_eq!(messages(&second), [(10, 2.0), (20, 2.0), (30, 6.0)]);
    }
}
