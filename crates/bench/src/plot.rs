//! Line charts as SVG text. Colours, fonts and line styles are the page's: here are classes only (`s0`, `s1`, ... for
//! the colour of a series, `dashed` for its line), so that a page can be read in light and dark.

use std::fmt::Write;

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;
/// Colours that the page has.
pub(crate) const NUM_COLOURS: usize = 8;
/// A logarithmic axis begins where lines reach this height; what is left of it is drawn on the edge. Pieces of text that
/// came in one packet are a microsecond apart, and would take up most of the axis.
const LOW_END: f64 = 0.05;
/// About how many lines a linear axis has.
const NUM_TICKS: f64 = 5.0;

/// A chart.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub x: XAxis,
    pub y: YAxis,
    pub series: Vec<Series>,
    /// What whole and dashed lines stand for, if there are both; then the legend has each colour once.
    pub lines: Vec<String>,
}

/// What stands below.
#[derive(Debug)]
pub(crate) enum XAxis {
    /// Named places at equal distances; points have their number as x.
    Places(Vec<String>),
    /// Decades; points at or below 0 are left out.
    Log,
}

/// What stands at the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum YAxis {
    /// From 0 to the largest value.
    FromZero,
    /// From 0 to 100 %; values are fractions.
    Percent,
}

/// From a value to its place on the page.
type PageScale = Box<dyn Fn(f64) -> f64>;

/// One line.
#[derive(Debug)]
pub(crate) struct Series {
    pub name: String,
    pub colour: usize,
    pub(crate) is_dashed: bool,
    pub points: Vec<(f64, f64)>,
}

impl Chart {
    /// The chart with its legend, or `None` if there is nothing to show.
    pub(crate) fn to_html(&self) -> Option<String> {
        if self.series.iter().all(|series| series.points.is_empty()) {
            return None;
        }
        let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
        let (x, x_ticks) = self.x_scale();
        let (y, y_ticks) = self.y_scale();
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for (value, label) in &y_ticks {
            let at = y(*value);
            let _ = write!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
            let _ = write!(out, "<text class=\"end\" x=\"{}\" y=\"{:.1}\">{label}</text>", LEFT - 7.0, at + 4.0);
        }
        for (value, label) in &x_ticks {
            let at = x(*value);
            let _ = write!(out, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>");
            let _ = write!(out, "<text class=\"mid\" x=\"{at:.1}\" y=\"{}\">{}</text>", bottom + 17.0, escape(label));
        }
        let middle = (LEFT + right) / 2.0;
        let _ =
            write!(out, "<text class=\"mid\" x=\"{middle}\" y=\"{}\">{}</text>", HEIGHT - 8.0, escape(&self.x_label));
        let middle = (TOP + bottom) / 2.0;
        let turned = format!("transform=\"rotate(-90 14 {middle})\"");
        let _ = write!(out, "<text class=\"mid\" x=\"14\" y=\"{middle}\" {turned}>{}</text>", escape(&self.y_label));
        for series in &self.series {
            self.line(series, &x, &y, &mut out);
        }
        out.push_str("</svg>");
        Some(out + &self.legend())
    }

    fn line(&self, series: &Series, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64, out: &mut String) {
        let colour = series.colour % NUM_COLOURS;
        let dashed = if series.is_dashed { " dashed" } else { "" };
        let is_log = matches!(self.x, XAxis::Log);
        let shown = series.points.iter().filter(|(px, _)| !is_log || *px > 0.0);
        let places: Vec<(f64, f64)> = shown.map(|(px, py)| (x(*px), y(*py))).collect();
        let points: Vec<String> = places.iter().map(|(px, py)| format!("{px:.1},{py:.1}")).collect();
        let _ = write!(out, "<polyline class=\"s{colour}{dashed}\" points=\"{}\"/>", points.join(" "));
        if !is_log {
            for ((px, py), (_, value)) in places.iter().zip(&series.points) {
                let _ = write!(
                    out,
                    "<circle class=\"s{colour}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3.5\"><title>{}: {}</title></circle>",
                    escape(&series.name),
                    tick(*value)
                );
            }
        }
    }

    fn legend(&self) -> String {
        let mut out = String::from("<p class=\"legend\">");
        let mut key = |class: &str, name: &str| {
            let line = format!("<line class=\"{class}\" x1=\"1\" x2=\"25\" y1=\"5\" y2=\"5\"/>");
            let name = escape(name);
            let _ = write!(out, "<span><svg class=\"key\" viewBox=\"0 0 26 10\">{line}</svg>{name}</span> ");
        };
        let is_shown = |series: &&Series| self.lines.is_empty() || !series.is_dashed;
        for series in self.series.iter().filter(is_shown) {
            key(&format!("s{}", series.colour % NUM_COLOURS), &series.name);
        }
        for (name, class) in self.lines.iter().zip(["plain", "plain dashed"]) {
            key(class, name);
        }
        out + "</p>"
    }

    fn x_scale(&self) -> (PageScale, Vec<(f64, String)>) {
        let width = WIDTH - LEFT - RIGHT;
        match &self.x {
            XAxis::Places(names) => {
                let step = width / names.len().max(1) as f64;
                let ticks = names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect();
                (Box::new(move |v| LEFT + (v + 0.5) * step), ticks)
            }
            XAxis::Log => {
                let points = || self.series.iter().flat_map(|s| &s.points).filter(|(x, _)| *x > 0.0);
                let low = points().filter(|(_, y)| *y >= LOW_END).map(|p| p.0).fold(f64::MAX, f64::min);
                let high = points().map(|p| p.0).fold(0.0, f64::max);
                let (low, high) = if low > high { (1.0, 10.0) } else { (low.log10() - 0.03, high.log10() + 0.03) };
                let (low, high) = if high - low < 0.3 { (low - 0.2, high + 0.2) } else { (low, high) };
                let ticks = log_ticks(low, high).into_iter().map(|v| (v, tick(v))).collect();
                (Box::new(move |v| LEFT + (v.log10().max(low) - low) / (high - low) * width), ticks)
            }
        }
    }

    fn y_scale(&self) -> (PageScale, Vec<(f64, String)>) {
        let height = HEIGHT - TOP - BOTTOM;
        let (top, ticks): (f64, Vec<(f64, String)>) = match self.y {
            YAxis::Percent => (1.0, [0, 25, 50, 75, 100].map(|p| (f64::from(p) / 100.0, format!("{p} %"))).into()),
            YAxis::FromZero => {
                let (top, values) =
                    linear_ticks(self.series.iter().flat_map(|s| &s.points).map(|p| p.1).fold(0.0, f64::max));
                (top, values.into_iter().map(|v| (v, tick(v))).collect())
            }
        };
        (Box::new(move |v| TOP + (1.0 - v / top) * height), ticks)
    }
}

/// The end of an axis from 0 that holds `max`, and round values along it.
fn linear_ticks(max: f64) -> (f64, Vec<f64>) {
    let max = if max > 0.0 && max.is_finite() { max } else { 1.0 };
    let rough = max / NUM_TICKS;
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * decade).find(|s| *s >= rough).unwrap_or(decade * 10.0);
    let num_steps = (max / step).ceil().max(1.0) as usize;
    let values = (0..=num_steps).map(|i| i as f64 * step).collect();
    (num_steps as f64 * step, values)
}

