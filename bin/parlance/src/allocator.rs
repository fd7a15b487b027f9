//! The allocator of the node, and of what measures it.

/// jemalloc, because it gives back what sessions leave behind when they leave memory: see the ADR of 2026-11-27.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Free memory goes back to the system after a second, from a thread of jemalloc's own.
// SAFETY: jemalloc reads this name as a pointer to a string that ends in a zero byte, which the data pointer of this slice is.
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub(crate) static MALLOC_CONF: &[u8] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";
