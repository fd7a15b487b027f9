//! What encoders need besides: layer norms with a bias, GELU, positions from a table, attention of texts within themselves.

use burn::tensor::Tensor;
use burn_flex::Flex;
use parlance_inference_kernels::{
    attention::{self, HeadCache, KEY_BLOCK, write_key},
    elementwise,
};
use rayon::prelude::*;

use super::{primitive, values, wrap};

/// Rows per task; fewer are not worth a second thread.
const ROWS_PER_TASK: usize = 16;

/// The weights of a layer norm.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// Layer norm of every row.
pub(crate) fn layer_norm(x: Tensor<2>, norm: &Norm, epsilon: f32) -> Tensor<2> {
    wrap(elementwise::layer_norm(values(&primitive(x)), &norm.weight, &norm.bias, epsilon), norm.weight.len())
}

/// The Gaussian error linear unit of every value.
pub(crate) fn gelu(x: Tensor<2>) -> Tensor<2> {
    let mut x = primitive(x);
    elementwise::gelu(x.storage_mut());
    Tensor::from_primitive::<Flex>(x)
}

/// Adds to every row that of its position in `table`; texts of these `lengths` lie one after the other, each from position 0 on.
pub(crate) fn add_positions(x: Tensor<2>, table: &[f32], lengths: &[usize]) -> Tensor<2> {
    let [_, width] = x.dims();
    let mut x = primitive(x);
    let mut rest: &mut [f32] = x.storage_mut();
    for length in lengths {
        let (rows, others) = rest.split_at_mut(length * width);
        rows.iter_mut().zip(table).for_each(|(value, position)| *value += position);
        rest = others;
    }
    Tensor::from_primitive::<Flex>(x)
}

/// Attention of every row over all rows of its own text; `qkv` holds queries, keys and values of `heads` heads side by side.
pub(crate) fn attend_within(qkv: Tensor<2>, lengths: &[usize], heads: usize) -> Tensor<2> {
    let [rows, width] = qkv.dims();
    let hidden = width / 3;
    let head = hidden / heads;
    let qkv = primitive(qkv);
    let mut by_head = vec![0.0; rows * hidden];
    let tasks = by_text_and_head(&mut by_head, values(&qkv), lengths, heads, width);
    tasks.into_par_iter().for_each_init(Scratch::default, |scratch, task| task.attend(scratch, hidden, head));
    let mut out = vec![0.0; rows * hidden];
    let (mut to, mut from) = (&mut out[..], &by_head[..]);
    for length in lengths {
        let (rows, other_rows) = to.split_at_mut(length * hidden);
        let (text, other_texts) = from.split_at(length * hidden);
        rows.par_chunks_exact_mut(hidden).with_min_len(ROWS_PER_TASK).enumerate().for_each(|(row, out)| {
            for (out, of_head) in out.chunks_exact_mut(head).zip(text.chunks_exact(length * head)) {
                out.copy_from_slice(&of_head[row * head..][..head]);
            }
        });
        (to, from) = (other_rows, other_texts);
    }
    wrap(out, hidden)
}

/// The attention of one head of one text.
struct Task<'a> {
    /// The text's rows of queries, keys and values.
    qkv: &'a [f32],
    width: usize,
    number: usize,
    /// `[row][head]`.
    out: &'a mut [f32],
}

/// What a task lays out for the kernel.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
}

fn by_text_and_head<'a>(
    out: &'a mut [f32],
    qkv: &'a [f32],
    lengths: &[usize],
    heads: usize,
    width: usize,
) -> Vec<Task<'a>> {
    let mut tasks = Vec::with_capacity(lengths.len() * heads);
    let (mut out, mut qkv) = (out, qkv);
    for length in lengths {
        let (text, other_texts) = qkv.split_at(length * width);
        let (of_text, others) = out.split_at_mut(length * width / 3);
        let of_heads = of_text.chunks_exact_mut(length * (width / 3 / heads)).enumerate();
        tasks.extend(of_heads.map(|(number, out)| Task { qkv: text, width, number, out }));
        (out, qkv) = (others, other_texts);
    }
    tasks
}

impl Task<'_> {
    fn attend(self, scratch: &mut Scratch, hidden: usize, head: usize) {
        let length = self.qkv.len() / self.width;
        let Scratch { queries, keys, values, scores } = scratch;
        queries.clear();
        values.clear();
        // What lies behind the text is not read as such; it only must be there.
        keys.resize(length.next_multiple_of(KEY_BLOCK) * head, 0.0);
        for (position, row) in self.qkv.chunks_exact(self.width).enumerate() {
            let part = |part: usize| &row[part * hidden + self.number * head..][..head];
            queries.extend_from_slice(part(0));
            write_key(keys, position, part(1));
            values.extend_from_slice(part(2));
        }
        let cache = HeadCache { keys, values, dimension: head, first: 0 };
        // To the kernel, the rows' queries are those of as many heads that share one cache.
        attention::attend(queries, cache, length, scores, self.out);
    }
}
