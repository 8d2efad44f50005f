//! Rates of the CPU in f32 and bf16, measured once a process.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kontext_core::{Device, Kind, Result, Tensor};

use crate::turns::{Share, Turns};
use crate::{cpu, openmp};

/// Rates of one kind of work, in operations per second (a multiplication and an addition are two).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// In f32.
    pub float: f64,
    /// In bf16; `None` if the CPU has no units for it, so that it was not measured.
    pub bfloat16: Option<f64>,
}

/// Rates of the CPU, with the number of threads that libtorch had when they were measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Matrix products, [256, 1024] by [1024, 1024].
    pub matmul: Rate,
    /// Convolutions 3x3 of 64 channels, channels-last, at 96x96.
    pub convolution: Rate,
}

impl Rate {
    /// Returns the rate in bf16 relative to that in f32; 0 if bf16 was not measured.
    ///
    /// # Example
    /// ```
    /// use kontext_device::rates::Rate;
    /// assert_eq!(Rate { float: 2e11, bfloat16: Some(9e11) }.gain(), 4.5);
    /// assert_eq!(Rate { float: 2e11, bfloat16: None }.gain(), 0.0);
    /// ```
    #[must_use]
    pub fn gain(self) -> f64 {
        self.bfloat16.map_or(0.0, |rate| rate / self.float)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let giga = |rate: f64| rate / 1e9;
        write!(f, "{:.0} GFLOP/s in f32", giga(self.float))?;
        match self.bfloat16 {
            Some(rate) => write!(f, ", {:.0} in bf16", giga(rate)),
            None => Ok(()),
        }
    }
}

/// Returns the CPU's rates, measured at the first call in some 20 to 50 milliseconds, in a turn of all cores: the
/// caller has none ([`crate::turns`]). bf16 is measured only
/// on a CPU with units for it, and given up after a first small product if that shows it to be slower than
/// f32.
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails, [`kontext_core::Error::Thread`] if the system refuses
/// its threads; the next call then measures again.
pub fn rates() -> Result<Rates> {
    static MEASURED: OnceLock<Rates> = OnceLock::new();
    if let Some(rates) = MEASURED.get() {
        return Ok(*rates);
    }
    openmp::check()?;
    // Next to the runs of this process the rates would be those of their rest.
    let share = Share::new(Turns::of_this_process());
    let _turn = share.turn(usize::MAX);
    if let Some(rates) = MEASURED.get() {
        return Ok(*rates);
    }
    let _no_gradients = tch::no_grad_guard();
    let with_bf16 = cpu::has_bf16_units();
    let rates = Rates {
        matmul: rate(&Matmul, with_bf16)?,
        convolution: rate(&Convolution, with_bf16)?,
    };
    Ok(*MEASURED.get_or_init(|| rates))
}

/// Work that is timed: on operands of a size from 1 to [`WHOLE`].
trait Work {
    /// Operations at size 1.
    const OPERATIONS: f64;

    /// Returns the input of a size, and the weight.
    fn operands(&self, size: i64, kind: Kind) -> Result<[Tensor; 2]>;

    fn run(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor>;
}

/// The size that is timed, of which 1 is the share that decides if bf16 is timed at all.
const WHOLE: i64 = 8;
/// Repetitions, of which the fastest counts: other programs disturb some.
const ROUNDS: usize = 3;

struct Matmul;

impl Work for Matmul {
    const OPERATIONS: f64 = 2.0 * 32.0 * 1024.0 * 1024.0;

    fn operands(&self, size: i64, kind: Kind) -> Result<[Tensor; 2]> {
        Ok([values(&[32 * size, 1024], kind)?, values(&[1024, 1024], kind)?])
    }

    fn run(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(input.f_linear(weight, None::<&Tensor>)?)
    }
}

struct Convolution;

impl Work for Convolution {
    const OPERATIONS: f64 = 2.0 * 9.0 * 64.0 * 64.0 * 12.0 * 96.0;

