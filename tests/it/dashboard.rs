//! The dashboard for Grafana: what its expressions name is what a switch with traffic says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fakeguest::frames::{Frame, mac};
use fakeguest::{Guest, Layout};
use serde_json::Value;

use super::support::http::get;
use super::support::switch::Switch;

const PATIENCE: Duration = Duration::from_secs(60);
/// Labels that Prometheus gives to all that it scrapes.
const SCRAPED: [&str; 2] = ["instance", "job"];

fn dashboard() -> Value {
    serde_json::from_str(include_str!("../../docs/grafana-dashboard.json")).expect("JSON")
}

/// By name: the sets of labels and values that there are.
type Metrics = BTreeMap<String, Vec<BTreeMap<String, String>>>;

fn metrics(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (sample, _) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let pairs = labels.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (label, value) = pair.split_once("=\"").expect("a label");
            (label.to_owned(), value.trim_end_matches('"').to_owned())
        };
        metrics.entry(name.to_owned()).or_default().push(pairs.map(pair).collect());
    }
    metrics
}

/// A switch that has had traffic, of which a guest took too little; what it says.
fn said() -> Metrics {
    let switch = Switch::builder().port("a").port("b").api().start();
    let guest = |port: &str| Guest::builder(switch.socket(port)).ring_size(64).attach();
    let [mut a, mut b] = ["a", "b"].map(|port| guest(port).expect("a guest"));
    b.send(0, &Frame::pattern([0xff; 6], mac(2), 60, 0), &Layout::whole());
    assert!(b.flush(0, PATIENCE));
    for seed in 0..100 {
        a.send(0, &Frame::pattern(mac(2), mac(1), 100, seed), &Layout::whole());
    }
    assert!(a.flush(0, PATIENCE));
    let (status, text) = get(&switch.api_socket(), "/metrics");
    assert_eq!(status, 200);
    switch.stop();
    metrics(&text)
}

/// Where a metric is used in an expression: its name, and its labels with what they are to be.
fn uses(expression: &str) -> Vec<(String, Vec<(String, String)>)> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let of = |(at, _): (usize, &str)| {
        let rest = &expression[at..];
        let (name, rest) = rest.split_at(rest.find(|c| !word(c)).unwrap_or(rest.len()));
        let matchers = rest
            .strip_prefix('{')
            .map_or("", |rest| rest.split_once('}').expect("a bracket that is closed").0);
        let matchers = matchers.split(',').filter(|matcher| !matcher.trim().is_empty());
        let matcher = |matcher: &str| {
            let (label, value) = matcher.split_once('=').expect("a label and a value");
            (label.trim().to_owned(), value.to_owned())
        };
        (name.to_owned(), matchers.map(matcher).collect())
    };
    expression.match_indices("ringswitch_").map(of).collect()
}

/// The labels between these marks, which may come more than once.
fn labels_between<'t>(text: &'t str, begin: &'t str, end: char) -> impl Iterator<Item = &'t str> {
    let parts = text.split(begin).skip(1);
    parts.flat_map(move |part| part.split(end).next().unwrap_or_default().split(',').map(str::trim))
}

/// Panics unless all that this expression and its legend name is there.
fn check(expression: &str, legend: &str, metrics: &Metrics) {
    let uses = uses(expression);
    assert!(!uses.is_empty(), "{expression} asks for nothing of the switch");
    for (name, matchers) in &uses {
        let sets = metrics.get(name).unwrap_or_else(|| panic!("no {name}: {expression}"));
        for (label, value) in matchers.iter().filter(|(label, _)| !SCRAPED.contains(&&label[..])) {
            let has = |set: &BTreeMap<String, String>| {
                // `"x"`, and not `~"$x"`, is one value.
                let exact = value.strip_prefix('"').map(|value| value.trim_end_matches('"'));
                set.get(label).is_some_and(|has| exact.is_none_or(|exact| exact == has))
            };
            assert!(sets.iter().any(has), "{name} has no {label}={value}: {expression}");
        }
    }
    let known: BTreeSet<_> =
        uses.iter().flat_map(|(name, _)| &metrics[name]).flat_map(|set| set.keys()).collect();
    let grouped = labels_between(expression, "by (", ')');
    for label in grouped.chain(labels_between(legend, "{{", '}')) {
        let known = SCRAPED.contains(&label) || known.iter().any(|known| *known == label);
        assert!(known, "nothing has a label {label}: {expression}, {legend}");
    }
}

#[test]
fn what_the_dashboard_asks_for_is_there() {
    let (dashboard, metrics) = (dashboard(), said());
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut asked = 0;
    let (mut ids, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "an id twice: {panel}");
        for target in list(&panel["targets"]) {
            check(&text(&target, "expr"), &text(&target, "legendFormat"), &metrics);
            asked += 1;
        }
        kinds.insert(text(&panel, "type"));
    }
    for annotation in list(&dashboard["annotations"]["list"]) {
        check(&text(&annotation, "expr"), "", &metrics);
    }
    let mut variables = BTreeSet::new();
    for variable in list(&dashboard["templating"]["list"]) {
        variables.insert(text(&variable, "name"));
        let query = text(&variable["query"], "query");
        if let Some((metric, label)) =
            query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", "))
        {
            let label = label.trim_end_matches(')');
            check(metric, &format!("{{{{{label}}}}}"), &metrics);
        }
    }
    assert!(asked > 20 && kinds.len() > 3, "{asked} expressions in panels of {kinds:?}");
    let whole = dashboard.to_string();
    for name in ["$instance", "$port", "${datasource}"] {
        let plain = name.trim_matches(['$', '{', '}']);
        assert!(whole.contains(name) && variables.contains(plain), "{name} of {variables:?}");
    }
}

#[test]
fn an_expression_that_asks_for_something_else_is_noticed() {
    let metrics = metrics("ringswitch_x_total{port=\"a\",reason=\"r\"} 1\n# EOF\n");
    let good = "sum by (port) (rate(ringswitch_x_total{instance=~\"$i\", reason=\"r\"}[5m]))";
    check(good, "{{port}}: {{reason}}", &metrics);
    for (from, to) in [
        ("x_total", "y_total"),
        ("by (port)", "by (worker)"),
        ("reason=\"r\"", "reason=\"s\""),
        ("reason=\"r\"", "queue=\"r\""),
    ] {
        let bad = good.replace(from, to);
        assert!(std::panic::catch_unwind(|| check(&bad, "", &metrics)).is_err(), "{bad}");
    }
    assert!(std::panic::catch_unwind(|| check(good, "{{worker}}", &metrics)).is_err());
}
