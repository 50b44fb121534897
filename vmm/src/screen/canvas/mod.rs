//! Pixels, pointer and size, with what has changed when.
//!
//! Every change takes the next number of one sequence. A tile has the number of the last change that altered one of its pixels; drawing
//! what is there already changes nothing, so that a guest which redraws its whole screen costs viewers only what differs.

mod scroll;
#[cfg(test)]
mod tests;
mod view;

use std::sync::Arc;

use super::geometry::{Rect, Size, TILE};
pub use view::{RECT_WIDTH_MAX, View};

/// Bytes of a pixel: blue, green, red, and one without meaning.
pub const PIXEL_BYTES: usize = 4;

/// The image of a pointer, drawn by viewers where their pointer is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Pixels of a row; 0 when there is nothing to show.
    pub width: u16,
    /// Rows.
    pub height: u16,
    /// Where in it the pointer points, from the left.
    pub hot_x: u16,
    /// The same from the top.
    pub hot_y: u16,
    /// Blue, green, red, opacity.
    pub pixels: Vec<u8>,
}

/// See the module.
pub struct Canvas {
    size: Size,
    asked: Size,
    pixels: Vec<u8>,
    /// The last number that was taken; 0 is before all changes.
    sequence: u64,
    /// By tile, row after row.
    tiles: Vec<u64>,
    resized: u64,
    cursor: Arc<Cursor>,
    cursor_changed: u64,
    pointer: (u16, u16),
    moved: Option<Moved>,
}

/// Pixels of one place that were at another one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Where they are now.
    pub to: Rect,
    /// Their left edge before.
    pub x: u16,
    /// Their upper edge before.
    pub y: u16,
}

/// A move with the tiles that it touches.
struct Moved {
    change: Move,
    tiles: Vec<MovedTile>,
}

struct MovedTile {
    index: usize,
    /// Its numbers before and after the move.
    before: u64,
    after: u64,
}

impl Move {
    fn from(self) -> Rect {
        Rect::new(self.x, self.y, self.to.width, self.to.height)
    }
}

impl Default for Canvas {
    fn default() -> Self {
        Self::new(Size::default())
    }
}

impl Canvas {
    /// A black one.
    pub fn new(size: Size) -> Self {
        let mut canvas = Self {
            size,
            asked: size,
            pixels: Vec::new(),
            sequence: 0,
            tiles: Vec::new(),
            resized: 0,
            cursor: Arc::default(),
            cursor_changed: 0,
            pointer: (0, 0),
            moved: None,
        };
        canvas.set_size(size);
        canvas
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn set_size(&mut self, size: Size) {
        let now = self.next();
        self.size = size;
        self.pixels = vec![0; size.pixels() * PIXEL_BYTES];
        self.tiles = vec![now; size.columns() * size.rows()];
        self.resized = now;
        self.moved = None;
    }

    /// Its size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The size that viewers would like.
    pub fn asked(&self) -> Size {
        self.asked
    }

    pub(super) fn set_asked(&mut self, size: Size) {
        self.asked = size;
    }

    /// Takes a size; all is black if it is another one.
    pub fn resize(&mut self, size: Size) {
        if size != self.size {
            self.set_size(size);
        }
    }

    /// Makes all of it black.
    pub fn blank(&mut self) {
        let row = vec![0; usize::from(self.size.width) * PIXEL_BYTES];
        let all = self.size.rect();
        self.draw(all, |_| Some(row.as_slice()));
    }

    fn offset(&self, x: u16, y: u16) -> usize {
        (usize::from(y) * usize::from(self.size.width) + usize::from(x)) * PIXEL_BYTES
    }

    /// Draws into `rect`, as far as it lies inside: `row` gives the pixels of each row of `rect`, counted from its own upper edge. A row
    /// that is not given, or is too short, stays as it was.
    pub fn draw<'a>(&mut self, rect: Rect, row: impl Fn(u16) -> Option<&'a [u8]>) {
        let inside = rect.intersect(self.size.rect());
        if inside.is_empty() {
            return;
        }
        let change = self.find_move(inside, |y| {
            let from = usize::from(inside.x - rect.x) * PIXEL_BYTES;
            row(y - rect.y)?.get(from..from + usize::from(inside.width) * PIXEL_BYTES)
        });
        let mut moved = change.map(|change| self.before(change));
        let now = self.next();
        let columns = self.size.columns();
        for y in inside.y..inside.bottom() {
            let Some(source) = row(y - rect.y) else {
                continue;
            };
            let tiles = usize::from(y / TILE) * columns;
            let mut x = inside.x;
            while x < inside.right() {
                let end = (x / TILE + 1).saturating_mul(TILE).min(inside.right());
                let len = usize::from(end - x) * PIXEL_BYTES;
                let from = usize::from(x - rect.x) * PIXEL_BYTES;
                let to = self.offset(x, y);
                if let Some(source) = source.get(from..from + len) {
                    let pixels = &mut self.pixels[to..to + len];
                    if pixels != source {
                        pixels.copy_from_slice(source);
                        self.tiles[tiles + usize::from(x / TILE)] = now;
                    }
                }
                x = end;
            }
        }
        if let Some(moved) = &mut moved {
            for tile in &mut moved.tiles {
                tile.after = self.tiles[tile.index];
            }
        }
        self.moved = moved.or(self.moved.take());
    }

