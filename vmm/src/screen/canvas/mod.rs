//! Pixels, pointer and size, with what has changed when.
//!
//! Every change takes the next number of one sequence. A tile has the number of the last change that altered one of its pixels; drawing
//! what is there already changes nothing, so that a guest which redraws its whole screen costs viewers only what differs.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::geometry::{Rect, Size, TILE};

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
}

/// What one viewer has been given.
#[derive(Debug, Default)]
pub struct View {
    /// When the canvas took the size that the tiles are of.
    resized: u64,
    /// By tile: the number of the change that it was given.
    tiles: Vec<u64>,
    cursor: u64,
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

impl View {
    /// Whether the canvas has taken a size since the view was last told of one; the view is told now, and has been given nothing of the
    /// new canvas.
    pub fn take_size(&mut self, canvas: &Canvas) -> bool {
        let is_new = self.resized != canvas.resized;
        if is_new {
            self.resized = canvas.resized;
            self.tiles = vec![0; canvas.tiles.len()];
        }
        is_new
    }

    /// The pointer's image, if the view has another one.
    pub fn take_cursor(&mut self, canvas: &Canvas) -> Option<Arc<Cursor>> {
        let is_new = self.cursor != canvas.cursor_changed;
        self.cursor = canvas.cursor_changed;
        is_new.then(|| Arc::clone(&canvas.cursor))
    }

    /// Whether [`View::take_cursor`] would have something.
    pub fn has_cursor(&self, canvas: &Canvas) -> bool {
        self.cursor != canvas.cursor_changed
    }

    /// Whether [`View::take_size`] would say so.
    pub fn has_size(&self, canvas: &Canvas) -> bool {
        self.resized != canvas.resized
    }

    /// Forgets what was given of `region`.
    pub fn forget(&mut self, canvas: &Canvas, region: Rect) {
        for index in tiles(canvas.size, region) {
            if let Some(tile) = self.tiles.get_mut(index) {
                *tile = 0;
            }
        }
    }

    /// Whether a tile that touches `region` has changed.
    pub fn has_pixels(&self, canvas: &Canvas, region: Rect) -> bool {
        tiles(canvas.size, region).any(|index| self.is_stale(canvas, index))
    }

    fn is_stale(&self, canvas: &Canvas, index: usize) -> bool {
        let given = self.tiles.get(index).copied().unwrap_or(0);
        canvas.tiles.get(index).is_some_and(|tile| *tile > given)
    }

    /// What has changed, as whole tiles that touch `region`; they count as given, and their pixels are to be copied after this. Tiles
    /// beside each other come as one rectangle.
    pub fn take_pixels(&mut self, canvas: &Canvas, region: Rect) -> Vec<Rect> {
        let all = canvas.size.rect();
        let columns = canvas.size.columns();
        self.tiles.resize(canvas.tiles.len(), 0);
        let mut rects: Vec<Rect> = Vec::new();
        for index in tiles(canvas.size, region) {
            if !self.is_stale(canvas, index) {
                continue;
            }
            self.tiles[index] = canvas.tiles[index];
            let (column, row) = ((index % columns) as u16, (index / columns) as u16);
            let tile = Rect::new(column * TILE, row * TILE, TILE, TILE).intersect(all);
            match rects.last_mut() {
                Some(last) if last.y == tile.y && last.right() == tile.x => {
                    last.width += tile.width;
                }
                _ => rects.push(tile),
            }
        }
        rects
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
