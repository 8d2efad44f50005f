//! Seeded normal noise, bit for bit equal to `torch.Generator("cpu").manual_seed(seed)` draws.
//!
//! tch exposes only libtorch's global generator, which all threads share. This is the same generator
//! (MT19937) with the same transforms, owned by the call, so concurrent draws on many threads equal those of
//! one thread.
//!
//! Source: pytorch/pytorch v2.11.0 `aten/src/ATen/native/cpu/DistributionTemplates.h` (`normal_kernel`,
//! `normal_fill`, `normal_fill_AVX2`), `avx_mathfun.h` (`log256_ps`, `sincos256_ps`) and
//! `ATen/core/DistributionsHelper.h`. f32 draws of 16 or more elements are those of x86-64 CPUs with AVX2, on
//! which PyTorch uses polynomials with fused multiply-add; PyTorch itself differs from them in the last bits
//! on other CPUs.

use half::{bf16, f16};
use rand_mt::Mt;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, buffer};

/// The memory of a draw, in messages.
const DRAW: &str = "the noise";

/// Draws standard normal noise of the given shape on the CPU in dtype `kind` and moves it to `device`.
///
/// Equal to `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=kind)`. Draws of
/// one seed in different dtypes are unrelated, and a bf16 draw takes only 2656 distinct values, none beyond
/// ±3.33: the reference programs differ in the dtype they draw.
///
/// # Errors
/// [`Error::InvalidArgument`] for a `kind` other than `Float`, `BFloat16` and `Half`, or a negative size,
/// [`Error::Allocation`] if the system refuses the memory.
///
/// # Example
/// ```
/// use kontext_core::{noise, Device, Kind};
/// let a = noise::randn(&[1, 16, 8, 8], 7, Kind::Float, Device::Cpu)?;
/// let b = noise::randn(&[1, 16, 8, 8], 7, Kind::Float, Device::Cpu)?;
/// assert!(a.equal(&b));
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn randn(shape: &[i64], seed: u64, kind: Kind, device: Device) -> Result<Tensor> {
    Generator::new(seed).randn(shape, kind, device)
}

/// A generator of standard normal noise, each draw of which continues after the one before.
///
/// Equal to `torch.Generator("cpu").manual_seed(seed)`, from which `torch.randn` draws in turn.
///
/// # Example
/// ```
/// use kontext_core::{noise, Device, Kind};
/// let mut generator = noise::Generator::new(7);
/// let first = generator.randn(&[1, 16, 8, 8], Kind::Float, Device::Cpu)?;
/// let second = generator.randn(&[1, 16, 8, 8], Kind::Float, Device::Cpu)?;
/// assert!(first.equal(&noise::randn(&[1, 16, 8, 8], 7, Kind::Float, Device::Cpu)?));
/// assert!(!second.equal(&first));
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Generator {
    mt: Mt,
    /// The second value of a pair of which a draw of fewer than 16 elements took only the first.
    spare: Option<f64>,
}

