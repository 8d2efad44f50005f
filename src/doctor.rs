//! A diagnosis of the machine: if its libtorch, its CPU and its GPUs fit this library, and otherwise the remedy.

use std::fmt;
use std::path::PathBuf;

use kontext_core::{Device, Result};
use kontext_device::rates;
use kontext_device::{cpu, cuda, libtorch, memory};

#[doc(no_inline)]
pub use kontext_device::cuda::{CudaVersion, Driver, DriverDevice};
#[doc(no_inline)]
pub use kontext_device::libtorch::Version;
#[doc(no_inline)]
pub use kontext_device::rates::{Rate, Rates};

/// The lowest compute capability of CUDA 13. Source: NVIDIA, CUDA 13.0 release notes, "deprecated architectures".
const CUDA_13_CAPABILITY: (i32, i32) = (7, 5);

/// Examines the libtorch of this program, the CPU, and CUDA's devices.
///
/// Loads no model, and measures the CPU's speed in some milliseconds. Where a CUDA device is present, it opens libtorch's CUDA half and uses each device.
///
/// # Example
/// ```
/// let diagnosis = kontext::doctor();
/// println!("{diagnosis}");
/// assert_eq!(diagnosis.fits(), diagnosis.problems().is_empty());
/// # if cfg!(target_os = "linux") {
/// assert_eq!(diagnosis.version.map(|version| version.to_string()).as_deref(), Some("2.11.0"));
/// # }
/// ```
#[must_use]
pub fn doctor() -> Diagnosis {
    let version = libtorch::version();
    // tch is not called where it may not fit its library.
    let is_expected = version.is_none_or(|version| version == libtorch::EXPECTED);
    let threads = is_expected.then(|| usize::try_from(tch::get_num_threads()).unwrap_or_default());
    Diagnosis {
        file: libtorch::loaded(libtorch::CPU_LIBRARY),
        version,
        features: cpu::features(),
        rates: is_expected.then(|| rates::rates().ok()).flatten(),
        cpus: std::thread::available_parallelism().ok().map(Into::into),
        threads,
        free_memory: memory::free(Device::Cpu).ok(),
        cuda: match Driver::find() {
            Ok(None) => Cuda::Absent,
            Ok(Some(driver)) => {
                let is_asked = is_expected && !driver.devices.is_empty();
                Cuda::Present {
                    half: is_asked.then(|| CudaHalf::find().map_err(|error| error.to_string())),
                    driver,
                }
            }
            Err(error) => Cuda::Unusable(error.to_string()),
        },
    }
}

/// The state of a machine, by [`doctor()`]. Shown as text, it ends in its problems.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The file of libtorch that this program has loaded; `None` if the system does not say (only Linux does).
    pub file: Option<PathBuf>,
    /// The version that libtorch states, as [`libtorch::version`] returns it.
    pub version: Option<Version>,
    /// Features of the CPU that its speed depends on.
    pub features: Vec<&'static str>,
    /// Speed of the CPU in f32, and in bf16 if it has units for it; `None` if libtorch does not fit or cannot compute.
    pub rates: Option<Rates>,
    /// CPUs that this program may use.
    pub cpus: Option<usize>,
    /// Threads that libtorch computes with; `None` if its version does not fit.
    pub threads: Option<usize>,
    /// Free memory of the host in bytes.
    pub free_memory: Option<u64>,
    /// CUDA's driver and devices.
    pub cuda: Cuda,
}

/// The state of CUDA on a machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Cuda {
    /// No NVIDIA driver: the CPU computes.
    Absent,
    /// A driver that cannot be used, for this reason.
    Unusable(String),
    /// A driver.
    #[non_exhaustive]
    Present {
        /// The driver and its devices.
        driver: Driver,
        /// libtorch's CUDA half, or the reason that it cannot be used. `None` if it was not opened: there is no
        /// device, or libtorch's version does not fit.
        half: Option<Result<CudaHalf, String>>,
    },
}

