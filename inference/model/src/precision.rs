//! In which numbers a model computes.

use std::{fmt, str::FromStr};

use parlance_inference_kernels::{PANEL, int4::Int4Matrix, int8::Int8Matrix};

use crate::{ModelError, gguf::GgmlType, tensors::Tensors};

/// How the weights of a model are kept, and so in which numbers its linear maps are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// On the processor [`Int4`](Self::Int4) for a file that has weights of 4 bits, [`Int8`](Self::Int8) for one whose weights have 8
    /// bits or fewer, [`F32`](Self::F32) for others. On another device [`F16`](Self::F16) where it has that, else [`F32`](Self::F32).
    #[default]
    Auto,
    /// Floats of 32 bits: what the file says, exactly.
    F32,
    /// Floats of 16 bits, for weights, cache and products; not on the processor.
    F16,
    /// The same with the range of [`F32`](Self::F32) and less precision, for models that [`F16`](Self::F16) cannot hold.
    Bf16,
    /// 8 bits in blocks of 32 with a scale each, over activations brought to 8 bits likewise: a quarter of the memory, several
    /// times the speed. On the processor alone.
    Int8,
    /// The file's own weights of 4 bits as they are (`Q4_0`, `Q4_1`, `Q4_K`), its others as [`Int8`](Self::Int8): for a few sequences
    /// at once nearly twice as fast. On the processor alone, and for files that have such weights alone.
    Int4,
}

/// What [`Precision`] comes to for one file on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    F32,
    Int8,
    Int4,
}

/// Text that names no precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a precision. Choose auto, f32, f16, bf16, int8 or int4")]
pub struct UnknownPrecision;

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(text: &str) -> Result<Self, UnknownPrecision> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err(UnknownPrecision),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl Precision {
    /// What the kernels compute in. [`DeviceChoice::check`](crate::DeviceChoice::check) has refused what they do not have.
    ///
    /// # Errors
    ///
    /// [`ModelError::Unsupported`] if the file has no weights of 4 bits that were asked for.
    pub(crate) fn of(self, tensors: &Tensors<'_>) -> Result<Numbers, ModelError> {
        Ok(match self {
            Self::Int4 if !tensors.have_four_bits() => {
                let what = "precision int4 for a file without weights of 4 bits (Q4_0, Q4_1, Q4_K)";
                return Err(ModelError::unsupported(tensors.source(), what, "precision auto, f32, int8"));
            }
            Self::Int4 => Numbers::Int4,
            Self::Auto if tensors.are_quantised() && tensors.have_four_bits() => Numbers::Int4,
            Self::Auto if tensors.are_quantised() => Numbers::Int8,
            Self::Int8 => Numbers::Int8,
            Self::Auto | Self::F32 | Self::F16 | Self::Bf16 => Numbers::F32,
        })
    }
}

impl Numbers {
    /// What a tensor of a kind takes once it is packed, in bytes. One of 4 bits that shares a product with others may take more.
    pub(crate) fn bytes(self, kind: GgmlType, shape: &[usize]) -> u64 {
        let &[inputs, outputs] = shape else { return shape.iter().product::<usize>() as u64 * 4 };
        let bytes = match self {
            Self::Int4 if kind.has_four_bits() => Int4Matrix::bytes_for(inputs, outputs),
            Self::F32 => outputs.next_multiple_of(PANEL) * inputs * size_of::<f32>(),
            Self::Int8 | Self::Int4 => Int8Matrix::bytes_for(inputs, outputs),
        };
        bytes as u64
    }

    /// The kernel set and precision. Changes whenever the order or rounding of any computation does.
    pub(crate) fn numerics(self) -> &'static str {
        match self {
            Self::F32 => "f32-1",
            Self::Int8 => "int8-2",
            Self::Int4 => "int4-1",
        }
    }
}
