//! Tiled encoding and decoding of large images, within the memory of one tile.
//!
//! Neighbouring tiles overlap and are blended with a linear ramp, as in diffusers' `tiled_decode`, with two
//! differences: tiles are spread evenly and all have the full size (in diffusers the last ones may be
//! slivers, which the model sees without context), and each row of tiles is blended as soon as it is
//! computed, so no list of tiles is kept and the weights in the corners are the product of the two ramps.
//!
//! Source: huggingface/diffusers v0.38 models/autoencoders/autoencoder_kl.py, tiled_decode, blend_v, blend_h.

use kontext_core::{Error, Kind, Result, Tensor, check};

use crate::DOWNSCALE;

/// Size and overlap of tiles in pixels, both multiples of 8.
///
/// An image with sides of at most `tile` is computed whole. The result for larger images differs from an
/// untiled one: each tile is normalised by its own moments and attends only to itself.
///
/// # Example
/// ```
/// use kontext_vae::Tiling;
/// assert_eq!(Tiling::default(), Tiling { tile: 1024, overlap: 256 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile. Default 1024, the size that FLUX.1's autoencoder was designed for.
    pub tile: i64,
    /// Minimum overlap of neighbouring tiles. Default 256.
    pub overlap: i64,
}

impl Default for Tiling {
    fn default() -> Self {
        Self {
            tile: 1024,
            overlap: 256,
        }
    }
}

impl Tiling {
    /// Checks tile size and overlap.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if either is not a multiple of 8, or the overlap is not less than the tile.
    pub fn validate(&self) -> Result<()> {
        let multiple = |value: i64| value % DOWNSCALE == 0;
        if self.tile < DOWNSCALE || !multiple(self.tile) {
            return Err(Error::invalid(
                "tile",
                format!("a positive multiple of {DOWNSCALE} pixels"),
                self.tile,
            ));
        }
        if !(0..self.tile).contains(&self.overlap) || !multiple(self.overlap) {
            let expected = format!(
                "a multiple of {DOWNSCALE} pixels less than the tile, which is {}",
                self.tile
            );
            return Err(Error::invalid("overlap", expected, self.overlap));
        }
        Ok(())
    }

    /// Returns `true` if an image of this size is computed in more than one tile.
    #[must_use]
    pub fn splits(&self, height: i64, width: i64) -> bool {
        height.max(width) > self.tile
    }
}

/// Applies `model` to overlapping tiles of `input` [B, C, H, W] and blends the results. An image of one tile,
/// or an input that is not in whole cells (left to `model` to reject), is passed whole.
///
/// `unit_in` is the side of a cell (8x8 pixels) in `input` and `unit_out` in the output: 1 for latents, 8 for
/// pixels.
pub(crate) fn tiled(
    input: &Tensor,
    tiling: Tiling,
    [unit_in, unit_out]: [i64; 2],
    model: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    tiling.validate()?;
    let [_, _, height, width] = check::dims("input", input, "[B, C, H, W]")?;
    let (rows, columns) = (height / unit_in, width / unit_in);
    let in_whole_cells = rows * unit_in == height && columns * unit_in == width;
    if !in_whole_cells || !tiling.splits(rows * DOWNSCALE, columns * DOWNSCALE) {
        return model(input);
    }
    let cut = |part: &Tensor, dim, span: &Span| part.f_narrow(dim, span.start * unit_in, span.length * unit_in);
    assemble(rows, tiling, 2, unit_out, |row| {
        let strip = cut(input, 2, row)?;
        assemble(columns, tiling, 3, unit_out, |column| model(&cut(&strip, 3, column)?))
    })
}

/// Joins the results of `piece` for each tile along a side of `size` cells, blending the overlaps.
fn assemble(size: i64, tiling: Tiling, dim: i64, unit: i64, piece: impl Fn(&Span) -> Result<Tensor>) -> Result<Tensor> {
    let mut target = Tensor::new();
    for span in spans(size, tiling) {
        let piece = piece(&span)?;
        if span.start == 0 {
            let mut shape = piece.size();
            shape
                .iter_mut()
                .skip(dim as usize)
                .take(1)
                .for_each(|side| *side = size * unit);
            target = Tensor::f_empty(shape, (piece.kind(), piece.device()))?;
        }
        paste(&target, &piece, dim, &span, unit)?;
    }
    Ok(target)
}

/// Extent of a tile along one side, in cells.
#[derive(Debug, PartialEq, Eq)]
struct Span {
    start: i64,
    length: i64,
    /// Number of cells already covered by the preceding tiles.
    overlap: i64,
}

