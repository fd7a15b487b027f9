//! The planted bugs: each takes one rule out, to show that the checks would notice.

/// Which rules hold: all of them, unless this is a test build that planted a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rules {
    #[cfg(any(test, feature = "planted-bugs"))]
    without: Option<Rule>,
}

/// A rule, or a part of one, that a test build can take out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// 2: a claim is valid only if it names the latest valid claim.
    ClaimChain,
    /// 2: a claim is ours only if it bears a nonce of ours; without it, if it bears our node's name.
    ClaimNonce,
    /// 3: a record counts only in the current epoch.
    CurrentEpoch,
    /// 3: a record counts only with the next `seq`.
    NextSeq,
    /// 4: acknowledgements are taken in `seq` order.
    AckOrder,
    /// 4: an acknowledgement behind a gap commits nothing before the gap was read.
    AckGap,
    /// 5: an unknown outcome is settled by a later valid claim; without it, by reading to the end of the log.
    Barrier,
}

impl Rules {
    /// Every rule is in force.
    pub const ALL: Self = Self {
        #[cfg(any(test, feature = "planted-bugs"))]
        without: None,
    };

    /// Takes one rule out.
    #[cfg(any(test, feature = "planted-bugs"))]
    pub const fn without(rule: Rule) -> Self {
        Self { without: Some(rule) }
    }

    /// Whether a rule is in force: always, in a build without planted bugs.
    pub(super) fn hold(self, rule: Rule) -> bool {
        #[cfg(any(test, feature = "planted-bugs"))]
        return self.without != Some(rule);
        #[cfg(not(any(test, feature = "planted-bugs")))]
        {
            let _ = rule;
            true
        }
    }
}
