//! Names of nodes, and which start of a node is meant.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// The longest name, in bytes: a label of DNS, so that certificates can bear it.
pub const MAX_NAME_BYTES: usize = 63;

/// Text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a name: use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end")]
pub struct InvalidName(String);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                checked(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

name! {
    /// A node's name. It stays over restarts, and no two nodes of a cluster that run at once share one.
    NodeName
}
name! {
    /// A cluster's name. Nodes of different clusters never link.
    ClusterName
}

fn checked(text: &str) -> Result<Arc<str>, InvalidName> {
    let fits = (1..=MAX_NAME_BYTES).contains(&text.len());
    let allowed = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    match fits && allowed && !text.starts_with('-') && !text.ends_with('-') {
        true => Ok(text.into()),
        // Whoever sends something long shall not fill our logs with it.
        false => Err(InvalidName(text.chars().take(MAX_NAME_BYTES + 1).collect())),
    }
}

/// Which start of a node: a later start has a larger number, if clocks do not go backwards, and another one in any case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub u64);

/// Random bits at the end of a [`BootId`], below the milliseconds since the Unix epoch.
const RANDOM_BITS: u32 = 20;

impl BootId {
    /// The boot id of a process that starts at `now_ms`, in milliseconds since the Unix epoch.
    pub fn at(now_ms: u64) -> Self {
        Self(now_ms << RANDOM_BITS | u64::from(rand::random::<u32>() >> (u32::BITS - RANDOM_BITS)))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One start of one node. A restarted node is another incarnation, and what was said to the first is not heard by the second.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// The node.
    pub name: NodeName,
    /// The start.
    pub boot: BootId,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.boot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_of_dns() {
        for good in ["a", "node-1", "0", &"n".repeat(MAX_NAME_BYTES)] {
            assert_eq!(good.parse::<NodeName>().expect("a name").as_str(), good);
        }
        for bad in ["", "-a", "a-", "Node", "a.b", "a b", "ä", &"n".repeat(MAX_NAME_BYTES + 1)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        let long = "n".repeat(10_000).parse::<NodeName>().expect_err("too long");
        assert!(long.to_string().len() < 250, "{long}");
    }

    #[test]
    fn a_later_start_has_a_larger_boot_id() {
        let first = BootId::at(1_764_000_000_000);
        assert!(BootId::at(1_764_000_000_001) > first);
        assert_eq!(first.to_string().len(), 16);
    }
}
