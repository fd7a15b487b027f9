//! Tensor infos: names, shapes, types and where the data lie.

use super::cursor::Cursor;
use crate::ModelError;

/// The most tensors; models in practice have some hundreds.
const MAX_TENSORS: u64 = 65_536;
/// The most dimensions, as in ggml.
const MAX_DIMENSIONS: u32 = 4;
/// Where the tensor data begin and how they are aligned if the file does not say.
const DEFAULT_ALIGNMENT: u32 = 32;
const SUPPORTED_TYPES: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl GgmlType {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Whether the values stand in blocks of 32 with 4 bits each, a step and a minimum, as
    /// [`four_bits`](super::four_bits) reads them.
    pub(crate) const fn has_four_bits(self) -> bool {
        matches!(self, Self::Q4_0 | Self::Q4_1 | Self::Q4K)
    }

    /// How many values form one block.
    pub(crate) const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// How many bytes one block has.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }
}

/// One tensor. `data` has exactly the bytes that shape and type ask for.
#[derive(Debug, Clone)]
pub(crate) struct TensorInfo<'a> {
    pub(crate) name: &'a str,
    /// Dimensions, fastest first: `[in, out]` for a matrix that maps `in` to `out` values.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: GgmlType,
    pub(crate) data: &'a [u8],
}

/// A tensor info whose data were not looked up yet.
struct Unplaced<'a> {
    info: TensorInfo<'a>,
    begin: usize,
    offset: u64,
    bytes: u64,
}

/// Reads `count` tensor infos and finds their data in `bytes`.
pub(super) fn read<'a>(
    cursor: &mut Cursor<'a>,
    count: u64,
    alignment: Option<u32>,
    bytes: &'a [u8],
) -> Result<Vec<TensorInfo<'a>>, ModelError> {
    if count > MAX_TENSORS {
        let problem = format!("{count} tensors are more than the {MAX_TENSORS} allowed");
        return Err(cursor.malformed_at(8, "the count of tensors", problem));
    }
    let alignment = u64::from(alignment.unwrap_or(DEFAULT_ALIGNMENT));
    if !alignment.is_power_of_two() || !(8..=65_536).contains(&alignment) {
        let problem = format!("the alignment {alignment} is not a power of two from 8 to 65,536");
        return Err(cursor.malformed_at(cursor.position(), "the tensor data", problem));
    }
    let unplaced = (0..count).map(|_| read_info(cursor, alignment)).collect::<Result<Vec<_>, _>>()?;
    let data_begin = (cursor.position() as u64).next_multiple_of(alignment);
    unplaced.into_iter().map(|tensor| place(cursor, tensor, data_begin, bytes)).collect()
}

fn read_info<'a>(cursor: &mut Cursor<'a>, alignment: u64) -> Result<Unplaced<'a>, ModelError> {
    let begin = cursor.position();
    let name = cursor.string("a tensor's name")?;
    let what = format!("the tensor {name:?}");
    let dimensions = cursor.u32(&what)?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        let problem = format!("{dimensions} dimensions are not from 1 to {MAX_DIMENSIONS}");
        return Err(cursor.malformed_at(begin, &what, problem));
    }
    let shape = (0..dimensions).map(|_| cursor.u64(&what)).collect::<Result<Vec<u64>, _>>()?;
    let number = cursor.u32(&what)?;
    let Some(kind) = GgmlType::from_number(number) else {
        return Err(cursor.unsupported(format!("the type {number} of {what}"), SUPPORTED_TYPES));
    };
    let offset = cursor.u64(&what)?;
    let Some(bytes) = data_bytes(&shape, kind) else {
        let problem = format!("the shape {shape:?} is not possible for the type {kind:?}");
        return Err(cursor.malformed_at(begin, &what, problem));
    };
    if offset % alignment != 0 {
        let problem = format!("its data offset {offset} is not a multiple of the alignment {alignment}");
        return Err(cursor.malformed_at(begin, &what, problem));
    }
    let shape = shape.into_iter().map(|extent| extent as usize).collect();
    Ok(Unplaced { info: TensorInfo { name, shape, kind, data: &[] }, begin, offset, bytes })
}

/// How many bytes the data of a tensor have; none if the shape is empty, overflows or does not divide into blocks.
fn data_bytes(shape: &[u64], kind: GgmlType) -> Option<u64> {
    let block_values = kind.block_values() as u64;
    if shape.first()? % block_values != 0 {
        return None;
    }
    let values = shape.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent))?;
    let bytes = (values / block_values).checked_mul(kind.block_bytes() as u64)?;
    (bytes > 0 && isize::try_from(values.checked_mul(4)?).is_ok()).then_some(bytes)
}

fn place<'a>(
    cursor: &Cursor<'a>,
    tensor: Unplaced<'a>,
    data_begin: u64,
    bytes: &'a [u8],
) -> Result<TensorInfo<'a>, ModelError> {
    let what = format!("the data of the tensor {:?}", tensor.info.name);
    let Some(begin) = data_begin.checked_add(tensor.offset) else {
        let problem = format!("its data offset {} is beyond any file", tensor.offset);
        return Err(cursor.malformed_at(tensor.begin, &what, problem));
    };
    let data = begin.checked_add(tensor.bytes).and_then(|end| bytes.get(begin as usize..usize::try_from(end).ok()?));
    let Some(data) = data else { return Err(cursor.truncated_at(begin, &what, tensor.bytes)) };
    Ok(TensorInfo { data, ..tensor.info })
}