impl Generator {
    /// Creates a generator; of the seed the lower 32 bits count.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            mt: Mt::new((seed & 0xffff_ffff) as u32),
            spare: None,
        }
    }

    /// Draws the next tensor of the given shape on the CPU in dtype `kind` and moves it to `device`.
    ///
    /// # Errors
    /// Those of the function [`randn`].
    pub fn randn(&mut self, shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
        let numel = shape
            .iter()
            .try_fold(1_usize, |n, &s| n.checked_mul(usize::try_from(s).ok()?))
            .ok_or_else(|| Error::invalid("noise shape", "sizes that are not negative", format!("{shape:?}")))?;
        let tensor = match kind {
            Kind::Float => Tensor::f_from_slice(&self.draw_f32(numel)?)?,
            Kind::BFloat16 => half_tensor(&self.draw_half::<bf16>(numel)?, kind)?,
            Kind::Half => half_tensor(&self.draw_half::<f16>(numel)?, kind)?,
            other => {
                return Err(Error::invalid(
                    "noise kind",
                    "Float, BFloat16 or Half",
                    format!("{other:?}"),
                ));
            }
        };
        Ok(tensor.f_reshape(shape)?.f_to_device(device)?)
    }

    fn draw_f32(&mut self, numel: usize) -> Result<Vec<f32>> {
        if numel < VECTOR {
            return Ok(self.draw_scalar(numel).into_iter().map(|x| x as f32).collect());
        }
        let mt = &mut self.mt;
        let mut data = buffer::with_room(numel, DRAW)?;
        data.extend((0..numel).map(|_| uniform_f32(mt)));
        let whole = numel - numel % VECTOR;
        for chunk in data[..whole].chunks_exact_mut(VECTOR) {
            box_muller_f32(chunk);
        }
        if whole < numel {
            // The tail is redrawn and overlaps the last whole chunk, as in libtorch.
            let tail = &mut data[numel - VECTOR..];
            tail.fill_with(|| uniform_f32(mt));
            box_muller_f32(tail);
        }
        Ok(data)
    }

    /// Draws with the pairwise double-precision transform that libtorch uses for fewer than 16 elements.
    fn draw_scalar(&mut self, numel: usize) -> Vec<f64> {
        let mut values: Vec<f64> = self.spare.take_if(|_| numel > 0).into_iter().collect();
        let mt = &mut self.mt;
        let mut uniform = || {
            let (high, low) = (u64::from(mt.next_u32()), u64::from(mt.next_u32()));
            (((high << 32) | low) & ((1 << 53) - 1)) as f64 * (1.0 / (1_u64 << 53) as f64)
        };
        while values.len() < numel {
            let (u1, u2) = (uniform(), uniform());
            let radius = (-2.0 * (-u2).ln_1p()).sqrt();
            let theta = 2.0 * std::f64::consts::PI * u1;
            values.extend([radius * theta.cos(), radius * theta.sin()]);
        }
        if values.len() > numel {
            self.spare = values.pop();
        }
        values
    }

    fn draw_half<T: HalfFloat>(&mut self, numel: usize) -> Result<Vec<T>> {
        if numel < VECTOR {
            let values = self.draw_scalar(numel).into_iter();
            return Ok(values.map(|x| T::round(x as f32)).collect());
        }
        let mt = &mut self.mt;
        let mut uniform = || T::round((mt.next_u32() & ((1 << T::DIGITS) - 1)) as f32 / (1_u32 << T::DIGITS) as f32);
        let mut data: Vec<T> = buffer::with_room(numel, DRAW)?;
        data.extend((0..numel).map(|_| uniform()));
        let whole = numel - numel % VECTOR;
        for chunk in data[..whole].chunks_exact_mut(VECTOR) {
            box_muller_half(chunk);
        }
        if whole < numel {
            let tail = &mut data[numel - VECTOR..];
            tail.fill_with(uniform);
            box_muller_half(tail);
        }
        Ok(data)
    }
}

/// Number of elements below which libtorch draws one by one in double precision.
const VECTOR: usize = 16;

/// Draws 24 random bits as a float in [0, 1).
fn uniform_f32(mt: &mut Mt) -> f32 {
    (mt.next_u32() & ((1 << 24) - 1)) as f32 * (1.0 / (1 << 24) as f32)
}

/// Transforms 16 uniform values to 16 normal ones, in pairs (j, j + 8).
fn box_muller_f32(chunk: &mut [f32]) {
    let (first, second) = chunk.split_at_mut(VECTOR / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos((2.0 * std::f64::consts::PI) as f32 * *b);
        // Adding the mean turns a negative zero positive.
        (*a, *b) = (radius * cos + 0.0, radius * sin + 0.0);
    }
}

