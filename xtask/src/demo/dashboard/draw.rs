//! Draws panels as Grafana places them.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::STEP;
use super::panels::{Panel, Series};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// Pixels of a cell of the grid.
const CELL: (u32, u32) = (50, 30);
/// Pixels between panels.
const GAP: u32 = 4;
/// Pixels of a title, and of a line of the legend.
const TITLE: u32 = 24;
const LEGEND: u32 = 16;
/// Characters of a legend's text that have room.
const LETTERS: f64 = 6.2;

const BACKGROUND: RGBColor = RGBColor(17, 18, 23);
const PANEL: RGBColor = RGBColor(24, 27, 31);
const GRID: RGBColor = RGBColor(44, 48, 53);
const TEXT: RGBColor = RGBColor(204, 204, 220);
const LINES: [RGBColor; 8] = [
    RGBColor(115, 191, 105),
    RGBColor(250, 222, 42),
    RGBColor(87, 148, 242),
    RGBColor(255, 152, 48),
    RGBColor(242, 73, 92),
    RGBColor(184, 119, 217),
    RGBColor(112, 219, 237),
    RGBColor(255, 120, 10),
];

/// The text of an SVG of `minutes` of the panels.
///
/// # Errors
/// When the library refuses.
pub(super) fn draw(panels: &[(Panel, Vec<Series>)], minutes: f64) -> Result<String, Box<dyn Error>> {
    let rows = panels
        .iter()
        .map(|(panel, _)| panel.area[1] + panel.area[3])
        .max();
    let size = (24 * CELL.0, rows.unwrap_or(1) * CELL.1);
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    root.fill(&BACKGROUND)?;
    for (panel, series) in panels {
        let [x, y, width, height] = panel.area;
        let area = root.clone().shrink(
            (x * CELL.0 + GAP, y * CELL.1 + GAP),
            (width * CELL.0 - 2 * GAP, height * CELL.1 - 2 * GAP),
        );
        one(&area, panel, series, minutes)?;
    }
    root.present()?;
    drop(root);
    Ok(svg)
}

fn one(area: &Area<'_>, panel: &Panel, series: &[Series], minutes: f64) -> Drawn {
    let title = ("sans-serif", 14).into_font().color(&TEXT);
    if panel.kind == "row" {
        area.draw_text(&panel.title, &title, (2, 4))?;
        return Ok(());
    }
    area.fill(&PANEL)?;
    area.draw_text(&panel.title, &title, (8, 6))?;
    let body = area.margin(TITLE, 4, 8, 8);
    match panel.kind.as_str() {
        "stat" => stat(&body, panel, series),
        "table" => table(&body, panel, series),
        "heatmap" => heatmap(&body, series, minutes),
        _ => lines(&body, panel, series, minutes),
    }
}

fn stat(body: &Area<'_>, panel: &Panel, series: &[Series]) -> Drawn {
    let value = series.first().and_then(Series::last);
    let text = value.map_or("No data".to_owned(), |value| format(value, &panel.unit));
    let style = ("sans-serif", 38).into_font().color(&LINES[0]);
    body.draw_text(&text, &style, (4, 22))?;
    Ok(())
}

fn table(body: &Area<'_>, panel: &Panel, series: &[Series]) -> Drawn {
    let mut rows: Vec<(&str, f64)> = series
        .iter()
        .filter_map(|series| Some((series.legend.as_str(), series.last()?)))
        .collect();
    rows.sort_by(|a, b| a.1.total_cmp(&b.1));
    let style = ("sans-serif", 13).into_font().color(&TEXT);
    let (width, _) = body.dim_in_pixel();
    for (y, (name, value)) in (8..).step_by(24).zip(rows) {
        body.draw_text(name, &style, (4, y))?;
        body.draw_text(&format(value, &panel.unit), &style, (width as i32 / 2, y))?;
    }
    Ok(())
}

