"""From the rounds' results to one table, or to JSON. It measures nothing.

The first backend is compared with each of the others. With one other the table is 80 columns wide;
each more takes 29.
"""

import math
import statistics

# label, measurement, field, unit's divisor, digits, whether more is better (None: no comparison)
ROWS = (
    ("Gbit/s received", None, None, 1, 0, None),
    ("TCP  vm1 -> vm2", "tcp_vm1_vm2", "mbit_s", 1000, 2, True),
    ("TCP  vm2 -> vm1", "tcp_vm2_vm1", "mbit_s", 1000, 2, True),
    ("TCP  vm1 -> host", "tcp_vm1_host", "mbit_s", 1000, 2, True),
    ("TCP  host -> vm1", "tcp_host_vm1", "mbit_s", 1000, 2, True),
    ("UDP  vm1 -> vm2", "udp_vm1_vm2", "mbit_s", 1000, 3, True),
    ("UDP  vm2 -> vm1", "udp_vm2_vm1", "mbit_s", 1000, 3, True),
    ("host CPU, s per Gbit", None, None, 1, 0, None),
    ("TCP  vm1 -> vm2", "tcp_vm1_vm2", "cpu_s_per_gbit", 1, 2, False),
    ("TCP  vm2 -> vm1", "tcp_vm2_vm1", "cpu_s_per_gbit", 1, 2, False),
    ("TCP  vm1 -> host", "tcp_vm1_host", "cpu_s_per_gbit", 1, 2, False),
    ("TCP  host -> vm1", "tcp_host_vm1", "cpu_s_per_gbit", 1, 2, False),
    ("UDP  vm1 -> vm2", "udp_vm1_vm2", "cpu_s_per_gbit", 1, 2, False),
    ("UDP  vm2 -> vm1", "udp_vm2_vm1", "cpu_s_per_gbit", 1, 2, False),
    ("UDP loss, per cent", None, None, 1, 0, None),
    ("UDP  vm1 -> vm2", "udp_vm1_vm2", "loss_percent", 1, 1, None),
    ("UDP  vm2 -> vm1", "udp_vm2_vm1", "loss_percent", 1, 1, None),
    ("ping vm1 -> vm2, ms", None, None, 1, 0, None),
    ("IPv4 least", "ping4", "min", 1, 2, False),
    ("IPv4 average", "ping4", "avg", 1, 2, False),
    ("IPv4 most", "ping4", "max", 1, 2, False),
    ("IPv6 least", "ping6", "min", 1, 2, False),
    ("IPv6 average", "ping6", "avg", 1, 2, False),
    ("IPv6 most", "ping6", "max", 1, 2, False),
)
LABEL, VALUE, RATIO = 28, 21, 8


def _line(label, values=(), ratios=()):
    """The first backend's value, then each other's with the ratio to it."""
    others = zip(values[1:], ratios or [""] * len(values[1:]))
    text = "".join(f"{value:>{VALUE}}{ratio:>{RATIO}}" for value, ratio in others)
    return f"{label:<{LABEL}}{(values or ('',))[0]:>{VALUE}}{text}".rstrip()


def _cell(values, digits):
    """A median with the range of the rounds."""
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _ratio(ours, theirs):
    """The median of the rounds' ratios: what a round has in common, such as a slow minute of the
    machine, cancels out."""
    return statistics.median(a / b if b else math.nan for a, b in zip(ours, theirs))


def _row(row, results):
    label, measurement, field, divisor, digits, more_is_better = row
    if measurement is None:
        return f"\n{label}"
    ours, *others = ([one[measurement][field] / divisor for one in rounds] for rounds in results)
    ratios = ()
    if more_is_better is not None:
        ratios = [f"x{_ratio(ours, theirs):.2f}" for theirs in others]
    return _line(f"  {label}", [_cell(values, digits) for values in (ours, *others)], ratios)


def _losses(rounds):
    """Lost and sent pings over all rounds."""
    pings = [one[name] for one in rounds for name in ("ping4", "ping6")]
    sent = sum(one["sent"] for one in pings)
    return f"{sent - sum(one['received'] for one in pings)} of {sent}"


def table(labels, results, conditions):
    """The table as text; `results` are, for each backend, the results of its rounds."""
    ruler = "=" * (LABEL + VALUE + (len(labels) - 1) * (VALUE + RATIO))
    lines = ["", conditions, ruler, _line("", labels, ["ratio"] * (len(labels) - 1))]
    if len(results[0]) > 1:
        lines.append(_line("", ["median (range)"] * len(labels)))
    lines += [_row(row, results) for row in ROWS]
    lines.append(_line("  lost pings", [_losses(rounds) for rounds in results]))
    lines.append("\noffloads negotiated by the guest")
    for name in results[0][0]["offloads"]:
        lines.append(_line(f"  {name}", [rounds[0]["offloads"][name] for rounds in results]))
    return "\n".join([*lines, ruler])


def document(keys, results, conditions):
    """The same for machines: every round's numbers, and for each other backend the medians of the
    rounds' ratios to it."""
    ratios = {}
    for key, rounds in zip(keys[1:], results[1:]):
        ratios[key] = {}
        for _, measurement, field, _, _, better in ROWS:
            if better is not None:
                pair = [[one[measurement][field] for one in each] for each in (results[0], rounds)]
                ratios[key][f"{measurement}.{field}"] = _ratio(*pair)
    return {**conditions, "backends": dict(zip(keys, results)), "ratios": ratios}
