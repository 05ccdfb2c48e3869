//! Drawing: a thin layer over SVG text.

use std::fmt::Write as _;

use super::scale::Scale;
use super::words::{escape, short};

/// A drawing under construction.
#[derive(Debug)]
pub(super) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

/// The rectangle in which values are drawn, and its axes.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    pub(super) x: Scale,
    pub(super) y: Scale,
}

impl Plot {
    pub(super) fn x(&self, value: f64) -> f64 {
        self.x.place(value, self.left, self.right)
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        self.y.place(value, self.bottom, self.top)
    }
}

// Writing into a String cannot fail.
impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self {
            body: String::new(),
            width,
            height,
        }
    }

    /// The drawing; `label` is read to those who cannot see it. `style` is for a file that
    /// stands alone.
    pub(super) fn finish(self, label: &str, style: &str) -> String {
        let Self {
            body,
            width,
            height,
        } = self;
        let label = escape(label);
        let style = if style.is_empty() {
            String::new()
        } else {
            format!("<style>{style}</style>\n")
        };
        format!(
            "<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{label}\">\n\
             {style}{body}</svg>"
        )
    }

    pub(super) fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = escape(text);
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>"
        );
    }

    pub(super) fn rule(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>"
        );
    }

    pub(super) fn circle(&mut self, x: f64, y: f64, radius: f64, class: &str) {
        let _ = writeln!(
            self.body,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" class=\"{class}\"/>"
        );
    }

    pub(super) fn bar(&mut self, corner: (f64, f64), size: (f64, f64), class: &str) {
        let ((x, y), (width, height)) = (corner, size);
        if height > 0.0 {
            let _ = writeln!(
                self.body,
                "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" \
                 class=\"{class}\"/>"
            );
        }
    }

    /// An invisible column that shows `text` when the pointer rests on it.
    pub(super) fn tip(&mut self, corner: (f64, f64), size: (f64, f64), text: &str) {
        let ((x, y), (width, height)) = (corner, size);
        let text = escape(text);
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height:.1}\" \
             class=\"hit\"><title>{text}</title></rect>"
        );
    }

    /// A curve; a value that is not finite breaks it, and a lone point becomes a dot.
    pub(super) fn curve(&mut self, plot: &Plot, points: &[(f64, f64)], class: &str) {
        let mut path = String::new();
        for piece in points
            .split(|point| !point.1.is_finite())
            .filter(|piece| !piece.is_empty())
        {
            for (at, (x, y)) in piece.iter().enumerate() {
                let letter = if at == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{letter}{:.1} {:.1}", plot.x(*x), plot.y(*y));
            }
            if piece.len() == 1 {
                path.push_str("h0.1");
            }
        }
        if !path.is_empty() {
            let _ = writeln!(self.body, "<path d=\"{path}\" class=\"{class}\"/>");
        }
    }

    /// Marks and what they stand for, in one line that flows whatever the font's widths.
    pub(super) fn legend(&mut self, at: (f64, f64), entries: &[(&str, &str, &str)]) {
        let (x, y) = at;
        let mut line = String::new();
        for (place, (mark, class, text)) in entries.iter().enumerate() {
            let gap = if place == 0 { "" } else { " dx=\"22\"" };
            let text = escape(text);
            let _ = write!(
                line,
                "<tspan{gap} class=\"{class}\">{mark}</tspan><tspan dx=\"7\">{text}</tspan>"
            );
        }
        let _ = writeln!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\">{line}</text>");
    }

    /// Horizontal lines with their values, and the steps below.
    pub(super) fn axes(&mut self, plot: &Plot, show: fn(f64) -> String) {
        for tick in &plot.y.ticks {
            let y = plot.y(*tick);
            let class = if *tick == plot.y.low { "axis" } else { "grid" };
            self.rule((plot.left, y), (plot.right, y), class);
            self.text(plot.left - 8.0, y + 4.0, "end", &show(*tick));
        }
        for tick in &plot.x.ticks {
            let x = plot.x(*tick);
            self.rule((x, plot.bottom), (x, plot.bottom + 4.0), "axis");
            // The last label must not stick out.
            let near_end = x > self.width - 24.0;
            let (x, class) = if near_end {
                (x + 4.0, "end")
            } else {
                (x, "middle")
            };
            self.text(x, plot.bottom + 18.0, class, &short(*tick));
        }
    }

    pub(super) fn width(&self) -> f64 {
        self.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot() -> Plot {
        let scale = || Scale {
            low: 0.0,
            high: 10.0,
            ticks: vec![0.0, 10.0],
        };
        Plot {
            left: 0.0,
            right: 100.0,
            top: 0.0,
            bottom: 50.0,
            x: scale(),
            y: scale(),
        }
    }

    #[test]
    fn curves_break_where_there_is_nothing() {
        let mut svg = Svg::new(100.0, 50.0);
        let points = [(0.0, 0.0), (1.0, 10.0), (2.0, f64::NAN), (3.0, 5.0)];
        svg.curve(&plot(), &points, "line");
        svg.curve(&plot(), &[(0.0, f64::NAN)], "line");
        let text = svg.finish("a <label>", "");
        assert!(
            text.contains("d=\"M0.0 50.0L10.0 0.0M30.0 25.0h0.1\""),
            "{text}"
        );
        assert_eq!(text.matches("<path").count(), 1);
        assert!(text.contains("aria-label=\"a &lt;label&gt;\"") && !text.contains("<style>"));
    }
}
