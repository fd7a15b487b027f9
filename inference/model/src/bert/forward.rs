//! The forward pass over a ragged batch of texts: one matrix of hidden states, worked on in place.

use parlance_inference_engine::TokenId;
use parlance_inference_kernels::{
    Output, Scratch,
    attention::{self, HeadCache, Heads, KEY_BLOCK, Row, attend_batch, write_key},
    copied, elementwise, team,
};

use super::{
    config::BertConfig,
    weights::{Affine, BertLayer, BertWeights, Norm},
};

/// Rows that one thread takes at once; so few are not worth a second thread.
const ROWS_PER_TASK: usize = 8;

/// What rows pass through on their way, one row after the other. It grows to what the largest step takes.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    hidden: Vec<f32>,
    /// Queries, keys and values side by side.
    qkv: Vec<f32>,
    attended: Vec<f32>,
    /// The feed-forward part between its two maps.
    wide: Vec<f32>,
    spread: Spread,
    scratch: Scratch,
}

/// Keys and values as the kernel of attention reads them: text by text, and head by head within a text.
#[derive(Debug, Default)]
struct Spread {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// 0, 1, 2, …: the blocks of a head of a text lie one after the other.
    blocks: Vec<u32>,
}

/// One step over `texts`, none of them empty.
pub(super) struct Forward<'a> {
    pub(super) config: &'a BertConfig,
    pub(super) weights: &'a BertWeights,
    pub(super) workspace: &'a mut Workspace,
    pub(super) texts: &'a [&'a [TokenId]],
}

/// A text among the rows of a step.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Its first row.
    begin: usize,
    length: usize,
    /// Where its keys and values begin, counted in positions: each text's take whole blocks.
    keys_begin: usize,
}

impl Span {
    /// Positions of its whole blocks.
    fn positions(&self) -> usize {
        self.length.next_multiple_of(KEY_BLOCK)
    }
}

impl<'a> Forward<'a> {
    /// The hidden states behind the last layer, one row per token, text after text.
    pub(super) fn hidden(self) -> &'a [f32] {
        let Self { config, weights, workspace, texts } = self;
        let spans = spans(texts);
        embed(config, weights, texts, &mut workspace.hidden);
        for layer in &weights.layers {
            attend_layer(config, layer, &spans, workspace);
            feed_forward(config, layer, workspace);
        }
        &workspace.hidden
    }
}

fn spans(texts: &[&[TokenId]]) -> Vec<Span> {
    let (mut begin, mut keys_begin) = (0, 0);
    let span = |text: &&[TokenId]| {
        let span = Span { begin, length: text.len(), keys_begin };
        begin += text.len();
        keys_begin += text.len().next_multiple_of(KEY_BLOCK);
        span
    };
    texts.iter().map(span).collect()
}

/// The sum of each token's word and position, normed.
fn embed(config: &BertConfig, weights: &BertWeights, texts: &[&[TokenId]], hidden: &mut Vec<f32>) {
    let width = config.hidden;
    let numbered = texts.iter().flat_map(|text| text.iter().enumerate());
    let places: Vec<(usize, TokenId)> = numbered.map(|(position, token)| (position, *token)).collect();
    hidden.resize(places.len() * width, 0.0);
    team::each_chunk(hidden, ROWS_PER_TASK * width, |number, rows| {
        for (row, (position, token)) in rows.chunks_exact_mut(width).zip(&places[number * ROWS_PER_TASK..]) {
            weights.words.row(*token as usize, row);
            add(row, &weights.positions[position * width..][..width]);
            norm(row, &weights.embedding_norm, config);
        }
    });
}

fn attend_layer(config: &BertConfig, layer: &BertLayer, spans: &[Span], workspace: &mut Workspace) {
    let Workspace { hidden, qkv, attended, spread, scratch, .. } = workspace;
    let (width, rows) = (config.hidden, hidden.len() / config.hidden);
    qkv.resize(rows * 3 * width, 0.0);
    layer.qkv.weight.multiply(rows, copied(hidden, width), scratch, Output::Set(qkv));
    add_bias(qkv, &layer.qkv.bias);
    spread.fill(qkv, spans, config);
    attended.resize(rows * width, 0.0);
    attend(qkv, spans, spread, config, attended);
    let output = &layer.attention_output;
    output.weight.multiply(rows, copied(attended, width), scratch, Output::Add(hidden));
    finish(hidden, output, &layer.attention_norm, config);
}

