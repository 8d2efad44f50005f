//! The model of the tests of damaged files.

use kontext_dit::DitConfig;

/// Returns the sizes of a tiny model: `img_in` is [8, 16], the queries of its double block are [8, 8].
pub(crate) fn config() -> DitConfig {
    DitConfig {
        in_channels: 16,
        out_channels: 16,
        heads: 1,
        head_dim: 8,
        axes_dim: [4, 2, 2],
        mlp_width: 32,
        double_blocks: 1,
        single_blocks: 1,
        context_dim: 8,
        pooled_dim: 8,
        guidance_embed: true,
    }
}
