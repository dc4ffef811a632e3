//! Numbers as people read them.

use std::io::IsTerminal;
use std::time::Duration;

/// `1234567` as `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `48_210` events in one second as `48.2 k/s`.
pub(super) fn rate(events: u64, span: Duration) -> String {
    let per_second = if span.is_zero() { 0.0 } else { events as f64 / span.as_secs_f64() };
    scaled(per_second, &["/s", "k/s", "M/s", "G/s"])
}

/// `1_900_000` nanoseconds as `1.9 ms`.
pub(super) fn time(nanos: u64) -> String {
    scaled(nanos as f64 / 1e3, &["µs", "ms", "s"])
}

/// `1_900_000` bytes as `1.9 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A stretch of time in its two largest units: `3d 4h`, `3m 12s`; below a second, `420 ms`.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    if seconds == 0 {
        return format!("{} ms", span.as_millis());
    }
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// Whether standard output is shown to a person who has nothing against colours
/// (<https://no-color.org>).
pub(super) fn wants_colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The same of a number of seconds. One that is no time is none.
pub(super) fn seconds(seconds: f64) -> String {
    span(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// `1` of `3` as `33.3 %`.
pub(super) fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * fraction(part, whole))
}

/// A part of a whole; of nothing, nothing.
pub(super) fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A number in the first of `units`, each a thousand times the one before, in which it has at most
/// three digits before the point.
fn scaled(mut number: f64, units: &[&str]) -> String {
    let mut index = 0;
    // Compared with what rounds to 1,000, so that nothing is shown as "1000 k/s".
    while number >= 999.5 && index + 1 < units.len() {
        number /= 1e3;
        index += 1;
    }
    let decimals = if index > 0 && number < 99.95 { 1 } else { 0 };
    format!("{number:.decimals$} {}", units[index])
}

/// A horizontal bar that fills `fraction` of `width` columns, to an eighth of a column.
pub(super) fn bar(fraction: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (fraction.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    let drawn = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    format!("{drawn:width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_a_comma_at_every_thousand() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
    }

    #[test]
    fn rates_have_three_digits_and_a_unit() {
        let second = Duration::from_secs(1);
        assert_eq!(rate(0, second), "0 /s");
        assert_eq!(rate(999, second), "999 /s");
        assert_eq!(rate(48_210, second), "48.2 k/s");
        assert_eq!(rate(999_600, second), "1.0 M/s");
        assert_eq!(rate(240_000, second * 2), "120 k/s");
        assert_eq!(rate(5, Duration::ZERO), "0 /s");
    }

    #[test]
    fn times_start_at_microseconds() {
        assert_eq!(time(84_200), "84 µs");
        assert_eq!(time(999_600), "1.0 ms");
        assert_eq!(time(12_340_000), "12.3 ms");
        assert_eq!(time(2_000_000_000), "2.0 s");
    }

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_900_000), "1.9 MB");
        assert_eq!(bytes(u64::MAX), "18447 PB");
    }

    #[test]
    fn spans_have_two_units() {
        assert_eq!(span(Duration::from_millis(420)), "420 ms");
        assert_eq!(span(Duration::from_millis(59_999)), "59s");
        assert_eq!(span(Duration::from_secs(192)), "3m 12s");
        assert_eq!(span(Duration::from_secs(7_260)), "2h 1m");
        assert_eq!(span(Duration::from_secs(273_125)), "3d 3h");
    }

    #[test]
    fn shares_of_nothing_are_nothing() {
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(0, 0), "0.0 %");
    }

    #[test]
    fn bars_fill_their_part_of_the_width() {
        assert_eq!(bar(0.0, 4), "    ");
        assert_eq!(bar(0.5, 4), "██  ");
        assert_eq!(bar(0.53, 4), "██▏ ");
        assert_eq!(bar(1.0, 4), "████");
    }
}
