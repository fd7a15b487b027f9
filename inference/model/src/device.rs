//! The one place that picks the device that burn computes on.

use burn::tensor::Device;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The processor's cores, through burn's backend burn-flex.
    #[default]
    Cpu,
}

impl DeviceChoice {
    /// burn's handle of the device.
    pub(crate) fn open(self) -> Device {
        match self {
            Self::Cpu => Device::flex(),
        }
    }
}
