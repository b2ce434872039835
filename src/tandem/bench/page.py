"""A report as one HTML file that loads nothing: tables, and plots drawn here."""

from collections.abc import Sequence
from html import escape
from typing import Any

from tandem.bench import plots, report
from tandem.bench.plots import Bar
from tandem.bench.report import headlines, number, several

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #666e78; --line: #d8dce1; --ground: #fff;
  --a: #2f6fde; --b: #d9772b; --good: #1a7f37; --bad: #c2321f }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3ad; --line: #363c44; --ground: #15181c;
  --a: #6ea2ff; --b: #f0a25e; --good: #4fc46f; --bad: #ff7b6b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1100px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p { overflow-wrap: anywhere } .soft { color: var(--soft) }
.warn { border-left: 4px solid var(--bad); padding: .2rem .8rem; white-space: pre-wrap }
.scrolls { overflow-x: auto; margin: .8rem 0 } table { border-collapse: collapse }
td, th { padding: .15rem 1rem .15rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums }
.pass { color: var(--good) } .fail, .not.measured, .growing { color: var(--bad) }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1rem }
svg { width: 100%; height: auto } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
svg .title { fill: var(--ink); font-weight: 600; font-size: 12px }
svg .A, svg .p50 { fill: var(--a); stroke: none } svg .B, svg .p95 { fill: var(--b); stroke: none }
svg .area { fill-opacity: .4 } svg .line { fill: none; stroke: var(--a); stroke-width: 1.8 }
svg .line.B, svg .line.p95 { stroke: var(--b) }
svg .axis, svg .whisker { stroke: var(--ink) } svg .grid { stroke: var(--line) }
"""

# What each kind of request is counted in.
_SPEED = {"embeddings": "texts_per_second", "completions": "requests_per_second", "streams": "events_per_second"}


def render(found: dict[str, Any]) -> str:
    """The page of a report as :func:`tandem.bench.report.build` makes it."""
    machine = found["machine"]
    memory = f", {machine['memory'] / 2**30:.0f} GiB" if "memory" in machine else ""
    where = f"{machine['cpu']}, {machine['cores']} cores{memory}, {machine['system']}, Python {machine['python']}"
    parts = [
        f"<h1>tandem bench: {escape(', '.join(found['scenarios']))}</h1>",
        f'<p class="soft">{escape(found["started"])} · {escape(where)} · Tandem {escape(found["tandem"])}, '
        f"seed {found['seed']}</p>",
        *(f'<p class="warn">{escape(line)}</p>' for line in headlines(found)),
        _sides(found["sides"]),
        _targets(found["targets"]),
        *(_case(case, list(found["sides"])) for case in found["cases"]),
        _soak(found["soak"]) if found["soak"] else "",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>tandem bench, {escape(found['started'])}</title>"
    body = "\n".join(part for part in parts if part)
    top = f'<!DOCTYPE html>\n<html lang="en"><head>{head}{title}<style>{_STYLE}</style></head>'
    return f"{top}\n<body>\n{body}\n</body></html>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f'<tr class="{kinds[at] if kinds else ""}">{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>'
        for at, row in enumerate(rows)
    )
    return f'<div class="scrolls"><table><tr>{top}</tr>{body}</table></div>'


def _sides(sides: dict[str, Any]) -> str:
    rows = [
        [name, side["url"], ", ".join(f"{kind}: {model}" for kind, model in side["models"].items())]
        for name, side in sides.items()
    ]
    return _table(["", "address", "models"], rows)


def _targets(found: Sequence[dict[str, Any]]) -> str:
    asked = [target for target in found if target["outcome"] != "not asked"]
    rows = [
        [
            target["name"],
            target["wanted"],
            "" if target["measured"] is None else number(target["measured"]),
            target["outcome"],
        ]
        for target in asked
    ]
    return "<h2>Targets</h2>" + _table(["target", "wanted", "A", ""], rows, [target["outcome"] for target in asked])


def _case(case: dict[str, Any], sides: Sequence[str]) -> str:
    if not case["rounds"]:
        return f"<h2>{escape(case['name'])}</h2><p>Nothing was measured.</p>"
    head, rows = report.table(case, sides)
    return (
        f"<h2>{escape(case['name'])}</h2>"
        f'<p class="soft">{escape(described(case))}</p>'
        f"{_table(head, rows)}"
        f'<div class="plots">{"".join(_plots(case, sides))}</div>'
    )


def described(case: dict[str, Any]) -> str:
    """One line: how hard, how long, with what."""
    load, shape = case["load"], case["shape"]
    how = several(load["clients"], "client") if load["rate"] is None else f"{load['rate']:g} requests/s, open loop"
    with_ = (
        f"{several(shape['texts'], 'text')} of {several(shape['words'], 'word')}"
        if case["kind"] == "embeddings"
        else f"a prompt of {several(shape['words'], 'word')}, {several(shape['max_tokens'], 'token')}"
    )
    rounds = max((one["number"] for one in case["rounds"]), default=0)
    return f"{how}, {rounds} x {load['seconds']:g} s after {load['warm_up']:g} s of warm-up; {with_} a request"


def _plots(case: dict[str, Any], sides: Sequence[str]) -> list[str]:
    speed = _SPEED[case["kind"]]
    mine = {side: [one["figures"] for one in case["rounds"] if one["side"] == side] for side in sides}
    by_round = {
        side: [Bar(value, value, value) for value in (found.get(speed, 0.0) for found in rounds)]
        for side, rounds in mine.items()
    }
    most = max(len(rounds) for rounds in mine.values())
    drawn = [plots.bars(f"{speed.partition('_')[0]}/s, by round", [str(at + 1) for at in range(most)], by_round)]
    for name, label in (("latency", "latency"), ("first_event", "time to first event"), ("gap", "between events")):
        summary = {side: _bars(case["summary"][side], name) for side in sides}
        if any(summary.values()):
            drawn.append(plots.bars(f"{label}, ms", ["p50", "p95", "p99"], summary))
    counted = {
        side: [(low * 1000, high * 1000, count) for low, high, count in buckets]
        for side, buckets in case["latency_histogram"].items()
    }
    return [*drawn, plots.histogram("requests by latency, ms", counted)]


def _bars(summary: dict[str, Any], name: str) -> list[Bar]:
    found = [summary[f"{name}_{at}"] for at in ("p50", "p95", "p99") if f"{name}_{at}" in summary]
    return [Bar(*(one[part] * 1000 for part in ("median", "low", "high"))) for one in found]


def memory_line(soak: dict[str, Any]) -> str:
    """What became of the memory, in one sentence."""
    if (memory := soak["memory"]) is None:
        return "Memory was not measured: no process of this machine was seen to listen there, or for too short a time."
    per_hour, error = memory["bytes_per_hour"] / 2**20, memory["standard_error"] / 2**20
    return (
        f"Memory is {memory['verdict']}: from {memory['start'] / 2**20:.1f} MiB, "
        f"{per_hour:+.3f} MiB/h with a standard error of {error:.3f}."
    )


def _soak(soak: dict[str, Any]) -> str:
    rows = soak["rows"]
    resident = [(row["at"] / 3600, row["resident"] / 2**20) for row in rows if row["resident"]]
    latencies = {
        at: [(row["at"] / 3600, row[at] * 1000) for row in rows if row[at] is not None] for at in ("p50", "p95")
    }
    failed = sum(row["errors"] for row in rows)
    asked = sum(row["requests"] for row in rows)
    buckets = [(low * 1000, high * 1000, count) for low, high, count in soak["latency_histogram"]]
    drawn = [
        plots.curve("resident memory, MiB, by hours", {"A": resident}),
        plots.curve("latency, ms, by hours", latencies),
        plots.curve("errors a row, by hours", {"A": [(row["at"] / 3600, float(row["errors"])) for row in rows]}),
        plots.histogram("requests by latency, ms", {"A": buckets}),
    ]
    return (
        f"<h2>soak</h2><p>{escape(memory_line(soak))}</p>"
        f"<p>{several(asked, 'request')} ({escape(', '.join(soak['kinds']))}, in turn), {failed:,} of them failed; "
        f'{several(len(rows), "row")}.</p><div class="plots">{"".join(drawn)}</div>'
    )
