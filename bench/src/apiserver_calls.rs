//! The calls that the API server received, by its own metrics.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::api::Api;

/// The kinds that the operator reads and writes. The API server also calls itself, for other kinds.
const KINDS: [&str; 6] = [
    "idtokenrequests",
    "idtokengrants",
    "secrets",
    "namespaces",
    "events",
    "serviceaccounts",
];

/// The number of calls of each verb and resource, such as `PATCH idtokenrequests/status`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Calls {
    finished: BTreeMap<String, f64>,
    watches: f64,
    dropped: f64,
}

impl Calls {
    /// Reads the calls for the operator's kinds (`apiserver_request_total`), the open watches (`apiserver_longrunning_requests`), and
    /// the closed ones (`apiserver_terminated_watchers_total`).
    pub(crate) async fn read(api: &Api) -> Result<Self> {
        Ok(Self::parse(&api.text("metrics").await?))
    }

    fn parse(metrics: &str) -> Self {
        let mut calls = Self::default();
        for line in metrics.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else { continue };
            let resource = label(series, "resource");
            if !KINDS.contains(&resource) {
                continue;
            }
            let verb = label(series, "verb");
            if series.starts_with("apiserver_longrunning_requests{") && verb == "WATCH" {
                calls.watches += value;
            } else if series.starts_with("apiserver_terminated_watchers_total{") {
                calls.dropped += value;
            } else if series.starts_with("apiserver_request_total{") && verb != "WATCH" {
                let name = match label(series, "subresource") {
                    "" => format!("{verb} {resource}"),
                    sub => format!("{verb} {resource}/{sub}"),
                };
                *calls.finished.entry(name).or_default() += value;
            }
        }
        calls
    }

    /// The calls since `before`, without the kinds that had none.
    pub(crate) fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let more = self.finished.iter().map(|(name, count)| {
            let before = before.finished.get(name).copied().unwrap_or_default();
            (name.clone(), count - before)
        });
        more.filter(|(_, more)| *more > 0.0).collect()
    }

    /// The open watches of the operator's kinds.
    pub(crate) fn watches(&self) -> f64 {
        self.watches
    }

    /// The watches that the API server closed because the client or itself was too slow.
    pub(crate) fn dropped(&self) -> f64 {
        self.dropped
    }
}

fn label<'s>(series: &'s str, name: &str) -> &'s str {
    let Some((_, labels)) = series.split_once('{') else {
        return "";
    };
    // No label value contains a comma or a quotation mark.
    let found = labels.trim_end_matches('}').split(',').find_map(|pair| {
        let (label, value) = pair.split_once('=')?;
        (label == name).then(|| value.trim_matches('"'))
    });
    found.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_verb_and_resource() {
        let before = Calls::parse(
            "apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"secrets\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"} 3\n",
        );
        let after = Calls::parse(
            "# TYPE apiserver_request_total counter\n\
             apiserver_request_total{code=\"201\",resource=\"secrets\",subresource=\"\",verb=\"POST\"} 5\n\
             apiserver_request_total{code=\"409\",resource=\"secrets\",subresource=\"\",verb=\"POST\"} 1\n\
             apiserver_request_total{code=\"200\",resource=\"idtokenrequests\",subresource=\"status\",verb=\"PATCH\"} 2\n\
             apiserver_request_total{code=\"200\",resource=\"leases\",subresource=\"\",verb=\"PUT\"} 9\n\
             apiserver_request_total{code=\"200\",resource=\"secrets\",subresource=\"\",verb=\"WATCH\"} 9\n\
             apiserver_longrunning_requests{component=\"apiserver\",resource=\"secrets\",verb=\"WATCH\"} 2\n\
             apiserver_longrunning_requests{component=\"apiserver\",resource=\"pods\",verb=\"WATCH\"} 2\n\
             apiserver_terminated_watchers_total{group=\"\",resource=\"secrets\"} 4\n\
             apiserver_terminated_watchers_total{group=\"\",resource=\"pods\"} 8\n",
        );
        let more = [
            ("PATCH idtokenrequests/status".to_owned(), 2.0),
            ("POST secrets".to_owned(), 3.0),
        ];
        assert_eq!(after.since(&before), more.into());
        assert_eq!((after.watches(), after.dropped()), (2.0, 4.0));
    }
}