/// Round values between two logarithms: powers of ten over many decades, more of each decade over few.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let factors: &[f64] = match high - low {
        width if width > 3.0 => &[1.0],
        width if width > 0.9 => &[1.0, 2.0, 5.0],
        _ => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
    };
    let decades = (low.floor() as i32)..=(high.ceil() as i32);
    let values = decades.flat_map(|decade| factors.iter().map(move |f| f * 10f64.powi(decade)));
    values.filter(|v| (low..=high).contains(&v.log10())).collect()
}

/// A value beside an axis, without needless digits.
fn tick(value: f64) -> String {
    if value >= 10_000.0 && value % 1000.0 == 0.0 {
        return format!("{}k", value / 1000.0);
    }
    let text = if value.abs() < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Text within HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_values_that_hold_every_point() {
        for (max, top, num) in [(0.0, 1.0, 6), (7.3, 8.0, 5), (100.0, 100.0, 6), (1234.0, 1500.0, 4), (0.034, 0.04, 5)]
        {
            let (got, values) = linear_ticks(max);
            assert!((got - top).abs() < 1e-9, "{max}: {got}");
            assert_eq!(values.len(), num, "{max}: {values:?}");
        }
        assert_eq!(log_ticks(0.0, 1.0), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(log_ticks(-1.0, 4.0), [0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0]);
        let labels = [0.0, 0.5, 0.25, 10.0, 1500.0, 20_000.0].map(tick);
        assert_eq!(labels, ["0", "0.5", "0.25", "10", "1500", "20k"]);
    }

    #[test]
    fn a_chart_has_every_point_and_escapes_names() {
        let series = Series { name: "a<b".into(), colour: 9, is_dashed: true, points: vec![(0.0, 1.0), (1.0, 3.0)] };
        let places = XAxis::Places(vec!["1".into(), "4".into()]);
        let chart = Chart {
            x_label: "x".into(),
            y_label: "y".into(),
            x: places,
            y: YAxis::FromZero,
            series: vec![series],
            lines: vec![],
        };
        let html = chart.to_html().expect("there are points");
        assert_eq!(html.matches("<circle").count(), 2);
        assert!(html.contains("s1 dashed") && html.contains("a&lt;b") && !html.contains("a<b"));
        assert!(Chart { series: Vec::new(), ..chart }.to_html().is_none());
    }
}
