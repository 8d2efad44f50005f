//! Group norm and SiLU of pictures whose channels are last in memory.

use kontext_core::{Error, Kind, Result, Tensor};

use crate::checks::{check, dense, whole};
use crate::kernels::argument;
use crate::{Access, Buffer, Kernel, Kernels};

/// Threads of a block.
const THREADS: i64 = 256;
/// Most channels: a thread has 8.
const MOST_CHANNELS: i64 = THREADS * 8;
/// Most groups: a thread adds up each of a group's two moments.
const MOST_GROUPS: i64 = THREADS / 2;
/// Values of a slab of pixels, about: what a block reads while another launch would start.
const SLAB_VALUES: i64 = 1 << 16;
/// Most slabs of a picture, whose sums each block of the second launch adds up.
const MOST_SLABS: i64 = 512;

/// A picture that was checked, with the memory of its norm's weight and bias.
struct Picture {
    size: [i64; 4],
    items: u16,
    pixels: i32,
    weight: Buffer,
    bias: Buffer,
}

impl Kernels {
    /// Returns `true` if there are kernels for a group norm of these numbers: channels are a multiple of 8 of
    /// at most 2048, and at most 128 groups divide them.
    #[must_use]
    pub fn has_group_norm(channels: i64, groups: i64) -> bool {
        (1..=MOST_CHANNELS).contains(&channels)
            && channels % 8 == 0
            && (1..=MOST_GROUPS).contains(&groups)
            && channels % groups == 0
    }

    /// Returns `true` if [`Kernels::group_norm_silu`] takes these tensors; a layer that has others computes by
    /// libtorch's operations.
    #[must_use]
    pub fn takes_group_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, groups: i64) -> bool {
        self.picture(x, weight, bias, groups).is_ok()
    }

    /// Norms a picture over groups of channels, with weight and bias, and applies SiLU if `silu`. Returns a
    /// new tensor of the same shape and layout.
    ///
    /// `x` is bf16 [B, C, H, W] in the channels-last layout; `weight` and `bias` are f32 `[C]`. Sums are in
    /// f32 within a thread and in f64 over slabs of pixels, always in the same order. Independent of the
    /// kernels' sizes.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::InvalidArgument`] for tensors and numbers that do not fit
    /// ([`Kernels::takes_group_norm`]), [`Error::Torch`] if the result cannot be allocated, [`Error::Device`]
    /// if the launch fails.
    pub fn group_norm_silu(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        groups: i64,
        eps: f64,
        silu: bool,
    ) -> Result<Tensor> {
        let picture = self.picture(x, weight, bias, groups)?;
        let ([batch, channels, height, width], device) = (picture.size, self.device());
        let pixels = i64::from(picture.pixels);
        let out = Tensor::f_empty([batch, height, width, channels], (Kind::BFloat16, device))?;
        if batch * pixels == 0 {
            return Ok(out.f_permute([0, 3, 1, 2])?);
        }
        let slab = slab(pixels, channels);
        let slabs = (pixels + slab - 1) / slab;
        let sums = Tensor::f_empty([batch, slabs, groups, 2], (Kind::Float, device))?;

        let (mut x_data, mut sums_data, mut out_data) = (x.data_ptr(), sums.data_ptr(), out.data_ptr());
        let (mut channels, mut groups, mut pixels) = (channels as i32, groups as i32, picture.pixels);
        let (mut weight, mut bias) = (picture.weight.address, picture.bias.address);
        let (mut slab, mut slabs, mut eps, mut silu) = (slab as i32, slabs as i32, eps as f32, i32::from(silu));
        let grid = [slabs as u32, u32::from(picture.items)];
        self.launch(
            Kernel::GroupSums,
            grid,
            THREADS,
            &mut [
                argument(&mut x_data),
                argument(&mut sums_data),
                argument(&mut channels),
                argument(&mut groups),
                argument(&mut pixels),
                argument(&mut slab),
            ],
            &[whole(x, Access::Read), whole(&sums, Access::Write)],
        )?;
        self.launch(
            Kernel::GroupNorm,
            grid,
            THREADS,
            &mut [
                argument(&mut x_data),
                argument(&mut sums_data),
                argument(&mut weight),
                argument(&mut bias),
                argument(&mut out_data),
                argument(&mut channels),
                argument(&mut groups),
                argument(&mut pixels),
                argument(&mut slab),
                argument(&mut slabs),
                argument(&mut eps),
                argument(&mut silu),
            ],
            &[
                whole(x, Access::Read),
                whole(&sums, Access::Read),
                picture.weight,
                picture.bias,
                whole(&out, Access::Write),
            ],
        )?;
        Ok(out.f_permute([0, 3, 1, 2])?)
    }

    /// Checks a picture and the weights of its norm.
    fn picture(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, groups: i64) -> Result<Picture> {
        let device = self.device();
        check("x", x, device, Kind::BFloat16)?;
        let size @ [batch, channels, height, width] = kontext_core::check::dims("x", x, "[B, C, H, W]")?;
        if !Self::has_group_norm(channels, groups) {
            let expected = format!(
                "at most {MOST_GROUPS} groups of a multiple of 8 channels, at most {MOST_CHANNELS} in all groups"
            );
            return Err(Error::invalid(
                "groups",
                expected,
                format!("{groups} of {channels} channels"),
            ));
        }
        if !x.f_permute([0, 2, 3, 1])?.is_contiguous() {
            let got = format!("strides {:?}", x.stride());
            return Err(Error::invalid("x", "the channels-last layout", got));
        }
        let pixels = height * width;
        let (Ok(pixels), Ok(items)) = (i32::try_from(pixels), u16::try_from(batch)) else {
            let got = format!("{batch} of {pixels}");
            return Err(Error::invalid("x", "at most 65535 pictures of 2^31 - 1 pixels", got));
        };
        Ok(Picture {
            size,
            items,
            pixels,
            weight: dense("weight", "[C]", weight, &[channels], device)?.1,
            bias: dense("bias", "[C]", bias, &[channels], device)?.1,
        })
    }
}

/// Returns the pixels of a slab.
fn slab(pixels: i64, channels: i64) -> i64 {
    let by_values = (SLAB_VALUES / channels).max(1);
    let by_count = (pixels + MOST_SLABS - 1) / MOST_SLABS;
    by_values.max(by_count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_is_large_enough_to_be_worth_a_block_and_slabs_are_few() {
        assert_eq!(slab(64, 512), 128);
        assert_eq!(slab(128 * 128, 512), 128);
        for (pixels, channels) in [(1024 * 1024, 128), (4096 * 4096, 128), (1, 2048), (1 << 30, 8)] {
            let slab = slab(pixels, channels);
            assert!((pixels + slab - 1) / slab <= MOST_SLABS, "{pixels}");
        }
    }
}
