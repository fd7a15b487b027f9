//! What both ports call a tenant's key.

/// A tenant's key as one string of bytes: the tenant stands behind its length, so that no two tenants' keys collide.
pub(crate) fn scoped(tenant: &str, key: &[u8]) -> Box<[u8]> {
    let mut scoped = Vec::with_capacity(8 + tenant.len() + key.len());
    scoped.extend_from_slice(&(tenant.len() as u64).to_be_bytes());
    scoped.extend_from_slice(tenant.as_bytes());
    scoped.extend_from_slice(key);
    scoped.into()
}
