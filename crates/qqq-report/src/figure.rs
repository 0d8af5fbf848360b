//! What figures have in common.

use plotters::prelude::*;

/// Colours of the lines, told apart by most colour-blind people too; markers help.
pub(crate) const COLOURS: [RGBColor; 8] = [
    RGBColor(0x00, 0x60, 0xa8),
    RGBColor(0xc6, 0x46, 0x00),
    RGBColor(0x00, 0x7a, 0x58),
    RGBColor(0xa0, 0x24, 0x6b),
    RGBColor(0x7a, 0x5c, 0x00),
    RGBColor(0x5b, 0x45, 0xc9),
    RGBColor(0x44, 0x44, 0x44),
    RGBColor(0x8a, 0x33, 0x24),
];

/// Colour of series `index`.
pub fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// The mark of series `index` at a place: a disc or a ring.
pub fn marker<C>(at: C, index: usize) -> Circle<C, i32> {
    let colour = colour(index);
    Circle::new(at, 4, if index.is_multiple_of(2) { colour.filled() } else { colour.stroke_width(2) })
}

/// Without repetition, in order of appearance.
pub fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in all {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}