/// Returns the fewest tiles that cover a side of `size` cells with at least the requested overlap, spread
/// evenly.
fn spans(size: i64, tiling: Tiling) -> Vec<Span> {
    let (tile, overlap) = (tiling.tile / DOWNSCALE, tiling.overlap / DOWNSCALE);
    if size <= tile {
        return vec![Span {
            start: 0,
            length: size,
            overlap: 0,
        }];
    }
    let steps = (size - tile + tile - overlap - 1) / (tile - overlap); // rounded up, at least one
    let start = |k: i64| k * (size - tile) / steps;
    let span = |k: i64| Span {
        start: start(k),
        length: tile,
        overlap: if k == 0 { 0 } else { start(k - 1) + tile - start(k) },
    };
    (0..=steps).map(span).collect()
}

/// Writes `piece` into `target` along `dim`. In the overlap, the weight of the piece rises from 0 in equal
/// steps.
fn paste(target: &Tensor, piece: &Tensor, dim: i64, span: &Span, unit: i64) -> Result<()> {
    let (start, overlap, length) = (span.start * unit, span.overlap * unit, span.length * unit);
    if overlap > 0 {
        // In f32: above 256, bf16 represents only every second integer.
        let ramp = Tensor::f_arange(overlap, (Kind::Float, piece.device()))?.f_div_scalar(overlap as f64)?;
        let ramp = ramp.f_to_kind(piece.kind())?;
        let ramp = if dim == 2 { ramp.f_unsqueeze(1)? } else { ramp };
        let mut blended = target.f_narrow(dim, start, overlap)?;
        let _ = blended.f_lerp_tensor_(&piece.f_narrow(dim, 0, overlap)?, &ramp)?;
    }
    let fresh = length - overlap;
    target
        .f_narrow(dim, start + overlap, fresh)?
        .f_copy_(&piece.f_narrow(dim, overlap, fresh)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};

    use super::*;

    /// Tiles of two cells with an overlap of one.
    const SMALL: Tiling = Tiling { tile: 16, overlap: 8 };

    #[test]
    fn tiles_cover_a_side_evenly_with_at_least_the_overlap() {
        for size in 1..60 {
            let spans = spans(size, Tiling { tile: 80, overlap: 24 });
            assert!(spans.iter().skip(1).all(|s| s.overlap >= 3 && s.length == 10));
            let covered: i64 = spans.iter().map(|s| s.length - s.overlap).sum();
            assert_eq!(covered, size);
            assert!(spans.iter().all(|s| s.start + s.length <= size));
        }
        assert_eq!(spans(11, Tiling { tile: 80, overlap: 24 }).len(), 2);
    }

    #[test]
    fn a_model_without_surroundings_gives_in_tiles_what_it_gives_whole() {
        let x = noise::randn(&[2, 3, 40, 56], 0, Kind::Float, Device::Cpu).unwrap();
        let shrink = |t: &Tensor| Ok(t.f_avg_pool2d([8, 8], [8, 8], [0, 0], false, true, None)?);
        let got = tiled(&x, SMALL, [8, 1], shrink).unwrap();
        assert!(got.allclose(&shrink(&x).unwrap(), 1e-6, 1e-6, false));
        let grow = |t: &Tensor| Ok(t.f_upsample_nearest2d([t.size4()?.2 * 8, t.size4()?.3 * 8], None, None)?);
        let got = tiled(&x, SMALL, [1, 8], grow).unwrap();
        assert!(got.allclose(&grow(&x).unwrap(), 1e-6, 1e-6, false));
    }

    #[test]
    fn the_weight_of_a_new_tile_rises_in_equal_steps() {
        let x = Tensor::zeros([1, 1, 1, 3], (Kind::Float, Device::Cpu));
        let count = std::cell::Cell::new(0.0);
        let model = |t: &Tensor| {
            count.set(count.get() + 1.0);
            Ok(Tensor::f_full(
                [1, 1, 8, t.size4()?.3 * 8],
                count.get(),
                (Kind::Float, Device::Cpu),
            )?)
        };
        let got = tiled(&x, SMALL, [1, 8], model).unwrap();
        let row = Vec::<f32>::try_from(got.select(2, 0).flatten(0, -1)).unwrap();
        assert_eq!(row[..9], [1.0; 9]);
        assert_eq!(row[9..16], [1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875]);
        assert_eq!(row[16..], [2.0; 8]);
    }

    #[test]
    fn tiles_that_are_no_multiple_of_eight_are_refused() {
        let error = Tiling { tile: 100, overlap: 0 }.validate().unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid tile: expected a positive multiple of 8 pixels, got 100"
        );
        assert!(Tiling { tile: 64, overlap: 64 }.validate().is_err());
        Tiling::default().validate().unwrap();
    }
}
