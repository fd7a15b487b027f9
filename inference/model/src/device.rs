//! The one place that picks the device that burn computes on.

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The processor's cores, through burn's backend burn-flex.
    #[default]
    Cpu,
}