/// libtorch's CUDA half.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CudaHalf {
    /// The version of CUDA that it was built for.
    pub built_for: CudaVersion,
    /// Free memory in bytes of each device that it finds.
    pub free_memory: Vec<u64>,
    /// `true` if it finds cuDNN.
    pub has_cudnn: bool,
}

impl CudaHalf {
    fn find() -> Result<Self> {
        let built_for = cuda::runtime_version()?;
        let count = usize::try_from(tch::Cuda::device_count()).unwrap_or_default();
        let free_memory = (0..count).map(|index| memory::free(Device::Cuda(index)));
        Ok(Self {
            built_for,
            free_memory: free_memory.collect::<Result<_>>()?,
            has_cudnn: tch::Cuda::cudnn_is_available(),
        })
    }
}

impl Diagnosis {
    /// Returns `true` if there are no problems.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.problems().is_empty()
    }

    /// Returns what does not fit, each problem as a sentence with its remedy.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(self.version_problem());
        if let (Some(threads), Some(cpus)) = (self.threads, self.cpus)
            && threads > cpus
        {
            problems.push(format!(
                "libtorch computes with {threads} threads on {cpus} CPUs, which makes it slower; set OMP_NUM_THREADS={cpus}"
            ));
        }
        match &self.cuda {
            Cuda::Absent => (),
            Cuda::Unusable(reason) => problems.push(reason.clone()),
            Cuda::Present { driver, half } => problems.extend(cuda_problems(driver, half.as_ref())),
        }
        problems
    }

    fn version_problem(&self) -> Option<String> {
        let loaded = match (self.version, &self.file) {
            (Some(version), _) if version == libtorch::EXPECTED => return None,
            (Some(version), None) => format!("libtorch {version} is loaded"),
            (Some(version), Some(file)) => format!("libtorch {version} is loaded from {}", file.display()),
            (None, Some(file)) => format!("libtorch is loaded from {} and states no version", file.display()),
            (None, None) => return None,
        };
        let expected = libtorch::EXPECTED;
        Some(format!(
            "{loaded}, and tch expects {expected}; build with LIBTORCH at a libtorch {expected}, and run with its `lib` in \
             LD_LIBRARY_PATH or the program's rpath"
        ))
    }
}

fn cuda_problems(driver: &Driver, half: Option<&Result<CudaHalf, String>>) -> Vec<String> {
    if driver.devices.is_empty() {
        return vec![
            "NVIDIA's driver shows this program no device; start the container with its GPUs (`docker run --gpus all …`), \
             or correct CUDA_VISIBLE_DEVICES"
                .to_owned(),
        ];
    }
    let half = match half {
        None => return Vec::new(),
        Some(Err(reason)) => return vec![reason.clone()],
        Some(Ok(half)) => half,
    };
    let (runs, built_for) = (driver.cuda, half.built_for);
    if runs.major < built_for.major {
        return vec![format!(
            "NVIDIA's driver runs CUDA {runs}, and libtorch is built for CUDA {built_for}; update the driver (CUDA 13 \
             needs 580 or newer), or take the build of libtorch {} for CUDA {}",
            libtorch::EXPECTED,
            runs.major
        )];
    }
    let mut problems = Vec::new();
    let (found, present) = (half.free_memory.len(), driver.devices.len());
    if found != present {
        problems.push(format!(
            "libtorch finds {found} of the driver's {present} CUDA devices; see if `nvidia-smi` works, and restart the \
             machine after an update of the driver"
        ));
    }
    for (index, device) in driver.devices.iter().enumerate() {
        if built_for.major >= 13 && device.capability < CUDA_13_CAPABILITY {
            let ((major, minor), (needed, and)) = (device.capability, CUDA_13_CAPABILITY);
            problems.push(format!(
                "cuda:{index} ({}) has compute capability {major}.{minor}, and CUDA {built_for} needs {needed}.{and} or \
                 newer; take the build of libtorch {} for CUDA 12, or use another device",
                device.name,
                libtorch::EXPECTED
            ));
        }
    }
    if !half.has_cudnn {
        problems.push(
            "libtorch finds no cuDNN, which convolutions on a GPU need; install nvidia-cudnn-cu13, as torch's packages \
             require it"
                .to_owned(),
        );
    }
    problems
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self
            .version
            .map_or_else(|| "of unknown version".to_owned(), |version| version.to_string());
        write!(f, "libtorch: {version}")?;
        if let Some(file) = &self.file {
            write!(f, " from {}", file.display())?;
        }
        write!(f, "\nCPU: {}", list(&self.features))?;
        if let Some(threads) = self.threads {
            write!(f, "; threads of libtorch: {threads}")?;
        }
        if let Some(cpus) = self.cpus {
            write!(f, "; CPUs: {cpus}")?;
        }
        if let Some(free) = self.free_memory {
            write!(f, "; {} MB free", megabytes(free))?;
        }
        if let Some(Rates { matmul, convolution }) = &self.rates {
            write!(f, "\nmatrix products: {matmul}; convolutions: {convolution}")?;
        }
        writeln!(f, "\nCUDA: {}", self.cuda)?;
        let problems = self.problems();
        if problems.is_empty() {
            return write!(f, "everything fits");
        }
        write!(f, "does not fit:")?;
        problems.iter().try_for_each(|problem| write!(f, "\n- {problem}"))
    }
}