/// Computes the Cephes logarithm for x in (0, 1], as libtorch's AVX2 code does.
fn ln(x: f32) -> f32 {
    #[allow(clippy::excessive_precision)] // As Cephes prints them.
    const P: [f32; 9] = [
        7.0376836292E-2,
        -1.1514610310E-1,
        1.1676998740E-1,
        -1.2420140846E-1,
        1.4249322787E-1,
        -1.6668057665E-1,
        2.0000714765E-1,
        -2.4999993993E-1,
        3.3333331174E-1,
    ];
    const Q1: f32 = -2.121_944_4e-4;
    const Q2: f32 = 0.693_359_4;
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut e = ((bits >> 23) as i32 - 0x7f) as f32 + 1.0;
    let mut x = f32::from_bits((bits & !0x7f80_0000) | 0.5_f32.to_bits());
    if x < std::f32::consts::FRAC_1_SQRT_2 {
        e -= 1.0;
        x = (x - 1.0) + x;
    } else {
        x -= 1.0;
    }
    let z = x * x;
    let poly = P[1..].iter().fold(P[0], |y, &p| y.mul_add(x, p));
    // Of two products that meet in an addition, the compiler fused the first one.
    let y = (poly * x).mul_add(z, e * Q1);
    let y = (-z).mul_add(0.5, y);
    e.mul_add(Q2, x + y)
}

/// Computes the Cephes sine and cosine for x ≥ 0, as libtorch's AVX2 code does.
fn sin_cos(x: f32) -> (f32, f32) {
    const FOUR_OVER_PI: f32 = 1.273_239_5;
    const DP: [f32; 3] = [-0.785_156_25, -2.418_756_5e-4, -3.774_895e-8];
    let octant = ((x * FOUR_OVER_PI) as i32 + 1) & !1;
    let x = DP.iter().fold(x, |x, &d| (octant as f32).mul_add(d, x));
    let z = x * x;
    let c = 2.443_315_7e-5_f32
        .mul_add(z, -1.388_731_6e-3)
        .mul_add(z, 4.166_664_6e-2)
        * z;
    let c = c.mul_add(z, -(z * 0.5)) + 1.0;
    let s = (-1.951_529_6e-4_f32)
        .mul_add(z, 8.332_161e-3)
        .mul_add(z, -1.666_665_5e-1)
        * z;
    let s = s.mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (s, c) } else { (c, s) };
    let flip = |value: f32, negative: bool| if negative { -value } else { value };
    (flip(sin, octant & 4 != 0), flip(cos, (octant - 2) & 4 == 0))
}

/// A 16-bit float: uniform draws carry only as many bits as its mantissa, and libtorch rounds at each step.
trait HalfFloat: Copy {
    const DIGITS: u32;
    fn round(x: f32) -> Self;
    fn wide(self) -> f32;
    fn bits(self) -> u16;
}

impl HalfFloat for bf16 {
    const DIGITS: u32 = 8;
    fn round(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

impl HalfFloat for f16 {
    const DIGITS: u32 = 11;
    fn round(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

/// Builds a tensor with an explicit dtype, because tch 0.24 takes a slice of bf16 for one of f16.
fn half_tensor<T: HalfFloat>(values: &[T], kind: Kind) -> Result<Tensor> {
    let mut bytes: Vec<u8> = buffer::with_room(std::mem::size_of_val(values), DRAW)?;
    bytes.extend(values.iter().flat_map(|v| v.bits().to_ne_bytes()));
    Ok(Tensor::f_from_data_size(&bytes, &[values.len() as i64], kind)?)
}

/// Transforms like [`box_muller_f32`], rounding to a 16-bit scalar type between the operations.
fn box_muller_half<T: HalfFloat>(chunk: &mut [T]) {
    let (first, second) = chunk.split_at_mut(VECTOR / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let round = |x: f32| T::round(x).wide();
        let u1 = round(1.0 - a.wide());
        let radius = round(round(-2.0 * round(u1.ln())).sqrt());
        let theta = round((2.0 * std::f64::consts::PI * f64::from(b.wide())) as f32);
        let (cos, sin) = (round(theta.cos()), round(theta.sin()));
        (*a, *b) = (T::round(radius * cos + 0.0), T::round(radius * sin + 0.0));
    }
}
