//! What a viewer wants and what it has been given: which update is due. No socket and no threads.
//!
//! An update is due when the viewer has asked for one (or has continuous updates), and something that it shows is not what the screen
//! shows. Whatever happens in between is one change: nothing piles up behind a slow viewer. With continuous updates the next one waits
//! until the viewer has answered the fence behind the last: one is on its way at most, however much the line holds.
//!
//! A viewer chooses its encoding by the order in which it names them, its quality and its compression by their levels.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::clip::Clip;
use super::parser::Message;
use super::pixel::PixelFormat;
use super::wire::{encoding, fence, fence_message, to_client};
use crate::clipboard::Clipboard;
use crate::screen::{Canvas, Cursor, Move, Rect, Size, View};

/// Bytes of answers that wait to be sent: fences of a viewer that takes nothing. One that sends more is hung up on.
const OWED_BYTES_MAX: usize = 4096;
/// What our fences carry, so that answers to the one that announces fences are told apart.
const FENCE_PAYLOAD: &[u8] = b"update";
/// zlib's level when a viewer wishes none. Palettes and runs have done most of it before.
const LEVEL: u32 = 2;
/// And its highest, whatever a viewer wishes: above it twice the time is spent for a few percent.
const LEVEL_MAX: u32 = 6;

/// What became of a wish for another size (ExtendedDesktopSize).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SizeAnswer {
    /// No such size can be.
    Invalid = 3,
    /// The guest was asked; it may follow.
    Forwarded = 4,
}

/// How pixels are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Form {
    #[default]
    Raw,
    Zrle,
    Tight {
        /// JPEG is allowed, of this level, 0 to 9.
        quality: Option<u8>,
    },
}

/// How a pointer's image is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CursorForm {
    /// With a mask.
    Mask,
    /// With its opacity.
    Alpha,
}

/// What a viewer understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Known {
    form: Form,
    /// zlib's level.
    level: Option<u8>,
    moves: bool,
    last_rect: bool,
    cursor: Option<CursorForm>,
    desktop_size: bool,
    extended_desktop_size: bool,
    keys: bool,
    more_buttons: bool,
    fences: bool,
    continuous: bool,
    clipboard: bool,
}

impl Known {
    fn of(encodings: &[i32]) -> Self {
        let has = |wanted| encodings.contains(&wanted);
        // Ten levels; the last one that is named counts.
        let level = |least: i32| {
            let levels = encodings
                .iter()
                .rev()
                .map(|encoding| encoding.checked_sub(least));
            let mut levels = levels.flatten().filter(|level| (0..10).contains(level));
            levels.next().map(|level| level as u8)
        };
        let form = encodings.iter().find_map(|encoding| match *encoding {
            encoding::RAW => Some(Form::Raw),
            encoding::ZRLE => Some(Form::Zrle),
            encoding::TIGHT => Some(Form::Tight {
                quality: level(encoding::QUALITY_0),
            }),
            _ => None,
        });
        Self {
            form: form.unwrap_or_default(),
            level: level(encoding::COMPRESSION_0),
            moves: has(encoding::COPY_RECT),
            last_rect: has(encoding::LAST_RECT),
            cursor: if has(encoding::ALPHA_CURSOR) {
                Some(CursorForm::Alpha)
            } else {
                has(encoding::CURSOR).then_some(CursorForm::Mask)
            },
            desktop_size: has(encoding::DESKTOP_SIZE),
            extended_desktop_size: has(encoding::EXTENDED_DESKTOP_SIZE),
            keys: has(encoding::QEMU_KEYS),
            more_buttons: has(encoding::MORE_BUTTONS),
            fences: has(encoding::FENCE),
            continuous: has(encoding::CONTINUOUS_UPDATES),
            clipboard: has(encoding::CLIPBOARD),
        }
    }
}

/// A rectangle of an update that has no pixels of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pseudo {
    DesktopSize(Size),
    /// The layout: because this viewer asked (with what came of it), or for another reason.
    Layout {
        size: Size,
        answer: Option<SizeAnswer>,
    },
    Cursor(Arc<Cursor>, CursorForm),
    Keys,
    MoreButtons,
}

