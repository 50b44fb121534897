//! Sizes and rectangles of a screen, and the grid of tiles by which changes are kept.

use std::fmt;
use std::str::FromStr;

/// Side of a tile: what ZRLE encodes at a time, and small enough that a blinking text cursor costs 16 KiB at most.
pub const TILE: u16 = 64;
/// Longest side: a monitor's description (EDID) has 12 bits for it.
pub const SIDE_MAX: u16 = 4095;
/// Shortest side that guests are asked for: Linux refuses modes below.
pub const SIDE_MIN: u16 = 64;

/// Not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Too small, too large.
    #[error("{0} by {1}: each side has from {SIDE_MIN} to {SIDE_MAX} pixels")]
    Bounds(u32, u32),
    /// Not two numbers.
    #[error("{0:?}: a size is written as WIDTHxHEIGHT, such as 1280x800")]
    Text(String),
}

/// Size of a screen, pixels. Neither side is 0 or above [`SIDE_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Pixels of a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            width: 1280,
            height: 800,
        }
    }
}

impl Size {
    /// A size that a guest may be asked for.
    ///
    /// # Errors
    /// A side is out of bounds.
    pub fn new(width: u32, height: u32) -> Result<Self, SizeError> {
        let size = Self::shown(width, height);
        let size = size.filter(|size| size.width >= SIDE_MIN && size.height >= SIDE_MIN);
        size.ok_or(SizeError::Bounds(width, height))
    }

    /// A size that a guest may choose by itself: it may be smaller.
    pub fn shown(width: u32, height: u32) -> Option<Self> {
        let side = |side| {
            let side = u16::try_from(side).ok()?;
            (1..=SIDE_MAX).contains(&side).then_some(side)
        };
        Some(Self {
            width: side(width)?,
            height: side(height)?,
        })
    }

    /// Pixels.
    pub fn pixels(self) -> usize {
        usize::from(self.width) * usize::from(self.height)
    }

    /// All of it.
    pub fn rect(self) -> Rect {
        Rect::new(0, 0, self.width, self.height)
    }

    /// Tiles of a row.
    pub(super) fn columns(self) -> usize {
        self.width.div_ceil(TILE).into()
    }

    /// Rows of tiles.
    pub(super) fn rows(self) -> usize {
        self.height.div_ceil(TILE).into()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let wrong = || SizeError::Text(text.to_owned());
        let (width, height) = text.split_once('x').ok_or_else(wrong)?;
        let side = |side: &str| side.parse::<u32>().map_err(|_| wrong());
        Self::new(side(width)?, side(height)?)
    }
}

/// A rectangle, pixels from the upper left. It ends where 16 bits end at the latest, so that edges never overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rect {
    /// Left edge.
    pub x: u16,
    /// Upper edge.
    pub y: u16,
    /// Pixels of a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl Rect {
    /// A rectangle, cut where 16 bits end.
    pub fn new(x: u16, y: u16, width: u16, height: u16) -> Self {
        Self {
            x,
            y,
            width: width.min(u16::MAX - x),
            height: height.min(u16::MAX - y),
        }
    }

    /// Behind its last column.
    pub fn right(self) -> u16 {
        self.x + self.width
    }

    /// Behind its last row.
    pub fn bottom(self) -> u16 {
        self.y + self.height
    }

    /// Without a pixel.
    pub fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// Pixels.
    pub fn pixels(self) -> usize {
        usize::from(self.width) * usize::from(self.height)
    }

    /// What lies in both; empty if nothing does.
    pub fn intersect(self, other: Self) -> Self {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let width = self.right().min(other.right()).saturating_sub(x);
        let height = self.bottom().min(other.bottom()).saturating_sub(y);
        Self::new(x, y, width, height)
    }

    /// The smallest one that holds both.
    pub fn unite(self, other: Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return if self.is_empty() { other } else { self };
        }
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let width = self.right().max(other.right()) - x;
        Self::new(x, y, width, self.bottom().max(other.bottom()) - y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_bounds_are_not_asked_for() {
        assert_eq!("1280x800".parse(), Ok(Size::default()));
        for text in [
            "",
            "1280",
            "1280x",
            "x800",
            "-1x800",
            "1280x800x1",
            "1 280x800",
        ] {
            let parsed: Result<Size, _> = text.parse();
            assert!(matches!(parsed, Err(SizeError::Text(_))), "{text}");
        }
        for (width, height) in [(63, 64), (64, 0), (4096, 64), (65536 + 640, 480)] {
            assert_eq!(
                Size::new(width, height),
                Err(SizeError::Bounds(width, height))
            );
        }
        assert!(Size::shown(1, 1).is_some() && Size::shown(0, 1).is_none());
    }

    #[test]
    fn rectangles_meet_or_do_not() {
        let a = Rect::new(0, 0, 10, 10);
        let b = Rect::new(5, 6, 10, 10);
        assert_eq!(a.intersect(b), Rect::new(5, 6, 5, 4));
        assert_eq!(a.unite(b), Rect::new(0, 0, 15, 16));
        let far = Rect::new(20, 20, 1, 1);
        assert!(a.intersect(far).is_empty());
        assert_eq!(Rect::default().unite(far), far);
        let end = Rect::new(65_000, 0, 1000, 1);
        assert_eq!(end.right(), u16::MAX, "cut, not wrapped around");
    }
}
