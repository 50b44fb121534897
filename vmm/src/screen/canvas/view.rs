//! What one viewer has of a canvas, by tile, and what it is to be given.

use std::sync::Arc;

use super::{Canvas, Cursor, Move, Moved, MovedTile, tiles};
use crate::screen::geometry::Rect;

/// The widest rectangle of changes that views are told of: Tight allows no wider one.
pub const RECT_WIDTH_MAX: u16 = 2048;

/// What one viewer has been given.
#[derive(Debug, Default)]
pub struct View {
    /// When the canvas took the size that the tiles are of.
    resized: u64,
    /// By tile: the number of the change that it was given.
    tiles: Vec<u64>,
    cursor: u64,
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

    /// A move inside `region` that saves giving pixels anew. It counts as made: it must be made before pixels that are taken after this
    /// are given.
    ///
    /// It can be made if the view has exactly what was there before the move, and nothing of what came after it, which would be moved or
    /// overwritten.
    pub fn take_move(&mut self, canvas: &Canvas, region: Rect) -> Option<Move> {
        let Moved { change, tiles } = canvas.moved.as_ref()?;
        let (from, to) = (change.from(), change.to);
        let is_inside = |rect: Rect| rect.intersect(region) == rect;
        if !is_inside(from) || !is_inside(to) || self.tiles.len() != canvas.tiles.len() {
            return None;
        }
        let mut saved = Vec::new();
        for MovedTile {
            index,
            before,
            after,
        } in tiles
        {
            let (tile, given) = (canvas.tile(*index), self.tiles[*index]);
            let is_from = !tile.intersect(from).is_empty();
            let is_to = !tile.intersect(to).is_empty();
            if is_from && given != *before || is_to && given > *after {
                return None;
            }
            if tile.intersect(to) == tile && given < *after {
                saved.push((*index, *after));
            }
        }
        for (index, after) in &saved {
            self.tiles[*index] = *after;
        }
        (!saved.is_empty()).then_some(*change)
    }

    /// The pixels of `rect`, one of those that were taken, have been copied as they are now.
    pub fn gave(&mut self, canvas: &Canvas, rect: Rect) {
        if self.resized == canvas.resized {
            for index in tiles(canvas.size, rect) {
                self.tiles[index] = canvas.tiles[index];
            }
        }
    }

    /// What has changed, as whole tiles that touch `region`; they count as given, and their pixels are to be copied after this, which
    /// [`View::gave`] must be told of if moves are taken. Tiles beside each other come as one rectangle, [`RECT_WIDTH_MAX`] wide at most.
    pub fn take_pixels(&mut self, canvas: &Canvas, region: Rect) -> Vec<Rect> {
        self.tiles.resize(canvas.tiles.len(), 0);
        let mut rects: Vec<Rect> = Vec::new();
        for index in tiles(canvas.size, region) {
            if !self.is_stale(canvas, index) {
                continue;
            }
            self.tiles[index] = canvas.tiles[index];
            let tile = canvas.tile(index);
            match rects.last_mut() {
                Some(last)
                    if last.y == tile.y
                        && last.right() == tile.x
                        && last.width + tile.width <= RECT_WIDTH_MAX =>
                {
                    last.width += tile.width;
                }
                _ => rects.push(tile),
            }
        }
        rects
    }
}
