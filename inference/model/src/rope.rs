//! Rotary position embedding (Su et al. 2021), over neighbouring pairs or over halves, with the scalings of longer contexts.

use std::f64::consts::TAU;

/// Which two values of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// 2i and 2i + 1: the order in which GGUF files keep the heads of the architecture `llama`.
    Neighbours,
    /// i and i + half of the head: everybody else's.
    Halves,
}

/// How frequencies are stretched over contexts longer than the first training's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scaling {
    None,
    /// All by one factor (Chen et al. 2023).
    Linear(f32),
    /// Low frequencies alone, with a ramp to those that stay (Llama 3.1, `rope_type` "llama3" of transformers).
    Llama3 {
        factor: f32,
        low_frequency_factor: f32,
        high_frequency_factor: f32,
        original_context: f32,
    },
    /// Each by a factor of its own, as GGUF files state what Llama 3's comes to.
    Factors(Vec<f32>),
}

/// The rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeConfig {
    pub(crate) base: f32,
    pub(crate) pairing: Pairing,
    pub(crate) scaling: Scaling,
}

impl RopeConfig {
    /// Radians per position of every pair of a head.
    fn frequencies(&self, head: usize) -> Vec<f64> {
        let plain = |pair: usize| f64::from(self.base).powf(-2.0 * pair as f64 / head as f64);
        (0..head / 2).map(|pair| self.scaling.apply(pair, plain(pair))).collect()
    }
}

impl Scaling {
    fn apply(&self, pair: usize, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear(factor) => frequency / f64::from(factor),
            Self::Factors(ref factors) => frequency / f64::from(factors[pair]),
            Self::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => {
                let (low, high) = (f64::from(low_frequency_factor), f64::from(high_frequency_factor));
                // How often the pair turns within the original context decides how much of it stays.
                let turns = f64::from(original_context) * frequency / TAU;
                let stays = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - stays) * frequency / f64::from(factor) + stays * frequency
            }
        }
    }
}

/// Cosines and sines of every position up to the context's end.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `[position][pair]`, cosine and sine.
    turns: Vec<(f32, f32)>,
    pairs: usize,
    pairing: Pairing,
}

impl Rope {
    /// Angles are computed in f64, so that far positions lose nothing.
    pub(crate) fn new(config: &RopeConfig, head: usize, context: usize) -> Self {
        let frequencies = config.frequencies(head);
        let turn = |position: usize, frequency: f64| {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            (cosine as f32, sine as f32)
        };
        let turns = (0..context).flat_map(|position| frequencies.iter().map(move |&f| turn(position, f))).collect();
        Self { turns, pairs: head / 2, pairing: config.pairing }
    }

    /// The cosines and the sines, `[position][pair]` each.
    pub(crate) fn tables(&self) -> (Vec<f32>, Vec<f32>) {
        self.turns.iter().copied().unzip()
    }

    /// Pairs of values in a head.
    pub(crate) fn pairs(&self) -> usize {
        self.pairs
    }

    pub(crate) fn pairing(&self) -> Pairing {
        self.pairing
    }

    /// Turns heads that lie one after the other at `position`, in place.
    pub(crate) fn turn(&self, position: usize, heads: &mut [f32]) {
        let turns = &self.turns[position * self.pairs..][..self.pairs];
        for head in heads.chunks_exact_mut(2 * self.pairs) {
            match self.pairing {
                Pairing::Neighbours => {
                    let (pairs, _) = head.as_chunks_mut::<2>();
                    pairs.iter_mut().zip(turns).for_each(|([x, y], &turn)| turn_pair(x, y, turn));
                }
                Pairing::Halves => {
                    let (left, right) = head.split_at_mut(self.pairs);
                    left.iter_mut().zip(right).zip(turns).for_each(|((x, y), &turn)| turn_pair(x, y, turn));
                }
            }
        }
    }
}

fn turn_pair(x: &mut f32, y: &mut f32, (cosine, sine): (f32, f32)) {
    (*x, *y) = (*x * cosine - *y * sine, *x * sine + *y * cosine);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(base: f32, pairing: Pairing, head: usize, context: usize) -> Rope {
        Rope::new(&RopeConfig { base, pairing, scaling: Scaling::None }, head, context)
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        for pairing in [Pairing::Neighbours, Pairing::Halves] {
            let rope = rope(10_000.0, pairing, 8, 64);
            let product = |query_at, key_at| {
                let mut query = [0.3, -1.0, 0.5, 2.0, 0.1, 0.2, -0.4, 0.9];
                let mut key = [1.0, 0.4, -0.3, 0.8, 0.6, -0.7, 0.2, 0.5];
                rope.turn(query_at, &mut query);
                rope.turn(key_at, &mut key);
                query.iter().zip(&key).map(|(a, b)| a * b).sum::<f32>()
            };
            assert!((product(5, 2) - product(40, 37)).abs() < 1e-5);
            assert!((product(5, 2) - product(5, 3)).abs() > 1e-3);
        }
    }

    #[test]
    fn position_0_changes_nothing() {
        let rope = rope(100_000.0, Pairing::Neighbours, 4, 1);
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rope.turn(0, &mut head);
        assert_eq!(head, [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn halves_are_neighbours_in_another_order() {
        let mut halves = [0.3, 0.5, 0.1, -0.4, -1.0, 2.0, 0.2, 0.9];
        let mut neighbours = [0.3, -1.0, 0.5, 2.0, 0.1, 0.2, -0.4, 0.9];
        rope(10_000.0, Pairing::Halves, 8, 10).turn(9, &mut halves);
        rope(10_000.0, Pairing::Neighbours, 8, 10).turn(9, &mut neighbours);
        for (pair, values) in neighbours.chunks_exact(2).enumerate() {
            assert_eq!(values, [halves[pair], halves[4 + pair]]);
        }
    }
}
