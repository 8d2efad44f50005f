//! Masks as `FluxKontextInpaintPipeline` reads them.

use image::{GrayImage, RgbImage};
use kontext_core::{Error, Kind, Result, Tensor, buffer, images};
use kontext_sampler::Grid;

/// Returns the mask [1, 1, 2 rows, 2 cols] of a target: resized to its image by Lanczos, levels from 127.5 on taken as 1
/// and the others as 0, and the top left pixel of each latent.
///
/// Source: huggingface/diffusers 0.38 `pipelines/flux/pipeline_flux_kontext_inpaint.py`, `prepare_mask_latents`, and
/// `image_processor.py`, `VaeImageProcessor.preprocess` with `do_binarize`.
pub(crate) fn latents_mask(mask: &GrayImage, grid: Grid) -> Result<Tensor> {
    const MASK: &str = "the mask at the model's size";
    const LATENT: usize = kontext_vae::DOWNSCALE as usize;
    let (width, height) = mask.dimensions();
    let mut levels = buffer::with_room(3 * mask.as_raw().len(), MASK)?;
    levels.extend(mask.iter().flat_map(|&level| [level; 3]));
    let missing = || Error::bug("a mask with missing pixels");
    let image = RgbImage::from_raw(width, height, levels).ok_or_else(missing)?;
    let size = grid.size();
    let resized = images::resize(&image, size.width, size.height)?;
    let rows = resized.as_raw().chunks_exact(3 * size.width as usize).step_by(LATENT);
    let values = rows.flat_map(|row| row.iter().step_by(3 * LATENT));
    // Levels are divided by 255 in f32.
    let values: Vec<f32> = values
        .map(|&level| f32::from(u8::from(f32::from(level) / 255.0 >= 0.5)))
        .collect();
    Ok(Tensor::f_from_slice(&values)?
        .f_to_kind(Kind::Float)?
        .f_reshape([1, 1, 2 * grid.rows, 2 * grid.cols])?)
}