    /// Whether rows that are about to be drawn into `area` are there already, higher or lower. `after` gives its rows.
    fn find_move<'a>(&self, area: Rect, after: impl Fn(u16) -> Option<&'a [u8]>) -> Option<Move> {
        if area.height < scroll::ROWS_MIN {
            return None;
        }
        let before = |area: Rect, y: u16| {
            let at = self.offset(area.x, y);
            &self.pixels[at..at + usize::from(area.width) * PIXEL_BYTES]
        };
        // The part that changes, in steps of a tile.
        const STEP: usize = TILE as usize * PIXEL_BYTES;
        let mut changed: Option<Rect> = None;
        for y in area.y..area.bottom() {
            let (old, new) = (before(area, y), after(y)?);
            if old == new {
                continue;
            }
            let differs = |(old, new): (&[u8], &[u8])| old != new;
            let steps = || old.chunks(STEP).zip(new.chunks(STEP));
            let first = steps().position(differs).unwrap_or(0) as u16 * TILE;
            let behind = steps().rposition(differs).map_or(0, |last| last + 1) as u16 * TILE;
            let row = Rect::new(area.x + first, y, behind.min(area.width) - first, 1);
            changed = Some(changed.map_or(row, |changed| changed.unite(row)));
        }
        let changed = changed?;
        let from = usize::from(changed.x - area.x) * PIXEL_BYTES;
        let bytes = usize::from(changed.width) * PIXEL_BYTES;
        let after = |y| &after(y).unwrap_or_default()[from..from + bytes];
        let before = |y| before(changed, y);
        let rows = changed.y..changed.bottom();
        let mut scroll = scroll::find(rows, before, after)?;
        // Rows that do not change, such as blank ones, may have moved as well.
        while scroll.to.max(scroll.from) + scroll.rows < area.bottom()
            && after(scroll.to + scroll.rows) == before(scroll.from + scroll.rows)
        {
            scroll.rows += 1;
        }
        let to = Rect::new(changed.x, scroll.to, changed.width, scroll.rows);
        let (x, y) = (changed.x, scroll.from);
        Some(Move { to, x, y })
    }

    /// A move that is about to be drawn.
    fn before(&self, change: Move) -> Moved {
        let touched = tiles(self.size, change.to.unite(change.from()));
        let tiles = touched.map(|index| {
            let before = self.tiles[index];
            let after = before;
            MovedTile {
                index,
                before,
                after,
            }
        });
        Moved {
            tiles: tiles.collect(),
            change,
        }
    }

    fn tile(&self, index: usize) -> Rect {
        let columns = self.size.columns();
        let (column, row) = ((index % columns) as u16, (index / columns) as u16);
        Rect::new(column * TILE, row * TILE, TILE, TILE).intersect(self.size.rect())
    }

    /// Copies the pixels of `rect` into `out`, row after row; what lies outside is black.
    pub fn copy(&self, rect: Rect, out: &mut Vec<u8>) {
        out.clear();
        let inside = rect.intersect(self.size.rect());
        let row_bytes = usize::from(rect.width) * PIXEL_BYTES;
        out.reserve(row_bytes * usize::from(rect.height));
        for y in rect.y..rect.bottom() {
            let start = out.len();
            if !inside.is_empty() && (inside.y..inside.bottom()).contains(&y) {
                // What lies inside begins where `rect` does: both begin at 0 or behind.
                let at = self.offset(inside.x, y);
                let len = usize::from(inside.width) * PIXEL_BYTES;
                out.extend_from_slice(&self.pixels[at..at + len]);
            }
            out.resize(start + row_bytes, 0);
        }
    }

    /// Changes the pointer's image.
    pub fn set_cursor(&mut self, cursor: Cursor) {
        if *self.cursor != cursor {
            self.cursor_changed = self.next();
            self.cursor = Arc::new(cursor);
        }
    }

    /// The pointer's image.
    pub fn cursor(&self) -> &Arc<Cursor> {
        &self.cursor
    }

    /// The guest has put the pointer there.
    pub fn set_pointer(&mut self, x: u16, y: u16) {
        self.pointer = (x, y);
    }

    /// Where the guest says that the pointer is.
    pub fn pointer(&self) -> (u16, u16) {
        self.pointer
    }
}

/// Indices of the tiles that a region touches, row after row.
fn tiles(size: Size, region: Rect) -> impl Iterator<Item = usize> {
    let region = region.intersect(size.rect());
    let range = |start: u16, end: u16| {
        let is_none = region.is_empty();
        let end = if is_none { 0 } else { end.div_ceil(TILE) };
        usize::from(start / TILE)..usize::from(end)
    };
    let columns = range(region.x, region.right());
    let per_row = size.columns();
    range(region.y, region.bottom())
        .flat_map(move |row| columns.clone().map(move |column| row * per_row + column))
}
