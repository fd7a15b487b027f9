//! What a pass tells the device besides its shape, as one row of numbers, so that it travels at once.

use std::ops::Range;

use super::{buckets::Shape, kv::KvTensors, plan::Pass};
use crate::blocks::BLOCK_TOKENS;

/// Where in the row of a shape what is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// The token of every row.
    pub(super) tokens: Range<usize>,
    /// Its position.
    pub(super) positions: Range<usize>,
    /// The slots of all keys of every lane's heads.
    pub(super) slots: Range<usize>,
    /// Where keys and values are written: slot and position of each head of each row.
    pub(super) places: Range<usize>,
}

impl Layout {
    pub(super) fn new(shape: Shape, heads: usize) -> Self {
        let mut end = 0;
        let mut next = |count| {
            end += count;
            end - count..end
        };
        let slots = shape.lanes * heads * shape.keys.div_ceil(BLOCK_TOKENS);
        Self {
            tokens: next(shape.rows()),
            positions: next(shape.rows()),
            slots: next(slots),
            places: next(shape.rows() * heads * 2),
        }
    }
}

/// The row of one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Indices(pub(super) Vec<i64>);

impl Indices {
    /// Padding has no token, and is written to a spare slot.
    pub(super) fn new(pass: &Pass<'_>, heads: usize, cache: &KvTensors) -> Self {
        let Shape { lanes, tokens, keys } = pass.shape;
        let mut values = each_row(pass, |token, _| i64::from(token));
        values.extend(each_row(pass, |_, position| position as i64));
        let lanes = (0..lanes).map(|number| pass.parts.get(number).map(|part| part.lane));
        values.extend(lanes.flat_map(|lane| (0..heads).flat_map(move |head| cache.slots(lane, head, keys))));
        for row in 0..pass.shape.rows() {
            let part = pass.parts.get(row / tokens).filter(|part| row % tokens < part.tokens.len());
            let (lane, position) =
                part.map_or((None, row % tokens), |part| (Some(part.lane), part.start + row % tokens));
            values.extend((0..heads).flat_map(|head| cache.place(lane, position, head)));
        }
        debug_assert_eq!(values.len(), Layout::new(pass.shape, heads).places.end);
        Self(values)
    }
}

/// A value for every row from its token and position; 0 where there is none.
fn each_row(pass: &Pass<'_>, value: impl Fn(u32, usize) -> i64) -> Vec<i64> {
    let mut values = vec![0; pass.shape.rows()];
    for (part, values) in pass.parts.iter().zip(values.chunks_exact_mut(pass.shape.tokens)) {
        for ((out, &token), position) in values.iter_mut().zip(part.tokens).zip(part.start..) {
            *out = value(token, position);
        }
    }
    values
}
