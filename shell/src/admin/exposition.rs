//! Prometheus's two text formats: 0.0.4, and OpenMetrics 1.0.0.

use std::fmt::{Display, Write};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// 0.0.4, for clients that ask for nothing else.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The one that an `Accept` header likes best.
    pub(super) fn negotiate(accept: &str) -> Self {
        let (mut open_metrics, mut text) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map(str::parse::<f32>);
            let weight = weight.and_then(Result::ok).unwrap_or(1.0);
            match kind.as_str() {
                "application/openmetrics-text" => open_metrics = weight.max(open_metrics),
                "text/plain" | "text/*" | "*/*" => text = weight.max(text),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows. Its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How many observations were at most so large, how many there were, and their sum.
    Histogram,
    /// It is always 1, and its labels say something. Its name ends in `_info`.
    Info,
}

impl Kind {
    /// The end of the name that OpenMetrics leaves out of the family's name, and the type.
    const fn in_open_metrics(self) -> (&'static str, &'static str) {
        match self {
            Self::Counter => ("_total", "counter"),
            Self::Gauge => ("", "gauge"),
            Self::Histogram => ("", "histogram"),
            Self::Info => ("_info", "info"),
        }
    }

    const fn in_text(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge | Self::Info => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A text that is being written.
#[derive(Debug)]
pub(super) struct Exposition {
    format: Format,
    text: String,
}

impl Exposition {
    pub(super) const fn new(format: Format) -> Self {
        Self { format, text: String::new() }
    }

    /// Begins a metric. All its samples follow, before the next one begins.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let (family, kind) = match self.format {
            Format::Text => (name, kind.in_text()),
            Format::OpenMetrics => {
                let (suffix, kind) = kind.in_open_metrics();
                (name.strip_suffix(suffix).unwrap_or(name), kind)
            }
        };
        self.put(format_args!("# HELP {family} {help}\n# TYPE {family} {kind}\n"));
        Family { exposition: self, name }
    }

    /// The whole text.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn put(&mut self, text: impl Display) {
        // A String takes everything.
        let _ = write!(self.text, "{text}");
    }
}

/// A metric whose samples are being written.
pub(super) struct Family<'e> {
    exposition: &'e mut Exposition,
    name: &'static str,
}

impl Family<'_> {
    pub(super) fn sample(
        &mut self,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) -> &mut Self {
        self.sample_of("", labels, value)
    }

    /// A sample whose name has an end that the family's has not, as those of histograms have.
    pub(super) fn sample_of(
        &mut self,
        suffix: &str,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) -> &mut Self {
        let exposition = &mut *self.exposition;
        exposition.text.push_str(self.name);
        exposition.text.push_str(suffix);
        for (number, (label, value)) in labels.iter().enumerate() {
            exposition.text.push(if number == 0 { '{' } else { ',' });
            exposition.put(format_args!("{label}=\"{}\"", escaped(&value.to_string())));
        }
        exposition.put(format_args!("{} {value}\n", if labels.is_empty() { "" } else { "}" }));
        self
    }
}

/// As the formats have it, with control characters other than the newline as the log shows them:
/// `\u{1b}`. They have no escape of their own, a NUL ends the text for some readers, and a person
/// may read it in a terminal.
fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            c if c.is_control() => escaped.push_str(&format!("\\\\u{{{:x}}}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(format: Format) -> String {
        let mut exposition = Exposition::new(format);
        exposition
            .family("a_total", Kind::Counter, "Help.")
            .sample(&[("x", &"1"), ("y", &2)], 3)
            .sample(&[], 4);
        exposition.family("b", Kind::Gauge, "Help.").sample(&[], 0.5);
        exposition.family("c_info", Kind::Info, "Help.").sample(&[("v", &"1")], 1);
        exposition.finish()
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let samples = |format| {
            let text = sample(format);
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let expected = ["a_total{x=\"1\",y=\"2\"} 3", "a_total 4", "b 0.5", "c_info{v=\"1\"} 1"];
        assert_eq!(samples(Format::Text), expected);
        assert_eq!(samples(Format::OpenMetrics), expected);
    }

    #[test]
    fn open_metrics_names_families_without_their_suffix() {
        let text = sample(Format::Text);
        assert!(text.contains("# TYPE a_total counter\n"), "{text}");
        assert!(text.contains("# TYPE c_info gauge\n"), "{text}");
        let open_metrics = sample(Format::OpenMetrics);
        assert!(open_metrics.contains("# TYPE a counter\n"), "{open_metrics}");
        assert!(open_metrics.contains("# TYPE c info\n"), "{open_metrics}");
        assert!(open_metrics.ends_with("\n# EOF\n"), "{open_metrics}");
    }

    #[test]
    fn no_name_breaks_a_line_or_a_terminal() {
        assert_eq!(escaped("a\\b\"c\nd"), r#"a\\b\"c\nd"#);
        assert_eq!(escaped("\u{1b}[31m\0\r\u{9b}"), r"\\u{1b}[31m\\u{0}\\u{d}\\u{9b}");
        assert_eq!(escaped("münchen <b>"), "münchen <b>");
    }

    #[test]
    fn the_format_is_what_the_client_likes_best() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,\
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text; q=0.2, text/plain; q=0.8", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("text/plain", Format::Text),
            ("*/*", Format::Text),
            ("", Format::Text),
            (";;q=,,", Format::Text),
        ] {
            assert_eq!(Format::negotiate(accept), format, "{accept}");
        }
    }
}
