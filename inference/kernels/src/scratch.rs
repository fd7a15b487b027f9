use crate::{linear::Tiles, rows::Rows};

/// Working memory of products. It grows to what the largest one takes, `rows · inputs` values and their copy in the kernel's layout, and
/// is used again for the next.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) rows: Rows,
    pub(crate) tiles: Tiles,
}
