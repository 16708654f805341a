//! What was measured, for people and for programs.

use serde_json::{Value, json};

/// Figures of the same thing, one per run.
#[derive(Clone, Debug)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    /// At least one figure.
    pub(crate) fn new(mut figures: Vec<f64>) -> Series {
        assert!(!figures.is_empty(), "nothing was measured");
        figures.sort_by(f64::total_cmp);
        Series(figures)
    }

    fn min(&self) -> f64 {
        self.0[0]
    }

    fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 { self.0[middle] } else { f64::midpoint(self.0[middle - 1], self.0[middle]) }
    }

    fn show(&self, digits: usize) -> String {
        if self.0.len() == 1 {
            return format!("{:.digits$}", self.median());
        }
        format!("{:.digits$} / {:.digits$} / {:.digits$}", self.min(), self.median(), self.max())
    }

    fn json(&self) -> Value {
        json!({ "runs": self.0.len(), "min": self.min(), "median": self.median(), "max": self.max() })
    }
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn met(self, figure: f64) -> bool {
        match self {
            Target::AtMost(most) => figure <= most,
            Target::AtLeast(least) => figure >= least,
        }
    }

    fn show(self, digits: usize) -> String {
        match self {
            Target::AtMost(most) => format!("≤ {most:.digits$}"),
            Target::AtLeast(least) => format!("≥ {least:.digits$}"),
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) firn: Series,
    pub(crate) floor: Option<Series>,
    pub(crate) compared: Option<(Comparison, Series)>,
    /// For the median of the comparison where there is one, else for firn's own median.
    pub(crate) target: Option<Target>,
}

/// How firn's figure is compared with its floor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// Divided by it.
    Ratio,
    /// Less it.
    Difference,
}

impl Comparison {
    fn of(self, firn: f64, floor: f64) -> f64 {
        match self {
            Comparison::Ratio => firn / floor,
            Comparison::Difference => firn - floor,
        }
    }

    /// Before the figures, so that one is not taken for the other.
    fn sign(self) -> &'static str {
        match self {
            Comparison::Ratio => "× ",
            Comparison::Difference => "+ ",
        }
    }
}

impl Line {
    /// Pairs of firn's figure and the floor's, taken one after the other; the target is for their ratio.
    pub(crate) fn pairs(name: &str, unit: &'static str, pairs: &[(f64, f64)], target: Target) -> Line {
        Line::compared(name, unit, pairs, Comparison::Ratio, Some(target))
    }

    /// The same, however they are compared.
    pub(crate) fn compared(
        name: &str,
        unit: &'static str,
        pairs: &[(f64, f64)],
        comparison: Comparison,
        target: Option<Target>,
    ) -> Line {
        let compared = pairs.iter().map(|(firn, floor)| comparison.of(*firn, *floor));
        Line {
            name: name.to_owned(),
            unit,
            firn: Series::new(pairs.iter().map(|pair| pair.0).collect()),
            floor: Some(Series::new(pairs.iter().map(|pair| pair.1).collect())),
            compared: Some((comparison, Series::new(compared.collect()))),
            target,
        }
    }

    /// A figure without a floor.
    pub(crate) fn alone(name: &str, unit: &'static str, figures: Vec<f64>, target: Option<Target>) -> Line {
        Line { name: name.to_owned(), unit, firn: Series::new(figures), floor: None, compared: None, target }
    }

    fn met(&self) -> Option<bool> {
        let decisive = self.compared.as_ref().map_or(&self.firn, |(_, series)| series).median();
        self.target.map(|target| target.met(decisive))
    }

    fn verdict(&self) -> String {
        let digits = if self.compared.is_some() { 2 } else { 1 };
        match (self.target, self.met()) {
            (Some(target), Some(true)) => format!("{}  met", target.show(digits)),
            (Some(target), _) => format!("{}  MISSED", target.show(digits)),
            (None, _) => String::new(),
        }
    }
}

/// A table: minimum, median and maximum of each.
pub(crate) fn table(about: &[(&str, String)], lines: &[Line]) -> String {
    let mut text: String = about.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect();
    let rows = lines.iter().map(|line| {
        let digits = if line.firn.median() < 100.0 { 2 } else { 0 };
        [
            format!("{}, {}", line.name, line.unit),
            line.firn.show(digits),
            line.floor.as_ref().map(|floor| floor.show(digits)).unwrap_or_default(),
            line.compared
                .as_ref()
                .map(|(comparison, series)| format!("{}{}", comparison.sign(), series.show(2)))
                .unwrap_or_default(),
            line.verdict(),
        ]
    });
    let head = ["min / median / max", "firn", "floor", "firn to floor", "target"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    text.push('\n');
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// The same as one JSON document.
pub(crate) fn json(about: &[(&str, String)], lines: &[Line], failures: &[String]) -> Value {
    let about: serde_json::Map<String, Value> =
        about.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| {
            let compared = |which| line.compared.as_ref().filter(|(comparison, _)| *comparison == which);
            json!({
                "name": line.name,
                "unit": line.unit,
                "firn": line.firn.json(),
                "floor": line.floor.as_ref().map(Series::json),
                "ratio": compared(Comparison::Ratio).map(|(_, series)| series.json()),
                "difference": compared(Comparison::Difference).map(|(_, series)| series.json()),
                "target": line.target.map(|target| match target {
                    Target::AtMost(most) => json!({ "at_most": most }),
                    Target::AtLeast(least) => json!({ "at_least": least }),
                }),
                "met": line.met(),
            })
        })
        .collect();
    json!({ "about": about, "lines": lines, "failures": failures })
}
