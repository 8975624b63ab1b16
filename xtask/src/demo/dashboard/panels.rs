//! The panels of the dashboard, and the answers of Prometheus to their queries.

use anyhow::Result;
use idtoken_testenv::Prometheus;
use jiff::Timestamp;
use serde_json::Value;

/// The title of the first row that is not drawn.
const END: &str = "Operator";
/// The range of rates: Grafana takes at least four times the interval of the scrapes.
const RATE_INTERVAL: &str = "20s";

/// A panel.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    /// Grafana's type, such as `timeseries`.
    pub(super) kind: String,
    /// Grafana's name of the unit, such as `s`.
    pub(super) unit: String,
    /// Column, row, width and height, in Grafana's grid of 24 columns.
    pub(super) area: [u32; 4],
    /// Query and legend.
    queries: Vec<(String, String)>,
}

/// A line: its legend, and points of seconds since the start and value.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) legend: String,
    pub(super) points: Vec<(f64, f64)>,
}

impl Panel {
    /// The panels and rows that are drawn.
    pub(super) fn all(dashboard: &Value) -> Vec<Self> {
        let panels = dashboard["panels"].as_array().into_iter().flatten();
        let panels = panels.take_while(|panel| panel["title"] != END);
        panels.map(Self::of).collect()
    }

    fn of(panel: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let targets = panel["targets"].as_array().into_iter().flatten();
        let area = ["x", "y", "w", "h"].map(|key| {
            let cells = panel["gridPos"][key].as_u64().unwrap_or(0);
            u32::try_from(cells).unwrap_or(0)
        });
        Self {
            title: text(&panel["title"]),
            kind: text(&panel["type"]),
            unit: text(&panel["fieldConfig"]["defaults"]["unit"]),
            area,
            queries: targets
                .map(|target| (text(&target["expr"]), text(&target["legendFormat"])))
                .collect(),
        }
    }

    /// What Prometheus answers to its queries: one point every `step` seconds since `started`.
    ///
    /// # Errors
    /// When Prometheus refuses a query.
    pub(super) async fn series(
        &self,
        prometheus: &Prometheus,
        started: Timestamp,
        step: u64,
    ) -> Result<Vec<Series>> {
        let mut all = Vec::new();
        for (query, legend) in &self.queries {
            let query = query
                .replace("$namespace", ".*")
                .replace("$__rate_interval", RATE_INTERVAL)
                .replace("[1h]", "[5m]");
            let range = [
                ("query", query.as_str()),
                ("start", &started.to_string()),
                ("end", &Timestamp::now().to_string()),
                ("step", &step.to_string()),
            ];
            let data = prometheus.api("query_range", &range).await?;
            let results = data["result"].as_array().into_iter().flatten();
            all.extend(results.map(|result| Series::of(result, legend, started)));
        }
        Ok(all)
    }
}

impl Series {
    fn of(result: &Value, legend: &str, started: Timestamp) -> Self {
        let values = result["values"].as_array().into_iter().flatten();
        let point = |value: &Value| {
            let at = value[0].as_f64()? - started.as_second() as f64;
            let value: f64 = value[1].as_str()?.parse().ok()?;
            value.is_finite().then_some((at, value))
        };
        Self {
            legend: filled(legend, &result["metric"]),
            points: values.filter_map(point).collect(),
        }
    }

    /// Its last value.
    pub(super) fn last(&self) -> Option<f64> {
        self.points.last().map(|(_, value)| *value)
    }
}

/// Grafana's legend with the values of the labels; of `__auto` the values of all labels.
fn filled(legend: &str, labels: &Value) -> String {
    let labels = labels.as_object().into_iter().flatten();
    let labels = labels.map(|(name, value)| (name, value.as_str().unwrap_or_default()));
    if legend == "__auto" {
        return labels.map(|(_, value)| value).collect::<Vec<_>>().join(" ");
    }
    labels.fold(legend.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{{{name}}}}}"), value)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_legend_has_the_values_of_labels() {
        let labels = json!({"endpoint": "sts", "code": "200"});
        assert_eq!(filled("{{endpoint}} {{code}}", &labels), "sts 200");
        assert_eq!(filled("__auto", &labels), "200 sts");
        assert_eq!(filled("due", &labels), "due");
    }

    #[test]
    fn panels_up_to_the_operator_are_drawn() {
        let dashboard = json!({"panels": [
            {"title": "Google", "type": "row", "gridPos": {"x": 0, "y": 1, "w": 24, "h": 1}},
            {"title": "Operator", "type": "row"},
        ]});
        let panels = Panel::all(&dashboard);
        assert_eq!(panels.len(), 1);
        assert_eq!(panels[0].area, [0, 1, 24, 1]);
    }
}
