//! Packing of latents into tokens and back: 2x2 patches, channel slowest.

use kontext_core::{Error, Result, Tensor, check};

use crate::Grid;

/// Packs latents [B, C, 2 rows, 2 cols] into tokens [B, rows * cols, 4 C].
///
/// # Errors
/// [`Error::Shape`] if a side is odd.
///
/// Source: black-forest-labs/flux@802fb47 `src/flux/sampling.py`, `prepare`:
/// `b c (h ph) (w pw) -> b (h w) (c ph pw)`.
pub fn pack(latents: &Tensor) -> Result<Tensor> {
    let [batch, channels, height, width] = check::dims("latents", latents, "[B, C, H, W]")?;
    if height % 2 != 0 || width % 2 != 0 {
        return Err(Error::Shape {
            tensor: "latents",
            expected: "[B, C, even, even]",
            got: latents.size(),
        });
    }
    let patches = latents.f_reshape([batch, channels, height / 2, 2, width / 2, 2])?;
    Ok(patches
        .f_permute([0, 2, 4, 1, 3, 5])?
        .f_reshape([batch, height / 2 * (width / 2), channels * 4])?)
}

/// Unpacks tokens [B, rows * cols, 4 C] into latents [B, C, 2 rows, 2 cols].
///
/// # Errors
/// [`Error::Shape`] if the tokens do not fill the grid.
pub fn unpack(tokens: &Tensor, grid: Grid) -> Result<Tensor> {
    check::shape(
        "tokens",
        tokens,
        "[B, rows * cols, 4 C]",
        &[None, Some(grid.tokens()), None],
    )?;
    let [batch, _, features] = check::dims("tokens", tokens, "[B, L, 4 C]")?;
    let patches = tokens.f_reshape([batch, grid.rows, grid.cols, features / 4, 2, 2])?;
    Ok(patches
        .f_permute([0, 3, 1, 4, 2, 5])?
        .f_reshape([batch, features / 4, 2 * grid.rows, 2 * grid.cols])?)
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, Kind};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_holds_channel_then_row_then_column_of_its_patch() {
        let latents = Tensor::arange(16, (Kind::Float, Device::Cpu)).reshape([1, 2, 2, 4]);
        let tokens: Vec<Vec<f32>> = Vec::try_from(pack(&latents).unwrap().squeeze_dim(0)).unwrap();
        assert_eq!(tokens[1], [2.0, 3.0, 6.0, 7.0, 10.0, 11.0, 14.0, 15.0]);
    }

    proptest! {
        #[test]
        fn packing_round_trips(batch in 1_i64..3, channels in 1_i64..5, rows in 1_i64..7, cols in 1_i64..7) {
            let latents = Tensor::rand([batch, channels, 2 * rows, 2 * cols], (Kind::Float, Device::Cpu));
            let tokens = pack(&latents).unwrap();
            prop_assert_eq!(tokens.size(), [batch, rows * cols, 4 * channels]);
            let back = unpack(&tokens, Grid { rows, cols }).unwrap();
            prop_assert!(back.equal(&latents));
        }
    }
}
