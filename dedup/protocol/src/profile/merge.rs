//! Many boots made one profile.
//!
//! Hosts differ in speed by a factor of ten and more, so times are brought to the pace of one boot before they are compared: the
//! recording of middle length. Invariants: the outcome depends on the set of recordings only, never on their order; one of three or
//! more has no more to say than the others, whatever it holds.

use std::collections::HashMap;

use super::{AT_MS_MAX, ENTRIES_MAX, Entries, Entry, Place};

/// An entry stays if at least one boot in so many has it: what one desktop did by chance drops out.
const SHARE: usize = 4;

/// Of three or more recordings, none counts beyond so many times the middle one's length: a desktop that reads its whole disk at its start, or
/// somebody who lies, does not decide what others fetch.
const LENGTH_MAX: usize = 2;

/// Merges recordings: for each place the median of its times and in how many boots it was touched. What few boots touch drops out;
/// of too many entries those stay that most boots touch, the earlier ones first. `least` boots must have touched a place.
pub fn merge(boots: &[Entries], least: usize) -> Entries {
    let mut boots: Vec<&Entries> = boots.iter().collect();
    // By content, so that the pace-maker is the same whoever came first.
    boots.sort_by_cached_key(|b| (std::cmp::Reverse(b.len()), b.encode()));
    let Some(leader) = boots.get(boots.len() / 2) else {
        return Entries::default();
    };
    let length_max = if boots.len() > 2 {
        leader.len() * LENGTH_MAX
    } else {
        ENTRIES_MAX
    };
    let pace: HashMap<Place, u32> = leader
        .as_slice()
        .iter()
        .map(|e| (e.place, e.at_ms))
        .collect();
    let mut times: HashMap<Place, Vec<u32>> = HashMap::new();
    for boot in &boots {
        let (theirs, ours) = common_time(&pace, boot);
        for entry in boot.as_slice().iter().take(length_max) {
            // Sums of 2^16 times below 2^22: far from overflow.
            let at_ms = (u64::from(entry.at_ms) * theirs)
                .checked_div(ours)
                .unwrap_or(entry.at_ms.into());
            let at_ms = at_ms.min(u64::from(AT_MS_MAX)) as u32;
            times.entry(entry.place).or_default().push(at_ms);
        }
    }
    let mut entries: Vec<Entry> = times
        .into_iter()
        .filter(|(_, times)| times.len() >= least && times.len() * SHARE >= boots.len())
        .map(|(place, mut times)| {
            times.sort_unstable();
            Entry {
                place,
                at_ms: times[(times.len() - 1) / 2],
                seen: times.len().min(usize::from(u16::MAX)) as u16,
            }
        })
        .collect();
    if entries.len() > ENTRIES_MAX {
        entries.sort_unstable_by_key(|e| (std::cmp::Reverse(e.seen), e.at_ms, e.place));
        entries.truncate(ENTRIES_MAX);
    }
    Entries::new(entries)
}

/// Sums of the times of those places that both have: the leader's and this boot's. Only these tell the pace, for one of the two may
/// have been cut short.
fn common_time(pace: &HashMap<Place, u32>, boot: &Entries) -> (u64, u64) {
    let mut sums = (0, 0);
    for entry in boot.as_slice() {
        if let Some(at_ms) = pace.get(&entry.place) {
            sums.0 += u64::from(*at_ms);
            sums.1 += u64::from(entry.at_ms);
        }
    }
    sums
}
