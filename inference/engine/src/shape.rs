//! How large a model is.

use crate::{EngineOptions, TokenModel, blocks::PoolShape};

/// Part of the cache that is kept for later requests where the options do not say.
const USUALLY_KEPT: usize = 4;

/// What the scheduler knows of its model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelShape {
    pub(crate) lanes: usize,
    pub(crate) context_tokens: usize,
    pub(crate) vocabulary: usize,
    pub(crate) block_tokens: usize,
    pub(crate) blocks: usize,
}

impl ModelShape {
    pub(crate) fn of(model: &dyn TokenModel) -> Self {
        Self {
            lanes: model.lanes(),
            context_tokens: model.context_tokens(),
            vocabulary: model.vocabulary(),
            block_tokens: model.block_tokens(),
            blocks: model.blocks(),
        }
    }

    /// Whether any request can be served.
    pub(crate) fn is_usable(&self) -> bool {
        self.lanes > 0 && self.block_tokens > 0 && self.blocks * self.block_tokens >= self.context_tokens
    }

    /// The bounds of the model's cache.
    pub(crate) fn pool(&self, options: &EngineOptions) -> PoolShape {
        let kept = options.kept_tokens.unwrap_or(self.blocks * self.block_tokens / USUALLY_KEPT);
        PoolShape {
            lanes: self.lanes,
            blocks: self.blocks,
            block_tokens: self.block_tokens,
            kept_blocks: kept / self.block_tokens.max(1),
        }
    }
}