fn feed_forward(config: &BertConfig, layer: &BertLayer, workspace: &mut Workspace) {
    let Workspace { hidden, wide, scratch, .. } = workspace;
    let (width, rows) = (config.feed_forward, hidden.len() / config.hidden);
    wide.resize(rows * width, 0.0);
    layer.up.weight.multiply(rows, copied(hidden, config.hidden), scratch, Output::Set(wide));
    let activated = |row: usize, values: &mut [f32]| {
        values.copy_from_slice(&wide[row * width..][..width]);
        add(values, &layer.up.bias);
        elementwise::gelu(values);
    };
    layer.down.weight.multiply(rows, activated, scratch, Output::Add(hidden));
    finish(hidden, &layer.down, &layer.output_norm, config);
}

/// Adds the bias of the map that was added last to the hidden states, and norms them.
fn finish(hidden: &mut [f32], map: &Affine, weights: &Norm, config: &BertConfig) {
    team::each_chunk(hidden, ROWS_PER_TASK * config.hidden, |_, rows| {
        for row in rows.chunks_exact_mut(config.hidden) {
            add(row, &map.bias);
            norm(row, weights, config);
        }
    });
}

fn add_bias(rows: &mut [f32], bias: &[f32]) {
    team::each_chunk(rows, ROWS_PER_TASK * bias.len(), |_, rows| {
        rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
    });
}

fn add(row: &mut [f32], other: &[f32]) {
    row.iter_mut().zip(other).for_each(|(value, other)| *value += other);
}

fn norm(row: &mut [f32], weights: &Norm, config: &BertConfig) {
    elementwise::layer_norm(row, &weights.weight, &weights.bias, config.norm_epsilon);
}

impl Spread {
    fn fill(&mut self, qkv: &[f32], spans: &[Span], config: &BertConfig) {
        let (hidden, head) = (config.hidden, config.hidden / config.heads);
        let positions = spans.last().map_or(0, |span| span.keys_begin + span.positions());
        let longest = spans.iter().map(Span::positions).max().unwrap_or(0);
        // What lies behind a text in its last block is not read; it only must be there.
        self.keys.resize(positions * hidden, 0.0);
        self.values.resize(positions * hidden, 0.0);
        self.blocks = (0..(longest / KEY_BLOCK) as u32).collect();
        for span in spans {
            let range = span.keys_begin * hidden..(span.keys_begin + span.positions()) * hidden;
            let (keys, values) = (&mut self.keys[range.clone()], &mut self.values[range]);
            let rows = qkv[span.begin * 3 * hidden..][..span.length * 3 * hidden].chunks_exact(3 * hidden);
            for (position, row) in rows.enumerate() {
                let (new_keys, new_values) = row[hidden..].split_at(hidden);
                let (block, within) = (position / KEY_BLOCK * KEY_BLOCK * head, position % KEY_BLOCK);
                for (keys, key) in keys.chunks_exact_mut(span.positions() * head).zip(new_keys.chunks_exact(head)) {
                    write_key(&mut keys[block..][..KEY_BLOCK * head], within, key);
                }
                for (values, value) in
                    values.chunks_exact_mut(span.positions() * head).zip(new_values.chunks_exact(head))
                {
                    values[position * head..][..head].copy_from_slice(value);
                }
            }
        }
    }

    fn head<'a>(&'a self, span: &Span, number: usize, hidden: usize, head: usize) -> HeadCache<'a> {
        let size = span.positions() * head;
        let begin = span.keys_begin * hidden + number * size;
        HeadCache {
            keys: &self.keys[begin..][..size],
            values: &self.values[begin..][..size],
            blocks: &self.blocks[..span.positions() / KEY_BLOCK],
            dimension: head,
        }
    }
}

/// Attention of every row over all rows of its own text.
fn attend(qkv: &[f32], spans: &[Span], spread: &Spread, config: &BertConfig, out: &mut [f32]) {
    let (hidden, head) = (config.hidden, config.hidden / config.heads);
    let heads = Heads { count: config.heads, group: 1, dimension: head };
    let rows_of = |(lane, span): (usize, &Span)| {
        std::iter::repeat_n(Row { lane, span: attention::Span { first: 0, end: span.length } }, span.length)
    };
    let rows: Vec<Row> = spans.iter().enumerate().flat_map(rows_of).collect();
    let cache = |text: usize, number| spread.head(&spans[text], number, hidden, head);
    attend_batch((qkv, 3 * hidden), heads, &rows, cache, out);
}
