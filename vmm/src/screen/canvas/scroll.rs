//! Finds out that a guest has scrolled: adapters are told what to show, not where it was before.
//!
//! Rows are compared by hashes of what they were and what they become. A row that is there once before and once after votes for the way
//! between; the longest run of rows that went the way with the most votes is a scroll, if it is long enough and its pixels are really
//! the same. Only up and down, and only whole rows of the part that changes: that is what terminals, consoles and browsers do.

use std::collections::HashMap;
use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

/// Fewer rows than this that change, or that have moved, are not worth a look: they are a tile or two of pixels.
pub(super) const ROWS_MIN: u16 = 64;
/// Votes that a way needs. Rows of text have a dozen different ones a line.
const VOTES_MIN: u32 = 8;

/// Rows that have moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scroll {
    /// Where they begin now.
    pub to: u16,
    /// Where they began before.
    pub from: u16,
    /// How many.
    pub rows: u16,
}

/// Looks for a scroll in rows that all change or lie between such rows; `before` and `after` give each row's pixels.
pub(super) fn find<'a>(
    rows: Range<u16>,
    before: impl Fn(u16) -> &'a [u8],
    after: impl Fn(u16) -> &'a [u8],
) -> Option<Scroll> {
    if rows.len() < ROWS_MIN.into() {
        return None;
    }
    let hashes = |row: &dyn Fn(u16) -> &'a [u8]| -> Vec<u64> {
        rows.clone().map(|y| xxh3_64(row(y))).collect()
    };
    let (old, new) = (hashes(&before), hashes(&after));
    let way = vote(&old, &new)?;
    let (to, len) = longest_run(&old, &new, way);
    let place = |index: usize| rows.start + index as u16;
    let scroll = Scroll {
        to: place(to),
        from: place(to.checked_add_signed(way)?),
        rows: len as u16,
    };
    // A guest may know how to make two rows with one hash.
    let is_same = (0..scroll.rows).all(|y| after(scroll.to + y) == before(scroll.from + y));
    (scroll.rows >= ROWS_MIN && is_same).then_some(scroll)
}

/// How far most rows that can be told apart have come from.
fn vote(old: &[u64], new: &[u64]) -> Option<isize> {
    let mut places: HashMap<u64, Option<usize>> = HashMap::with_capacity(old.len());
    for (place, hash) in old.iter().enumerate() {
        // A second one makes both useless.
        places
            .entry(*hash)
            .and_modify(|first| *first = None)
            .or_insert(Some(place));
    }
    let mut votes: HashMap<isize, u32> = HashMap::new();
    for (place, hash) in new.iter().enumerate() {
        if let Some(Some(was)) = places.get(hash)
            && *was != place
        {
            *votes.entry(*was as isize - place as isize).or_default() += 1;
        }
    }
    let best = votes
        .into_iter()
        .max_by_key(|(way, votes)| (*votes, *way))?;
    (best.1 >= VOTES_MIN).then_some(best.0)
}

/// The first of the rows that have come that far, and how many they are.
fn longest_run(old: &[u64], new: &[u64], way: isize) -> (usize, usize) {
    let (mut best, mut start) = ((0, 0), 0);
    for (place, hash) in new.iter().enumerate() {
        let was = place.checked_add_signed(way).and_then(|was| old.get(was));
        if was != Some(hash) {
            start = place + 1;
        } else if place + 1 - start > best.1 {
            best = (start, place + 1 - start);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(numbers: &[u32]) -> Vec<[u8; 4]> {
        numbers.iter().map(|number| number.to_le_bytes()).collect()
    }

    fn found(old: &[u32], new: &[u32]) -> Option<Scroll> {
        let (old, new) = (rows(old), rows(new));
        find(
            10..10 + old.len() as u16,
            |y| &old[usize::from(y) - 10],
            |y| &new[usize::from(y) - 10],
        )
    }

    #[test]
    fn rows_that_went_up_or_down_are_found() {
        let text: Vec<u32> = (0..200).collect();
        let up = [&text[16..], &[1000; 16]].concat();
        let scroll = found(&text, &up);
        let expected = |to, from, rows| Some(Scroll { to, from, rows });
        assert_eq!(scroll, expected(10, 26, 184));
        let down = [&[1000; 16], &text[..184]].concat();
        assert_eq!(found(&text, &down), expected(26, 10, 184));
        // Most rows are blank: the others tell, and blank ones go with them.
        let sparse: Vec<u32> = (0..200).map(|y| if y % 16 < 4 { y } else { 0 }).collect();
        let up = [&sparse[16..], &[0; 16]].concat();
        assert_eq!(found(&sparse, &up), expected(10, 26, 184));
    }

    #[test]
    fn what_is_no_scroll_is_none() {
        let text: Vec<u32> = (0..200).collect();
        assert_eq!(found(&text, &text), None, "nothing moves");
        assert_eq!(found(&text, &[7; 200]), None, "blank");
        let other: Vec<u32> = (1000..1200).collect();
        assert_eq!(found(&text, &other), None);
        let short = [&text[190..], &text[..190]].concat();
        assert!(found(&text, &short).is_some());
        let pieces: Vec<u32> = (0..200)
            .map(|y| if y % 50 == 0 { 999 } else { y + 3 })
            .collect();
        assert_eq!(found(&text, &pieces), None, "runs of 49");
        assert_eq!(found(&text[..60], &text[1..61]), None, "too few");
    }

    proptest! {
        #[test]
        fn a_scroll_that_is_told_is_one(
            old in prop::collection::vec(0u32..40, 64..150),
            way in -40isize..40,
            noise in prop::collection::vec((0usize..150, 0u32..40), 0..3),
        ) {
            let mut new: Vec<u32> = (0..old.len())
                .map(|y| y.checked_add_signed(way).and_then(|was| old.get(was)).copied().unwrap_or(77))
                .collect();
            for (at, value) in noise {
                let at = at % new.len();
                new[at] = value;
            }
            if let Some(Scroll { to, from, rows }) = found(&old, &new) {
                prop_assert!(rows >= ROWS_MIN && to != from);
                for y in 0..usize::from(rows) {
                    prop_assert_eq!(new[usize::from(to) - 10 + y], old[usize::from(from) - 10 + y]);
                }
            }
        }
    }
}
