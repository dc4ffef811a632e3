//! Tables of aligned columns.

use std::fmt;

use anstyle::Style;
use unicode_width::UnicodeWidthStr;

/// How the cells of a column stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// How a cell is drawn, by what it says.
type Paint = fn(&str) -> Style;

/// A table. Its cells are [escaped](crate::admin::escape) already.
pub(super) struct Table<const N: usize> {
    heads: [(&'static str, Align); N],
    rows: Vec<[String; N]>,
    /// How the cells of a column are drawn, by what they say.
    paint: Option<(usize, Paint)>,
}

impl<const N: usize> Table<N> {
    pub(super) const fn new(heads: [(&'static str, Align); N]) -> Self {
        Self { heads, rows: Vec::new(), paint: None }
    }

    /// Draws the cells of a column as `style` says.
    pub(super) const fn paint(&mut self, column: usize, style: Paint) {
        self.paint = Some((column, style));
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How wide a column is: as its widest cell.
    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].width());
        cells.chain([self.heads[column].0.width()]).max().unwrap_or(0)
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: [usize; N] = std::array::from_fn(|column| self.width(column));
        let heads = self.heads.map(|(head, _)| head.to_owned());
        for (number, row) in [&heads].into_iter().chain(&self.rows).enumerate() {
            let mut line = String::new();
            for (column, ((cell, width), (_, align))) in
                row.iter().zip(widths).zip(self.heads).enumerate()
            {
                let space = " ".repeat(width.saturating_sub(cell.width()));
                let style = self.paint.filter(|(painted, _)| *painted == column && number > 0);
                let style = style.map_or(Style::new(), |(_, style)| style(cell));
                let cell = format!("{style}{cell}{style:#}");
                line += &match align {
                    Align::Left => format!("{cell}{space}  "),
                    Align::Right => format!("{space}{cell}  "),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_on_the_screen() {
        let mut table = Table::new([("NAME", Align::Left), ("N", Align::Right), ("", Align::Left)]);
        assert!(table.is_empty());
        table.row(["東京".into(), "1,000".into(), "x".into()]);
        table.row(["zürich".into(), "7".into(), String::new()]);
        let expected = "\
NAME        N
東京    1,000  x
zürich      7
";
        assert_eq!(table.to_string(), expected);
    }
}
