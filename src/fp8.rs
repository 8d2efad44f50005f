//! Products of fp8 weights: in fp8, or unpacked.

use std::fmt;
use std::str::FromStr;

use kontext_core::{Device, Error, Kind, Result};
use kontext_sampler::Conformance;

/// The way in which fp8 weights of the transformer's blocks are multiplied.
///
/// In fp8 the activations, too, are rounded to 8 bits, each row by its largest magnitude, and tensor cores multiply twice
/// as fast as in bf16. Otherwise the weights are unpacked for each multiplication, and only their own rounding counts
/// (docs/quantisation.md compares the two). The first and the last layers and the modulation are always multiplied
/// unpacked, as are layers with a size that is no multiple of 16.
///
/// # Example
/// ```
/// use kontext::Fp8Products;
/// assert_eq!("always".parse::<Fp8Products>()?, Fp8Products::Always);
/// assert_eq!(Fp8Products::default().to_string(), "auto");
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fp8Products {
    /// In fp8 on a CUDA device of compute capability 8.9 or newer (Ada, Hopper, Blackwell) that computes in bf16, in runs
    /// in this library's own conventions.
    #[default]
    Automatic,
    /// In fp8 in every run. A CPU computes with the same roundings and sums in f32, slowly: to study their effect.
    Always,
    /// Unpacked.
    Never,
}

impl Fp8Products {
    /// All choices.
    pub const ALL: [Self; 3] = [Self::Automatic, Self::Always, Self::Never];
}

impl fmt::Display for Fp8Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Automatic => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

impl FromStr for Fp8Products {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|choice| choice.to_string() == text);
        found.ok_or_else(|| Error::invalid("fp8_products", "auto, always or never", text))
    }
}

/// The runs of a pipeline in which fp8 weights are multiplied in fp8: those in this library's conventions, and those in
/// another program's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fp8Choice {
    native: bool,
    conforming: bool,
}

impl Fp8Choice {
    /// Returns `true` for a run that multiplies in fp8.
    pub(crate) fn of(self, conformance: Conformance) -> bool {
        match conformance {
            Conformance::Native => self.native,
            Conformance::Diffusers | Conformance::Bfl => self.conforming,
        }
    }

    /// Returns `true` if some runs multiply in fp8.
    pub(crate) fn any(self) -> bool {
        self.native || self.conforming
    }
}

/// Returns the choice for a device and its dtype, whatever the weights are: `here` if this machine has the device,
/// `in_hardware` if the device multiplies in fp8.
pub(crate) fn choose(
    wanted: Fp8Products,
    device: Device,
    dtype: Kind,
    here: bool,
    in_hardware: bool,
) -> Result<Fp8Choice> {
    let refused = |expected: &str| Err(Error::invalid("fp8_products", expected, wanted));
    match (wanted, device) {
        (Fp8Products::Never, _) => Ok(Fp8Choice::default()),
        (Fp8Products::Automatic, _) => Ok(Fp8Choice {
            native: in_hardware && dtype == Kind::BFloat16,
            conforming: false,
        }),
        (Fp8Products::Always, Device::Cuda(_)) if here && !in_hardware => {
            refused("auto or never on this card: fp8 needs compute capability 8.9 or newer")
        }
        (Fp8Products::Always, Device::Cuda(_)) if dtype != Kind::BFloat16 => {
            refused("auto or never in this dtype: products in fp8 are returned in bf16")
        }
        (Fp8Products::Always, Device::Cpu | Device::Cuda(_)) => Ok(Fp8Choice {
            native: true,
            conforming: true,
        }),
        (Fp8Products::Always, _) => refused("auto or never on this device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Device = Device::Cuda(0);

    #[test]
    fn a_card_with_fp8_takes_it_in_runs_of_this_library_in_bf16() {
        let automatic =
            |device, dtype, in_hardware| choose(Fp8Products::Automatic, device, dtype, true, in_hardware).unwrap();
        let chosen = automatic(GPU, Kind::BFloat16, true);
        assert!(chosen.of(Conformance::Native) && chosen.any());
        assert!(!chosen.of(Conformance::Diffusers) && !chosen.of(Conformance::Bfl));
        for (device, dtype, in_hardware) in [
            (GPU, Kind::BFloat16, false),
            (GPU, Kind::Float, true),
            (GPU, Kind::Half, true),
            (Device::Cpu, Kind::BFloat16, false),
        ] {
            assert!(!automatic(device, dtype, in_hardware).any(), "{device:?} {dtype:?}");
        }
    }

    #[test]
    fn always_is_refused_where_it_cannot_be() {
        let always = |device, dtype, in_hardware| choose(Fp8Products::Always, device, dtype, true, in_hardware);
        for of in [Conformance::Native, Conformance::Diffusers, Conformance::Bfl] {
            assert!(always(Device::Cpu, Kind::Float, false).unwrap().of(of));
            assert!(always(GPU, Kind::BFloat16, true).unwrap().of(of));
        }
        assert!(choose(Fp8Products::Always, GPU, Kind::BFloat16, false, false).is_ok());
        let error = |device, dtype, in_hardware| always(device, dtype, in_hardware).unwrap_err().to_string();
        assert_eq!(
            error(GPU, Kind::BFloat16, false),
            "invalid fp8_products: expected auto or never on this card: fp8 needs compute capability 8.9 or newer, \
             got always"
        );
        assert!(error(GPU, Kind::Half, true).contains("returned in bf16"));
        assert!(error(Device::Mps, Kind::Float, false).contains("on this device"));
    }

    #[test]
    fn never_unpacks_everywhere() {
        for device in [Device::Cpu, GPU] {
            assert!(
                !choose(Fp8Products::Never, device, Kind::BFloat16, true, true)
                    .unwrap()
                    .any()
            );
        }
    }
}
