//! The attention of a whole step: rows of any lanes, shared among the threads.

use super::{HeadCache, MAX_QUERIES, Pass, Span, attend};
use crate::team::{self, Chunks};

/// Positions that one query should meet before it is another thread's turn: some ten microseconds of work.
const POSITIONS_PER_TURN: usize = 1_024;

/// The heads of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Heads of keys and values.
    pub count: usize,
    /// Query heads that share one of them.
    pub group: usize,
    /// The size of a head.
    pub dimension: usize,
}

/// A row of a step.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Whose cache it attends over.
    pub lane: usize,
    /// Over which positions.
    pub span: Span,
}

/// Attends from every row over its own lane: `[rows, heads · dimension]`.
///
/// The query heads of row `n` begin at `queries[n · stride]`; `cache(lane, head)` gives keys and values. Neighbouring rows of one lane
/// share passes over them.
///
/// # Panics
///
/// If the sizes do not fit together, or a span is empty or longer than its cache.
pub fn attend_batch<'a>(
    queries: (&[f32], usize),
    heads: Heads,
    rows: &[Row],
    cache: impl Fn(usize, usize) -> HeadCache<'a> + Sync,
    out: &mut [f32],
) {
    let units = units(rows, (MAX_QUERIES / heads.group).max(1));
    let positions: usize = rows.iter().map(|row| row.span.end - row.span.first).sum();
    let pieces = units.len() * heads.count;
    let turn = (POSITIONS_PER_TURN * units.len()).div_ceil(positions.max(1));
    let out = Chunks::new(out, heads.group * heads.dimension);
    team::each(pieces.div_ceil(turn), |number| {
        let mut unit = UnitAttention::new(queries, heads);
        for piece in number * turn..pieces.min((number + 1) * turn) {
            let (rows_of, head) = (&units[piece / heads.count], piece % heads.count);
            let next = (piece + 1 < pieces).then(|| &units[(piece + 1) / heads.count]);
            let next = next.map(|next| cache(rows[next.start].lane, (piece + 1) % heads.count));
            unit.attend(&rows[rows_of.clone()], rows_of.start, head, cache(rows[rows_of.start].lane, head), next);
            for (row, found) in rows_of.clone().zip(unit.out.chunks_exact(heads.group * heads.dimension)) {
                // SAFETY: each row is in one unit, and each unit and head is met once.
                unsafe { out.get(row * heads.count + head) }.copy_from_slice(found);
            }
        }
    });
}

/// Stretches of at most `most` rows of one lane.
fn units(rows: &[Row], most: usize) -> Vec<std::ops::Range<usize>> {
    let mut units: Vec<std::ops::Range<usize>> = Vec::with_capacity(rows.len());
    for (number, row) in rows.iter().enumerate() {
        match units.last_mut() {
            Some(unit) if rows[unit.start].lane == row.lane && unit.len() < most => unit.end += 1,
            _ => units.push(number..number + 1),
        }
    }
    units
}

/// Working space of one thread's turn.
struct UnitAttention<'a> {
    queries: (&'a [f32], usize),
    heads: Heads,
    packed: Vec<f32>,
    spans: Vec<Span>,
    scores: Vec<f32>,
    /// What the last unit found: `[row][query head]`.
    out: Vec<f32>,
}

impl<'a> UnitAttention<'a> {
    fn new(queries: (&'a [f32], usize), heads: Heads) -> Self {
        Self { queries, heads, packed: Vec::new(), spans: Vec::new(), scores: Vec::new(), out: Vec::new() }
    }

    fn attend(&mut self, rows: &[Row], first: usize, head: usize, cache: HeadCache<'_>, next: Option<HeadCache<'_>>) {
        let (size, (queries, stride)) = (self.heads.group * self.heads.dimension, self.queries);
        self.packed.clear();
        for row in first..first + rows.len() {
            self.packed.extend_from_slice(&queries[row * stride + head * size..][..size]);
        }
        self.spans.clear();
        self.spans.extend(rows.iter().flat_map(|row| std::iter::repeat_n(row.span, self.heads.group)));
        self.out.resize(self.packed.len(), 0.0);
        let pass = Pass { queries: &self.packed, spans: &self.spans, cache, next };
        attend(pass, &mut self.scores, &mut self.out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{KEY_BLOCK, write_key};

    fn values(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|at| ((at as f32 + seed) * 78.233).sin() * 2.0).collect()
    }

    #[test]
    fn every_row_gets_what_it_would_get_alone() {
        let heads = Heads { count: 2, group: 3, dimension: 32 };
        let (blocks, size) = (8, KEY_BLOCK * heads.dimension);
        let tables: [&[u32]; 3] = [&[3, 1, 6], &[0, 7], &[5]];
        let keys: Vec<_> = (0..heads.count).map(|head| values(blocks * size, head as f32)).collect();
        let stored: Vec<_> = (0..heads.count).map(|head| values(blocks * size, head as f32 + 0.5)).collect();
        let cache = |lane: usize, head: usize| HeadCache {
            keys: &keys[head],
            values: &stored[head],
            blocks: tables[lane],
            dimension: heads.dimension,
        };
        let row = |lane, first, end| Row { lane, span: Span { first, end } };
        let prompt = (40..70).map(|end| row(0, end.max(50) - 50, end));
        let rows: Vec<_> = prompt.chain([row(2, 0, 1), row(1, 0, 64)]).collect();
        let (width, stride) = (heads.count * heads.group * heads.dimension, 400);
        let queries = values(rows.len() * stride, 9.0);
        let mut together = vec![f32::NAN; rows.len() * width];
        attend_batch((&queries, stride), heads, &rows, cache, &mut together);
        for (number, row) in rows.iter().enumerate() {
            let mut alone = vec![f32::NAN; width];
            attend_batch((&queries[number * stride..], stride), heads, &[*row], cache, &mut alone);
            assert_eq!(together[number * width..][..width], alone, "row {number}");
        }
    }

    #[test]
    fn a_key_is_found_where_it_was_written() {
        let heads = Heads { count: 1, group: 1, dimension: 32 };
        let (mut keys, mut stored) = (vec![0.0; KEY_BLOCK * 32], vec![0.0; KEY_BLOCK * 32]);
        // One key that the query meets, among keys that it does not.
        let query: Vec<f32> = (0..32).map(|at| if at == 3 { 100.0 } else { 0.0 }).collect();
        write_key(&mut keys, 7, &query);
        stored[7 * 32..8 * 32].fill(5.0);
        let cache = |_, _| HeadCache { keys: &keys, values: &stored, blocks: &[0], dimension: 32 };
        let mut out = vec![0.0; 32];
        let row = Row { lane: 0, span: Span { first: 0, end: 20 } };
        attend_batch((&query, 32), heads, &[row], cache, &mut out);
        assert!(out.iter().all(|value| *value == 5.0), "{out:?}");
    }
}
