"""From the rounds' results to one table, 80 columns wide, or to JSON. It measures nothing."""

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
WIDTH = LABEL + 2 * VALUE + RATIO


def _line(label, ours="", theirs="", ratio=""):
    return f"{label:<{LABEL}}{ours:>{VALUE}}{theirs:>{VALUE}}{ratio:>{RATIO}}".rstrip()


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


def _row(row, ours, theirs):
    label, measurement, field, divisor, digits, more_is_better = row
    if measurement is None:
        return f"\n{label}"
    pair = [[one[measurement][field] / divisor for one in rounds] for rounds in (ours, theirs)]
    ratio = "" if more_is_better is None else f"x{_ratio(*pair):.2f}"
    return _line(f"  {label}", *(_cell(values, digits) for values in pair), ratio)


def _losses(rounds):
    """Lost and sent pings over all rounds."""
    pings = [one[name] for one in rounds for name in ("ping4", "ping6")]
    sent = sum(one["sent"] for one in pings)
    return f"{sent - sum(one['received'] for one in pings)} of {sent}"


def table(labels, ours, theirs, conditions):
    """The table as text; `ours` and `theirs` are the results of the rounds of each backend."""
    lines = ["", conditions, "=" * WIDTH, _line("", *labels, "ratio")]
    if len(ours) > 1:
        lines.append(_line("", *["median (range)"] * 2))
    lines += [_row(row, ours, theirs) for row in ROWS]
    lines.append(_line("  lost pings", _losses(ours), _losses(theirs)))
    lines.append("\noffloads negotiated by the guest")
    for name in ours[0]["offloads"]:
        lines.append(_line(f"  {name}", ours[0]["offloads"][name], theirs[0]["offloads"][name]))
    return "\n".join([*lines, "=" * WIDTH])


def document(keys, ours, theirs, conditions):
    """The same for machines: every round's numbers, and the medians of their ratios."""
    ratios = {}
    for _, measurement, field, _, _, better in ROWS:
        if better is not None:
            pair = [[one[measurement][field] for one in rounds] for rounds in (ours, theirs)]
            ratios[f"{measurement}.{field}"] = _ratio(*pair)
    return {**conditions, "backends": dict(zip(keys, (ours, theirs))), "ratios": ratios}