/// An update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Update {
    pub format: PixelFormat,
    pub form: Form,
    pub level: u32,
    /// It may end before its count of rectangles.
    pub last_rect: bool,
    /// Sizes; they are an update of their own before the rest, in which nothing is drawn.
    pub sizes: Vec<Pseudo>,
    pub pseudo: Vec<Pseudo>,
    /// What is to be moved before anything is drawn.
    pub change: Option<Move>,
    pub rects: Vec<Rect>,
    /// A fence behind it.
    pub fence: Vec<u8>,
}

/// What is to be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    Send {
        /// Messages beside updates.
        owed: Vec<u8>,
        update: Option<Update>,
    },
    /// The viewer is gone.
    End,
}

/// The viewer wants too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("more fences than it takes answers")]
pub(super) struct Flood;

/// See the module.
pub(super) struct Wishes {
    format: PixelFormat,
    known: Known,
    view: View,
    /// The size that the viewer knows of.
    size: Size,
    /// What it has asked an update of.
    request: Option<Rect>,
    /// The part of that which it wants whether it has changed or not.
    whole: Rect,
    continuous: Option<Rect>,
    owed: Vec<u8>,
    owes_layout: bool,
    owes_keys: bool,
    owes_buttons: bool,
    clip: Clip,
    size_answer: Option<SizeAnswer>,
    /// A fence of ours is not answered.
    is_fenced: bool,
    is_gone: bool,
}

impl Wishes {
    /// Those of a viewer that has been told the canvas' size and nothing else.
    pub(super) fn new(canvas: &Canvas, clipboard: Clipboard) -> Self {
        let mut view = View::default();
        view.take_size(canvas);
        Self {
            format: PixelFormat::NATIVE,
            known: Known::default(),
            view,
            size: canvas.size(),
            request: None,
            whole: Rect::default(),
            continuous: None,
            owed: Vec::new(),
            owes_layout: false,
            owes_keys: false,
            owes_buttons: false,
            clip: Clip::new(clipboard),
            size_answer: None,
            is_fenced: false,
            is_gone: false,
        }
    }

    /// The size that the viewer knows of.
    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// The pixels of a rectangle of an update have been copied as they are now.
    pub(super) fn gave(&mut self, canvas: &Canvas, rect: Rect) {
        self.view.gave(canvas, rect);
    }

    /// Nothing is to be sent any more.
    pub(super) fn go(&mut self) {
        self.is_gone = true;
    }

    /// The viewer has asked for a size.
    pub(super) fn answer_size(&mut self, answer: SizeAnswer) {
        self.size_answer = Some(answer);
    }

    /// Hears a message; those that are about keys, the pointer and the size are not for here.
    pub(super) fn hear(&mut self, message: Message) -> Result<(), Flood> {
        match message {
            Message::Format(format) => self.format = format,
            Message::Encodings(encodings) => {
                let before = std::mem::replace(&mut self.known, Known::of(&encodings));
                let known = self.known;
                if known.fences && !before.fences {
                    self.owe(&fence_message(fence::REQUEST, &[]))?;
                }
                if known.continuous && !before.continuous {
                    self.owe(&[to_client::END_OF_CONTINUOUS_UPDATES])?;
                }
                self.owes_keys |= known.keys && !before.keys;
                self.owes_buttons |= known.more_buttons && !before.more_buttons;
                self.clip.set_extended(known.clipboard);
                self.owes_layout |= known.extended_desktop_size && !before.extended_desktop_size;
            }
            Message::Request { incremental, rect } => {
                let before = self.request.unwrap_or_default();
                self.request = Some(before.unite(rect));
                if !incremental {
                    self.whole = self.whole.unite(rect);
                    self.owes_layout = self.known.extended_desktop_size;
                }
            }
            Message::Continuous { on: true, rect } => self.continuous = Some(rect),
            Message::Continuous { on: false, .. } => {
                if self.continuous.take().is_some() {
                    self.owe(&[to_client::END_OF_CONTINUOUS_UPDATES])?;
                }
            }
            Message::Fence { flags, payload } if flags & fence::REQUEST != 0 => {
                let flags = flags & (fence::BLOCK_BEFORE | fence::BLOCK_AFTER);
                self.owe(&fence_message(flags, &payload))?;
            }
            Message::Fence { payload, .. } => self.is_fenced &= payload != FENCE_PAYLOAD,
            Message::CutText(text) => self.clip.hear_text(&text),
            Message::Clipboard(content) => self.clip.hear(&content),
            Message::Key { .. }
            | Message::Scancode { .. }
            | Message::Pointer { .. }
            | Message::Size { .. } => {}
        }
        Ok(())
    }

