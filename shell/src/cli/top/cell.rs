//! Rows of cells that fit into the width that there is.

use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::cli::columns::Align;

/// A cell to the right of a row's label.
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) align: Align,
    /// How many columns it takes, one between it and the next apart.
    pub(super) width: usize,
    /// It is left out where the whole row has fewer columns.
    pub(super) from: usize,
    pub(super) style: Style,
}

/// A label that takes the columns which the cells leave, and the cells that there is room for. Of
/// several labels it is the first that fits, or else the last.
pub(super) fn row(
    width: usize,
    (labels, style): (&[&str], Style),
    cells: impl IntoIterator<Item = Cell>,
) -> Line<'static> {
    let cells: Vec<_> = cells.into_iter().filter(|cell| width >= cell.from).collect();
    let taken: usize = cells.iter().map(|cell| cell.width + 1).sum();
    let room = width.saturating_sub(taken);
    let label = labels.iter().find(|label| label.width() <= room).or(labels.last());
    let label = fit(label.unwrap_or(&""), room, Align::Left);
    let cells = cells.into_iter().flat_map(|Cell { text, align, width, style, .. }| {
        [Span::raw(" "), Span::styled(fit(&text, width, align), style)]
    });
    [Span::styled(label, style)].into_iter().chain(cells).collect()
}

/// `text` in exactly `width` columns. Of one that is too long the middle is left out, since
/// addresses that have the same beginning have different ends.
pub(super) fn fit(text: &str, width: usize, align: Align) -> String {
    let text = if text.width() <= width { text.to_owned() } else { without_middle(text, width) };
    let space = " ".repeat(width.saturating_sub(text.width()));
    match align {
        Align::Left => text + &space,
        Align::Right => space + &text,
    }
}

fn without_middle(text: &str, width: usize) -> String {
    let Some(room) = width.checked_sub(1) else {
        return String::new();
    };
    let begin = taken(text.chars(), room.div_ceil(2));
    let end: String = taken(text.chars().rev(), room - begin.width()).chars().rev().collect();
    format!("{begin}…{end}")
}

/// As many characters as there are columns for.
fn taken(characters: impl Iterator<Item = char>, width: usize) -> String {
    let mut left = width;
    characters
        .take_while(|c| {
            let taken = c.width().unwrap_or(0);
            let fits = taken <= left;
            left = left.saturating_sub(taken);
            fits
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_width_that_is_asked_for() {
        assert_eq!(fit("dns", 5, Align::Left), "dns  ");
        assert_eq!(fit("dns", 5, Align::Right), "  dns");
        assert_eq!(fit("[2001:db8::1]:53", 9, Align::Left), "[200…]:53");
        assert_eq!(fit("東京都", 4, Align::Left), "東… ");
        assert_eq!(fit("東京都", 5, Align::Left), "東…都");
        assert_eq!(fit("ab", 1, Align::Left), "…");
        assert_eq!(fit("ab", 0, Align::Left), "");
    }

    #[test]
    fn cells_for_which_there_is_no_room_are_left_out() {
        let cells = || {
            [(4, 0), (3, 12)].map(|(width, from)| Cell {
                text: "x".into(),
                align: Align::Right,
                width,
                from,
                style: Style::new(),
            })
        };
        let text =
            |width| row(width, (&["longer name", "name"], Style::new()), cells()).to_string();
        assert_eq!(text(20), "longer name    x   x");
        assert_eq!(text(14), "name     x   x");
        assert_eq!(text(11), "name      x");
        assert_eq!(text(7), "n…    x");
        assert_eq!(text(2), "    x");
    }
}
