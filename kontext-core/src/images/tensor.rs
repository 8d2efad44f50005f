//! 8-bit images to tensors in [-1, 1] and back.

use image::RgbImage;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, buffer, check};

/// Converts an 8-bit image to a tensor [1, 3, H, W] in [-1, 1]: `level / 127.5 - 1`.
///
/// # Errors
/// [`Error::Torch`] if libtorch fails.
pub fn to_tensor(image: &RgbImage, kind: Kind, device: Device) -> Result<Tensor> {
    let (width, height) = (i64::from(image.width()), i64::from(image.height()));
    let bytes = Tensor::f_from_data_size(image.as_raw(), &[1, height, width, 3], Kind::Uint8)?;
    let levels = bytes
        .f_to_device(device)?
        .f_permute([0, 3, 1, 2])?
        .f_to_kind(Kind::Float)?;
    Ok(levels
        .f_div_scalar(127.5)?
        .f_sub_scalar(1.0)?
        .f_to_kind(kind)?
        .f_contiguous()?)
}

/// Rounding of a value to one of 256 levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// To the nearest level, as diffusers does.
    #[default]
    Nearest,
    /// To the level below, as black-forest-labs/flux does.
    Down,
}

/// Converts a tensor [B, 3, H, W] in [-1, 1] (values outside are clamped) to B 8-bit images.
///
/// # Errors
/// [`Error::Shape`] for another shape.
pub fn from_tensor(values: &Tensor, rounding: Rounding) -> Result<Vec<RgbImage>> {
    from_levels(&to_levels(values, rounding)?)
}

/// Converts a tensor [B, 3, H, W] in [-1, 1] (values outside are clamped) to the levels u8 [B, H, W, 3] of B images, on
/// its device and without waiting for it.
///
/// # Errors
/// [`Error::Shape`] for another shape.
pub fn to_levels(values: &Tensor, rounding: Rounding) -> Result<Tensor> {
    check::shape("image", values, "[B, 3, H, W]", &[None, Some(3), None, None])?;
    let unit = values.f_to_kind(Kind::Float)?.f_clamp(-1.0, 1.0)?;
    let levels = match rounding {
        Rounding::Nearest => unit
            .f_mul_scalar(0.5)?
            .f_add_scalar(0.5)?
            .f_mul_scalar(255.0)?
            .f_round()?,
        Rounding::Down => unit.f_add_scalar(1.0)?.f_mul_scalar(127.5)?.f_floor()?,
    };
    Ok(levels.f_to_kind(Kind::Uint8)?.f_permute([0, 2, 3, 1])?.f_contiguous()?)
}

/// Converts levels u8 [B, H, W, 3] to B 8-bit images.
///
/// # Errors
/// [`Error::Shape`] for another shape.
pub fn from_levels(levels: &Tensor) -> Result<Vec<RgbImage>> {
    check::shape("levels", levels, "[B, H, W, 3]", &[None, None, None, Some(3)])?;
    let [batch, height, width, _] = check::dims("levels", levels, "[B, H, W, 3]")?;
    let bytes = levels.f_to_device(Device::Cpu)?.f_contiguous()?;
    let size = (height * width * 3) as usize;
    (0..batch)
        .map(|item| {
            let mut levels = buffer::filled(0_u8, size, "the image")?;
            bytes
                .f_select(0, item)?
                .f_reshape([-1])?
                .f_copy_data(&mut levels, size)?;
            let missing = || Error::bug("an image of a tensor with missing pixels");
            RgbImage::from_raw(width as u32, height as u32, levels).ok_or_else(missing)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_survives_the_way_to_a_tensor_and_back() {
        let image = RgbImage::from_fn(16, 16, |x, y| image::Rgb([(y * 16 + x) as u8, x as u8, 255 - y as u8]));
        let tensor = to_tensor(&image, Kind::Float, Device::Cpu).unwrap();
        assert_eq!(tensor.size(), [1, 3, 16, 16]);
        assert_eq!(from_tensor(&tensor, Rounding::Nearest).unwrap(), [image]);
    }
}