    fn operands(&self, size: i64, kind: Kind) -> Result<[Tensor; 2]> {
        // Channels-last memory.
        let last = |shape: &[i64]| -> Result<Tensor> { Ok(values(shape, kind)?.f_permute([0, 3, 1, 2])?) };
        Ok([last(&[1, 12 * size, 96, 64])?, last(&[64, 3, 3, 64])?])
    }

    fn run(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(input.f_conv2d(weight, None::<&Tensor>, [1, 1], [1, 1], [1, 1], 1)?)
    }
}

/// Returns values other than 0 and 1, the same for each call.
fn values(shape: &[i64], kind: Kind) -> Result<Tensor> {
    let elements = shape.iter().product::<i64>();
    let values = Tensor::f_arange(elements, (Kind::Float, Device::Cpu))?.f_sin_()?;
    Ok(values.f_reshape(shape)?.f_to_kind(kind)?)
}

fn rate<W: Work>(work: &W, with_bf16: bool) -> Result<Rate> {
    let operands = |size, kind| work.operands(size, kind);
    let float = operands(WHOLE, Kind::Float)?;
    // The first call starts threads and compiles kernels.
    timed(work, &float)?;
    let slowest = timed(work, &float)?;
    let narrow = if with_bf16 { narrow(work, slowest)? } else { None };
    let (mut in_float, mut in_narrow) = (slowest, None);
    for _ in 0..ROUNDS {
        in_float = in_float.min(timed(work, &float)?);
        if let Some(narrow) = &narrow {
            let time = timed(work, narrow)?;
            in_narrow = Some(in_narrow.map_or(time, |fastest: Duration| fastest.min(time)));
        }
    }
    let rate = |time: Duration| W::OPERATIONS * WHOLE as f64 / time.as_secs_f64().max(1e-9);
    Ok(Rate {
        float: rate(in_float),
        bfloat16: in_narrow.map(rate),
    })
}

/// Returns the operands in bf16, unless an eighth of the work takes as long as all of it did in f32.
fn narrow<W: Work>(work: &W, in_float: Duration) -> Result<Option<[Tensor; 2]>> {
    let share = work.operands(1, Kind::BFloat16)?;
    timed(work, &share)?;
    if timed(work, &share)? > in_float {
        return Ok(None);
    }
    let narrow = work.operands(WHOLE, Kind::BFloat16)?;
    timed(work, &narrow)?;
    Ok(Some(narrow))
}

fn timed<W: Work>(work: &W, [input, weight]: &[Tensor; 2]) -> Result<Duration> {
    let start = Instant::now();
    let _ = work.run(input, weight)?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_measured_once_and_bf16_only_where_the_cpu_has_units_for_it() {
        let first = rates().unwrap();
        for rate in [first.matmul, first.convolution] {
            // A calculator and a hundred fast cores.
            assert!((1e6..1e15).contains(&rate.float), "{rate}");
            if !cpu::has_bf16_units() {
                assert_eq!((rate.bfloat16, rate.gain()), (None, 0.0));
            }
        }
        assert_eq!(rates().unwrap(), first);
    }

    #[test]
    fn work_has_the_stated_number_of_operations() {
        fn check<W: Work>(work: &W) {
            let [input, weight] = work.operands(2, Kind::Float).unwrap();
            let outputs = work.run(&input, &weight).unwrap().numel();
            let terms = weight.numel() / weight.size()[0] as usize;
            assert_eq!(2.0 * W::OPERATIONS, (2 * outputs * terms) as f64);
        }
        check(&Matmul);
        check(&Convolution);
    }

    #[test]
    fn a_rate_is_shown_with_the_kinds_that_were_measured() {
        let rate = |bfloat16| Rate {
            float: 1.9e11,
            bfloat16,
        };
        assert_eq!(rate(Some(9.1e11)).to_string(), "190 GFLOP/s in f32, 910 in bf16");
        assert_eq!(rate(None).to_string(), "190 GFLOP/s in f32");
    }
}