impl fmt::Display for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (driver, half) = match self {
            Self::Absent => return write!(f, "no NVIDIA driver; the CPU computes"),
            Self::Unusable(_) => return write!(f, "a driver that cannot be used"),
            Self::Present { driver, half } => (driver, half.as_ref().and_then(|half| half.as_ref().ok())),
        };
        write!(f, "the driver runs CUDA {}", driver.cuda)?;
        if let Some(half) = half {
            let cudnn = if half.has_cudnn { "with cuDNN" } else { "without cuDNN" };
            write!(f, "; libtorch is built for CUDA {}, {cudnn}", half.built_for)?;
        }
        for (index, device) in driver.devices.iter().enumerate() {
            let (major, minor) = device.capability;
            let total = megabytes(device.memory);
            write!(
                f,
                "\n  cuda:{index}: {}, compute capability {major}.{minor}, {total} MB",
                device.name
            )?;
            if let Some(free) = half.and_then(|half| half.free_memory.get(index)) {
                write!(f, ", {} MB free", megabytes(*free))?;
            }
        }
        Ok(())
    }
}

fn list(features: &[&str]) -> String {
    if features.is_empty() {
        "no wide registers known".to_owned()
    } else {
        features.join(", ")
    }
}

/// Units of 10^6 bytes, as in [`Error::Memory`](crate::Error::Memory).
fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with one GPU on which everything fits.
    fn sound() -> Diagnosis {
        let device = DriverDevice {
            name: "NVIDIA L4".to_owned(),
            capability: (8, 9),
            memory: 24_000_000_000,
        };
        Diagnosis {
            file: Some("/opt/torch/lib/libtorch_cpu.so".into()),
            version: Some(libtorch::EXPECTED),
            features: vec!["AVX2", "FMA"],
            rates: Some(Rates {
                matmul: Rate {
                    float: 2e11,
                    bfloat16: Some(9e11),
                },
                convolution: Rate {
                    float: 4.5e11,
                    bfloat16: None,
                },
            }),
            cpus: Some(8),
            threads: Some(8),
            free_memory: Some(16_500_000_000),
            cuda: Cuda::Present {
                driver: Driver {
                    cuda: CudaVersion { major: 13, minor: 1 },
                    devices: vec![device],
                },
                half: Some(Ok(CudaHalf {
                    built_for: CudaVersion { major: 13, minor: 0 },
                    free_memory: vec![23_000_000_000],
                    has_cudnn: true,
                })),
            },
        }
    }

    /// The problems of a machine with one difference from [`sound`] in its driver and libtorch's half.
    fn with_cuda(change: impl Fn(&mut Driver, &mut CudaHalf)) -> Vec<String> {
        let mut diagnosis = sound();
        if let Cuda::Present {
            driver,
            half: Some(Ok(half)),
        } = &mut diagnosis.cuda
        {
            change(driver, half);
        }
        diagnosis.problems()
    }

    #[test]
    fn a_sound_machine_is_shown_in_a_line_for_each_part() {
        assert_eq!(
            sound().to_string(),
            "libtorch: 2.11.0 from /opt/torch/lib/libtorch_cpu.so\n\
             CPU: AVX2, FMA; threads of libtorch: 8; CPUs: 8; 16500 MB free\n\
             matrix products: 200 GFLOP/s in f32, 900 in bf16; convolutions: 450 GFLOP/s in f32\n\
             CUDA: the driver runs CUDA 13.1; libtorch is built for CUDA 13.0, with cuDNN\n  \
             cuda:0: NVIDIA L4, compute capability 8.9, 24000 MB, 23000 MB free\n\
             everything fits"
        );
    }

    #[test]
    fn a_libtorch_of_another_version_is_one_sentence_with_the_remedy() {
        let other = Version {
            major: 2,
            minor: 9,
            patch: 1,
        };
        let diagnosis = Diagnosis {
            version: Some(other),
            threads: None,
            cuda: Cuda::Absent,
            ..sound()
        };
        assert_eq!(
            diagnosis.problems(),
            [
                "libtorch 2.9.1 is loaded from /opt/torch/lib/libtorch_cpu.so, and tch expects 2.11.0; build with \
              LIBTORCH at a libtorch 2.11.0, and run with its `lib` in LD_LIBRARY_PATH or the program's rpath"
            ]
        );
        assert!(!diagnosis.fits());
        assert!(
            diagnosis.to_string().contains("\ndoes not fit:\n- libtorch 2.9.1 is"),
            "{diagnosis}"
        );
        let silent = Diagnosis {
            version: None,
            ..sound()
        };
        assert!(silent.problems()[0].contains("states no version, and tch expects 2.11.0"));
        let unknown = Diagnosis { file: None, ..silent };
        assert!(unknown.fits(), "a system that does not say is no problem");
    }

    #[test]
    fn each_fault_of_cuda_is_one_problem_with_its_remedy() {
        let one = |problems: Vec<String>, words: &[&str]| {
            assert_eq!(problems.len(), 1, "{problems:?}");
            for word in words {
                assert!(problems[0].contains(word), "{word}: {}", problems[0]);
            }
        };
        one(
            with_cuda(|driver, half| {
                driver.cuda = CudaVersion { major: 12, minor: 8 };
                half.free_memory.clear();
                half.has_cudnn = false;
            }),
            &[
                "runs CUDA 12.8",
                "built for CUDA 13.0",
                "update the driver",
                "for CUDA 12",
            ],
        );
        one(
            with_cuda(|driver, _| driver.devices[0].capability = (7, 0)),
            &["cuda:0 (NVIDIA L4)", "7.0", "7.5 or newer"],
        );
        one(
            with_cuda(|_, half| half.free_memory.clear()),
            &["finds 0 of the driver's 1 CUDA devices", "nvidia-smi"],
        );
        one(
            with_cuda(|_, half| half.has_cudnn = false),
            &["no cuDNN", "nvidia-cudnn-cu13"],
        );
        one(
            with_cuda(|driver, _| driver.devices.clear()),
            &["no device", "--gpus all", "CUDA_VISIBLE_DEVICES"],
        );
        let unusable = Diagnosis {
            cuda: Cuda::Unusable("the reason".to_owned()),
            ..sound()
        };
        one(unusable.problems(), &["the reason"]);
        assert_eq!(
            with_cuda(|driver, half| {
                driver.devices[0].capability = (7, 0);
                half.built_for = CudaVersion { major: 12, minor: 6 };
            }),
            Vec::<String>::new(),
            "CUDA 12 runs on older devices"
        );
    }

    #[test]
    fn more_threads_than_cpus_are_a_problem() {
        let crowded = Diagnosis {
            cpus: Some(4),
            ..sound()
        };
        assert!(crowded.problems()[0].ends_with("set OMP_NUM_THREADS=4"), "{crowded}");
    }
}
