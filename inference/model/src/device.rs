//! The one place that picks the device that burn computes on.

use burn::tensor::Device;

use crate::ModelError;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The processor's cores, through burn's backend burn-flex.
    #[default]
    Cpu,
}

impl DeviceChoice {
    /// burn's handle of the device.
    ///
    /// # Errors
    ///
    /// [`ModelError::Device`] if the machine has no such device.
    pub(crate) fn open(self) -> Result<Device, ModelError> {
        match self {
            Self::Cpu => Ok(Device::flex()),
        }
    }
}
