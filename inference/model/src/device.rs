//! The one place that picks the device that burn computes on.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
};

use burn::tensor::{Device, FloatDType};

use crate::{ModelError, Precision};

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device, where this build has the feature `cuda` and the machine such a device; else the processor.
    #[default]
    Auto,
    /// The processor's cores, by our own kernels.
    Cpu,
    /// The CUDA device of this number. Needs the feature `cuda`.
    Cuda(usize),
    /// The default device of wgpu: Vulkan on Linux. Needs the feature `wgpu`.
    Wgpu,
    /// The processor by the operations that other devices use. Slow: for testing these.
    CpuTensors,
}

/// Text that names no device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a device. Choose auto, cpu, cuda, cuda:NUMBER or wgpu")]
pub struct UnknownDevice;

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "wgpu" => Ok(Self::Wgpu),
            _ => match text.strip_prefix("cuda:").map(u16::from_str) {
                Some(Ok(number)) => Ok(Self::Cuda(number.into())),
                _ => Err(UnknownDevice),
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Wgpu => f.write_str("wgpu"),
            Self::CpuTensors => f.write_str("cpu-tensors"),
        }
    }
}

/// What a [`DeviceChoice`] comes to on this machine.
#[derive(Debug, Clone)]
pub(crate) enum Compute {
    /// Our own kernels, on the processor.
    Kernels,
    /// burn's operations on `device`, products in `dtype`.
    Tensors { kind: &'static str, device: Device, dtype: FloatDType },
}

impl DeviceChoice {
    /// Whether a model can be computed on this device in these numbers, as far as can be said without opening it.
    ///
    /// # Errors
    ///
    /// [`ModelError::Device`], which names the remedy.
    pub fn check(self, precision: Precision) -> Result<(), ModelError> {
        match (self.find(precision)?, precision) {
            (None, Precision::F16 | Precision::Bf16) => Err(self.refused(format!(
                "the processor does not compute in {precision}; choose precision auto, f32, int8 or int4"
            ))),
            (Some(_), Precision::Int8 | Precision::Int4) => Err(self.refused(format!(
                "weights in {precision} are for the processor; choose precision auto, f16, bf16 or f32"
            ))),
            _ => Ok(()),
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    ///
    /// As [`Self::check`], and if the device cannot be opened or does not compute in these numbers.
    pub(crate) fn open(self, precision: Precision) -> Result<Compute, ModelError> {
        self.check(precision)?;
        let Some((kind, device)) = self.find(precision)? else { return Ok(Compute::Kernels) };
        // Drivers are loaded here, and burn panics where they fail.
        let supports = |dtype| self.guarded(|| device.supports_dtype(dtype));
        let dtype = match precision {
            Precision::F32 => FloatDType::F32,
            Precision::Bf16 => FloatDType::BF16,
            Precision::Auto if self == Self::CpuTensors || !supports(FloatDType::F16)? => FloatDType::F32,
            Precision::Auto | Precision::F16 | Precision::Int8 | Precision::Int4 => FloatDType::F16,
        };
        match supports(dtype)? {
            true => Ok(Compute::Tensors { kind, device, dtype }),
            false => Err(self.refused(format!("it does not compute in {precision}; choose precision auto or f32"))),
        }
    }

    /// Runs what may load a driver; a panic becomes an error.
    ///
    /// # Errors
    ///
    /// [`ModelError::Device`] if `act` panics.
    pub(crate) fn guarded<T>(self, act: impl FnOnce() -> T) -> Result<T, ModelError> {
        catch_unwind(AssertUnwindSafe(act)).map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let why = text.unwrap_or_else(|| "the driver failed".to_owned());
            self.refused(format!("{why}; check its driver and its memory, or choose device = \"cpu\""))
        })
    }

    /// The kind of device and burn's handle of it; nothing for our kernels.
    fn find(self, precision: Precision) -> Result<Option<(&'static str, Device)>, ModelError> {
        match self {
            Self::Auto if matches!(precision, Precision::Int8 | Precision::Int4) => Ok(None),
            Self::Auto => Ok(self.cuda(0).ok()),
            Self::Cpu => Ok(None),
            Self::CpuTensors => Ok(Some(("flex", Device::flex()))),
            Self::Cuda(number) => self.cuda(number).map(Some),
            Self::Wgpu => self.wgpu().map(Some),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(self, number: usize) -> Result<(&'static str, Device), ModelError> {
        let found = self.guarded(|| Device::enumerate(burn::tensor::DeviceType::Cuda).len())?;
        match found {
            0 => Err(self.refused(
                "no CUDA device was found; check that the NVIDIA driver is installed and `nvidia-smi` shows a device, or \
                 choose device = \"cpu\""
                    .to_owned(),
            )),
            _ if number < found => Ok(("cuda", Device::cuda(number))),
            _ => Err(self.refused(format!("the last CUDA device is cuda:{}; choose one that is there", found - 1))),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(self, _number: usize) -> Result<(&'static str, Device), ModelError> {
        Err(self.refused(
            "this build is without CUDA; build it with `--features cuda`, or choose device = \"cpu\"".to_owned(),
        ))
    }

    #[cfg(feature = "wgpu")]
    fn wgpu(self) -> Result<(&'static str, Device), ModelError> {
        let found = self.guarded(|| Device::enumerate(burn::tensor::DeviceType::Wgpu).len())?;
        match found {
            0 => Err(self.refused(
                "no device was found; install a Vulkan driver (Debian: mesa-vulkan-drivers), or choose device = \"cpu\""
                    .to_owned(),
            )),
            _ => Ok(("wgpu", Device::wgpu(burn::tensor::DeviceKind::DefaultDevice))),
        }
    }

    #[cfg(not(feature = "wgpu"))]
    fn wgpu(self) -> Result<(&'static str, Device), ModelError> {
        Err(self.refused(
            "this build is without wgpu; build it with `--features wgpu`, or choose device = \"cpu\"".to_owned(),
        ))
    }

    fn refused(self, problem: String) -> ModelError {
        ModelError::Device { device: self, problem }
    }
}