    fn owe(&mut self, message: &[u8]) -> Result<(), Flood> {
        if self.owed.len() + message.len() > OWED_BYTES_MAX {
            return Err(Flood);
        }
        self.owed.extend_from_slice(message);
        Ok(())
    }

    /// What is to be sent now, if anything. It counts as sent.
    pub(super) fn take(&mut self, canvas: &Canvas) -> Option<Work> {
        if self.is_gone {
            return Some(Work::End);
        }
        let update = self.take_update(canvas);
        let mut owed = std::mem::take(&mut self.owed);
        owed.extend(self.clip.take());
        if owed.is_empty() && update.is_none() {
            return None;
        }
        Some(Work::Send { owed, update })
    }

    fn take_update(&mut self, canvas: &Canvas) -> Option<Update> {
        let continuous = self.continuous.filter(|_| !self.is_fenced);
        if self.request.is_none() && continuous.is_none() {
            return None;
        }
        let (mut sizes, mut pseudo) = (Vec::new(), Vec::new());
        let (mut change, mut rects) = (None, Vec::new());
        if self.view.take_size(canvas) && self.size != canvas.size() && self.can_follow() {
            // Pixels come with the next update, which the viewer asks for at its new size.
            self.size = canvas.size();
            self.owes_layout = false;
            sizes.push(if self.known.extended_desktop_size {
                let size = self.size;
                Pseudo::Layout { size, answer: None }
            } else {
                Pseudo::DesktopSize(self.size)
            });
        } else {
            self.take_sizes(&mut sizes);
            self.take_pseudo(canvas, &mut pseudo);
            let region = self.request.unwrap_or_default();
            let region = region.unite(continuous.unwrap_or_default());
            let region = region.intersect(self.size.rect());
            self.view.forget(canvas, self.whole);
            if self.known.moves {
                change = self.view.take_move(canvas, region);
            }
            rects = self.view.take_pixels(canvas, region);
            // A viewer that cannot follow sees of a larger screen what fits.
            rects.iter_mut().for_each(|rect| {
                *rect = rect.intersect(self.size.rect());
            });
            self.whole = Rect::default();
        }
        if sizes.is_empty() && pseudo.is_empty() && change.is_none() && rects.is_empty() {
            return None;
        }
        self.request = None;
        let fences = continuous.is_some() && self.known.fences;
        self.is_fenced |= fences;
        Some(Update {
            format: self.format,
            form: self.known.form,
            level: self
                .known
                .level
                .map_or(LEVEL, |level| u32::from(level).clamp(1, LEVEL_MAX)),
            last_rect: self.known.last_rect,
            sizes,
            pseudo,
            change,
            rects,
            fence: if fences {
                fence_message(fence::REQUEST | fence::BLOCK_BEFORE, FENCE_PAYLOAD)
            } else {
                Vec::new()
            },
        })
    }

    fn can_follow(&self) -> bool {
        self.known.desktop_size || self.known.extended_desktop_size
    }

    fn take_sizes(&mut self, sizes: &mut Vec<Pseudo>) {
        let size = self.size;
        if let Some(answer) = self.size_answer.take() {
            let answer = Some(answer);
            sizes.push(Pseudo::Layout { size, answer });
        }
        if std::mem::take(&mut self.owes_layout) {
            sizes.push(Pseudo::Layout { size, answer: None });
        }
    }

    fn take_pseudo(&mut self, canvas: &Canvas, pseudo: &mut Vec<Pseudo>) {
        if std::mem::take(&mut self.owes_keys) {
            pseudo.push(Pseudo::Keys);
        }
        if std::mem::take(&mut self.owes_buttons) {
            pseudo.push(Pseudo::MoreButtons);
        }
        if let Some(form) = self.known.cursor
            && let Some(cursor) = self.view.take_cursor(canvas)
        {
            pseudo.push(Pseudo::Cursor(cursor, form));
        }
    }
}
