"""From samples to rows, and from rows to a Markdown table or JSON. It measures nothing.

A sample is a window's dict (generators.py) with `backend`, `size` and `round`.
"""

import statistics

COLUMNS = ("bytes", "backend", "Mpps [range]", "Gbit/s", "x testpmd", "x ovs", "cycles/frame",
           "own cycles", "one way, us", "guests busy", "quiet")
BASES = ("testpmd", "ovs")


def _median(samples, field, scale=1.0):
    values = [sample[field] * scale for sample in samples if sample.get(field) is not None]
    return statistics.median(values) if values else None


def _ratio(samples, base):
    """The median of the ratios of the same round, with the base of each backend."""
    rates = {sample["round"]: sample["pps"] for sample in base}
    ratios = [sample["pps"] / rates[sample["round"]] for sample in samples
              if rates.get(sample["round"])]
    return statistics.median(ratios) if ratios else None


def _quiet(samples):
    """Those that nobody disturbed; all, if there is none."""
    return [sample for sample in samples if sample["quiet"]] or samples


def rows(samples, tsc_hz):
    """One dict for each size and backend, in the order of the samples."""
    groups = {}
    for sample in samples:
        groups.setdefault((sample["size"], sample["backend"]), []).append(sample)
    return [_row(key, group, groups, tsc_hz) for key, group in groups.items()]


def _row(key, group, groups, tsc_hz):
    size, backend = key
    good = _quiet(group)
    rates = [sample["pps"] / 1e6 for sample in good]
    mpps = statistics.median(rates)
    row = {"bytes": size, "backend": backend, "mpps": mpps, "mpps_min": min(rates),
           "mpps_max": max(rates), "gbit_s": mpps * size * 8 / 1000,
           "cycles_per_frame": tsc_hz / 1e6 / mpps, "own_cycles": _median(good, "own_cycles"),
           # Little's law: frames on their way = rate x time.
           "one_way_us": group[0]["flying"] / mpps, "p50_us": _median(good, "ns_p50", 1e-3),
           "p99_us": _median(good, "ns_p99", 1e-3), "guests_busy": _median(good, "gen_busy"),
           "windows": len(group), "quiet": sum(sample["quiet"] for sample in group)}
    for base in BASES:
        there = groups.get((size, base))
        row[f"x_{base}"] = _ratio(good, _quiet(there)) if there else None
    return row


def _number(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


def _cells(row):
    way = _number(row["one_way_us"], 2)
    if row["p50_us"] is not None:
        way += f" (p50 {row['p50_us']:.2f}, p99 {row['p99_us']:.2f})"
    return (str(row["bytes"]), row["backend"],
            f"{row['mpps']:.3f} [{row['mpps_min']:.3f}-{row['mpps_max']:.3f}]",
            _number(row["gbit_s"], 1), _number(row["x_testpmd"], 2), _number(row["x_ovs"], 2),
            _number(row["cycles_per_frame"], 0), _number(row["own_cycles"], 0), way,
            _number(row["guests_busy"], 2), f"{row['quiet']}/{row['windows']}")


def markdown(of_table):
    """A Markdown table whose columns also line up in a terminal."""
    lines = [COLUMNS, *map(_cells, of_table)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(COLUMNS))]

    def text(line):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text(lines[0]), rule, *map(text, lines[1:])])