fn lines(body: &Area<'_>, panel: &Panel, series: &[Series], minutes: f64) -> Drawn {
    let (width, height) = body.dim_in_pixel();
    let rows = legend_rows(series, width);
    let (plot, legend) = body.split_vertically(height - LEGEND * rows);
    let all = || series.iter().flat_map(|series| &series.points);
    let top = all().map(|(_, value)| *value).fold(0.0, f64::max);
    let bottom = all().map(|(_, value)| *value).fold(0.0, f64::min);
    let top = if top == bottom { bottom + 1.0 } else { top * 1.1 };
    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(18)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..minutes, bottom..top)?;
    axes(&mut chart, 5, &|value| format(*value, &panel.unit))?;
    for (line, colour) in series.iter().zip(LINES.iter().cycle()) {
        // No line where Prometheus has no value.
        for piece in line.points.chunk_by(|a, b| b.0 - a.0 < 1.5 * STEP as f64) {
            let points = piece.iter().map(|(at, value)| (at / 60.0, *value));
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        }
    }
    let style = ("sans-serif", 11).into_font().color(&TEXT);
    let (mut x, mut y) = (4, 2);
    for (line, colour) in series.iter().zip(LINES.iter().cycle()) {
        let wide = legend_width(line);
        if x > 4 && x + wide > width as i32 {
            (x, y) = (4, y + LEGEND as i32);
        }
        legend.draw(&Rectangle::new([(x, y + 5), (x + 10, y + 8)], colour.filled()))?;
        legend.draw_text(&line.legend, &style, (x + 14, y))?;
        x += wide;
    }
    Ok(())
}

fn legend_width(line: &Series) -> i32 {
    28 + (line.legend.chars().count() as f64 * LETTERS) as i32
}

fn legend_rows(series: &[Series], width: u32) -> u32 {
    let (mut rows, mut x) = (1, 4);
    for wide in series.iter().map(legend_width) {
        if x > 4 && x + wide > width as i32 {
            (rows, x) = (rows + 1, 4);
        }
        x += wide;
    }
    rows
}

/// The series are counts up to a bound, `le`; a cell is what is between two bounds.
fn heatmap(body: &Area<'_>, series: &[Series], minutes: f64) -> Drawn {
    let mut buckets: Vec<(f64, &Series)> = series
        .iter()
        .map(|series| (series.legend.parse().unwrap_or(f64::INFINITY), series))
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let names: Vec<String> = buckets.iter().map(|(bound, _)| bound_name(*bound)).collect();
    let mut chart = ChartBuilder::on(body)
        .x_label_area_size(18)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..minutes, 0.0..buckets.len() as f64)?;
    axes(&mut chart, names.len() + 1, &|row| {
        names.get(*row as usize).cloned().unwrap_or_default()
    })?;
    let mut below: Option<&Series> = None;
    for (row, (_, bucket)) in buckets.iter().enumerate() {
        let cells = bucket.points.iter().filter_map(|(at, count)| {
            let less = below.and_then(|below| below.points.iter().find(|point| point.0 == *at));
            let count = count - less.map_or(0.0, |point| point.1);
            let corners = [
                (at / 60.0, row as f64),
                ((at + STEP as f64) / 60.0, row as f64 + 1.0),
            ];
            let colour = LINES[3].mix((count / 20.0).clamp(0.15, 1.0));
            (count > 0.0).then(|| Rectangle::new(corners, colour.filled()))
        });
        chart.draw_series(cells)?;
        below = Some(bucket);
    }
    Ok(())
}

fn bound_name(bound: f64) -> String {
    match bound.is_finite() {
        true => format(bound, "s"),
        false => "more".to_owned(),
    }
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn axes(chart: &mut Chart<'_, '_>, rows: usize, name: &dyn Fn(&f64) -> String) -> Drawn {
    chart
        .configure_mesh()
        .x_labels(6)
        .y_labels(rows)
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(("sans-serif", 11).into_font().color(&TEXT))
        .x_label_formatter(&|minutes| format!("{minutes:.0} min"))
        .y_label_formatter(&|value| name(value))
        .draw()?;
    Ok(())
}

/// A value with its unit.
fn format(value: f64, unit: &str) -> String {
    let number = |value: f64| {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let size = value.abs();
    match unit {
        "s" if size >= 60.0 => format!("{} min", number((value / 6.0).round() / 10.0)),
        "s" if size >= 1.0 || size == 0.0 => format!("{} s", number((value * 10.0).round() / 10.0)),
        "s" => format!("{} ms", number((value * 1000.0).round())),
        "ops" => format!("{}/s", number(value)),
        _ => number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_units() {
        assert_eq!(format(94.2, "s"), "1.6 min");
        assert_eq!(format(-12.34, "s"), "-12.3 s");
        assert_eq!(format(0.0352, "s"), "35 ms");
        assert_eq!(format(0.5, "ops"), "0.5/s");
        assert_eq!(format(33.0, "none"), "33");
    }
}
