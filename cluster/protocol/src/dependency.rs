/// A component outside the process that a node works with, as the adapter behind a port sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Its name, from a closed set: `kafka`, `scylla`, `redis`.
    pub name: &'static str,
    /// Why it does not serve, for the operator; `None` while it does.
    pub trouble: Option<String>,
}

impl Dependency {
    /// Whether it serves.
    pub fn is_up(&self) -> bool {
        self.trouble.is_none()
    }
}
