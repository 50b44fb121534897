//! Deliberate defects, so that the explorer can prove that it would notice them. In builds without tests there are none.

/// A defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Grants the generation that was granted last once more.
    StaleGeneration,
    /// Applies a segment of which only a part came.
    PartialSegment,
    /// Acknowledges a segment before it is durable at the datacenter.
    UnkeptApply,
    /// Offers a segment before it is durable where it ends.
    UnkeptSeal,
    /// Asks for a lease before the question is durable.
    UnkeptQuestion,
    /// Takes segments of a generation that was broken.
    AcceptAfterBreak,
    /// Does not look whether a branch is as far as it was.
    TrustOldCopy,
    /// Fences on the word of any message, however old.
    FenceUnproven,
    /// Gives a desktop back of which not all was written back.
    ReturnEarly,
    /// Tells that a desktop's writes were given up before that is durable.
    UnkeptDrop,
}

#[cfg(test)]
pub(crate) use switch::{is_mutated, with_mutant};

/// Whether the defect is switched on: never.
#[cfg(not(test))]
pub(crate) const fn is_mutated(_: Mutant) -> bool {
    false
}

#[cfg(test)]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Runs `work` with a defect switched on, in this thread.
    pub(crate) fn with_mutant<T>(mutant: Mutant, work: impl FnOnce() -> T) -> T {
        ON.set(Some(mutant));
        let result = work();
        ON.set(None);
        result
    }

    /// Whether the defect is switched on.
    pub(crate) fn is_mutated(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }
}
