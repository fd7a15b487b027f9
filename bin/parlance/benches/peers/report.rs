//! The tables, as Markdown.

use std::fs;

use super::row::{CALLERS, Cell, DECODERS, Row, median};

/// What stands before and behind the tables in the page.
const BEGIN: &str = "<!-- bench-inference writes from here -->\n";
const END: &str = "<!-- to here -->\n";

/// Everything that was measured.
pub(crate) fn tables(rows: &[Row], passes: u64) -> String {
    let parts = [conditions(passes), rates(rows), latencies(rows), decodes(rows), ratios(rows)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

/// The page with the tables in the place of the former ones.
pub(crate) fn put_into(page: &str, tables: &str) -> String {
    let (before, rest) = page.split_once(BEGIN).expect("the page says where");
    let (_, after) = rest.split_once(END).expect("the page says until where");
    format!("{before}{BEGIN}\n{tables}\n{END}{after}")
}

fn conditions(passes: u64) -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let names: Vec<&str> = processors.lines().filter_map(|line| line.strip_prefix("model name\t: ")).collect();
    let name = names.first().unwrap_or(&"unknown processor");
    format!("{} cores of {name}; passes: {passes}.\n", names.len())
}

fn rates(rows: &[Row]) -> String {
    let head = CALLERS.map(|callers| callers.to_string()).into_iter();
    let head = head.chain(["prefill of 512", "peak memory", "cold start"].map(str::to_owned));
    let line = |row: &Row| {
        let rates = row.cells.iter().map(|cell| format!("{:.0}", cell.rate()));
        let rest = [
            format!("{:.0}", median(&row.prefills)),
            format!("{} MiB", row.peak_bytes >> 20),
            format!("{:.2} s", row.cold_start()),
        ];
        rates.chain(rest).collect()
    };
    table("new tokens/s at so many callers", head.collect(), rows, line)
}

fn latencies(rows: &[Row]) -> String {
    let cell = |cell: &Cell| {
        let [first, first_99, gap, gap_99] = [cell.first(50), cell.first(99), cell.gap(50), cell.gap(99)];
        format!("{first:.0} / {first_99:.0}; {gap:.0} / {gap_99:.0}")
    };
    let head = CALLERS.map(|callers| callers.to_string()).to_vec();
    let title = "first token p50 / p99; token to token p50 / p99, ms";
    table(title, head, rows, |row| row.cells.iter().map(cell).collect())
}

fn decodes(rows: &[Row]) -> String {
    let head = DECODERS.map(|callers| callers.to_string()).into_iter();
    let head = head.chain(["prompt tokens", "of them cached", "new tokens"].map(str::to_owned));
    let line = |row: &Row| {
        let rates = row.decodes.iter().map(|rates| format!("{:.0}", median(rates)));
        let usages: Vec<_> = row.cells.iter().flat_map(|cell| &cell.usages).collect();
        let mean = |total: u64| format!("{:.1}", total as f64 / usages.len() as f64);
        let counts = [
            mean(usages.iter().map(|usage| usage.prompt_tokens).sum()),
            mean(usages.iter().map(|usage| usage.cached_tokens).sum()),
            mean(usages.iter().map(|usage| usage.new_tokens).sum()),
        ];
        rates.chain(counts).collect()
    };
    table("decoding alone, tokens/s; what the server counted per answer", head.collect(), rows, line)
}

/// Our first two over the best of the others, whose name stands with it; nothing if nobody else is there.
fn ratios(rows: &[Row]) -> String {
    let (ours, peers): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.is_ours);
    if peers.is_empty() {
        return String::new();
    }
    ours.iter().take(2).map(|ours| ratios_of(ours, &peers)).collect::<Vec<_>>().join("\n")
}

fn ratios_of(ours: &Row, peers: &[&Row]) -> String {
    let highest = |value: &dyn Fn(&Row) -> f64| ratio(ours, peers, value, f64::gt);
    let lowest = |value: &dyn Fn(&Row) -> f64| ratio(ours, peers, value, f64::lt);
    let each = |ratio: &dyn Fn(usize) -> String| (0..CALLERS.len()).map(ratio).collect::<Vec<_>>().join(" | ");
    let name = &ours.name;
    let lines = [
        format!("| {name} / best peer | {} |", CALLERS.map(|callers| callers.to_string()).join(" | ")),
        format!("|---|{}", "---|".repeat(CALLERS.len())),
        format!("| new tokens/s | {} |", each(&|at| highest(&|row| row.cells[at].rate()))),
        format!("| first token p50 | {} |", each(&|at| lowest(&|row| row.cells[at].first(50)))),
        format!("| first token p99 | {} |\n", each(&|at| lowest(&|row| row.cells[at].first(99)))),
        format!("Prefill of 512 tokens: {}.", highest(&|row| median(&row.prefills))),
        format!("Peak memory: {}.\n", lowest(&|row| row.peak_bytes as f64)),
    ];
    lines.join("\n")
}

fn ratio(ours: &Row, peers: &[&Row], value: &dyn Fn(&Row) -> f64, better: fn(&f64, &f64) -> bool) -> String {
    let best = peers.iter().copied().reduce(|best, peer| if better(&value(peer), &value(best)) { peer } else { best });
    let best = best.expect("there are peers");
    format!("{:.2} ({})", value(ours) / value(best), best.name)
}

fn table(title: &str, head: Vec<String>, rows: &[Row], line: impl Fn(&Row) -> Vec<String>) -> String {
    let mut lines = vec![format!("| {title} | {} |", head.join(" | ")), format!("|---|{}", "---|".repeat(head.len()))];
    lines.extend(rows.iter().map(|row| format!("| {} | {} |", row.name, line(row).join(" | "))));
    lines.join("\n") + "\n"
}
