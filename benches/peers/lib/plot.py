"""The tables as one SVG: for each table a panel, for each size a group of bars, one bar per
backend. The height is Gbit/s relative to the group's highest, so that all sizes are readable; the
figures stand above the bars, and a line shows the range of the rounds.
"""

from xml.sax.saxutils import escape

COLOURS = {"testpmd": "#9aa5b1", "ovs": "#e0a458", "ovs-flow": "#c8793a", "ringswitch": "#2b6cb0"}
BAR, GAP, GROUP_GAP = 58, 6, 44
MARGIN, TOP, HEIGHT, FOOT = 60, 74, 220, 64
PANEL = TOP + HEIGHT + FOOT


def _text(left, top, text, size=12, anchor="middle", weight="normal"):
    return (f'<text x="{left:.1f}" y="{top:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(text)}</text>')


def _bar(row, left, base, scale):
    """A bar with its range, its figures above and its ratio below."""
    gbit = row["bytes"] * 8 / 1000
    low, high = (base - row[field] * gbit * scale for field in ("mpps_min", "mpps_max"))
    top, middle = base - row["gbit_s"] * scale, left + BAR / 2
    label = min(top, high) - 6
    parts = [f'<rect x="{left}" y="{top:.1f}" width="{BAR}" height="{base - top:.1f}" '
             f'fill="{COLOURS.get(row["backend"], "#666")}"/>',
             f'<path d="M{middle} {low:.1f}V{high:.1f}M{middle - 5} {low:.1f}h10'
             f'M{middle - 5} {high:.1f}h10" stroke="#222" fill="none"/>',
             _text(middle, label - 12, f"{row['mpps']:.2f}", weight="bold"),
             _text(middle, label, f"{row['gbit_s']:.1f}", 10)]
    if row["x_testpmd"] is not None:
        parts.append(_text(middle, base + 14, f"x{row['x_testpmd']:.2f}", 11))
    return parts


def _groups(of_table):
    groups = {}
    for row in of_table:
        groups.setdefault(row["bytes"], []).append(row)
    return groups


def _width(of_table):
    return 2 * MARGIN + sum(len(group) * (BAR + GAP) + GROUP_GAP
                            for group in _groups(of_table).values())


def _panel(title, conditions, of_table, top):
    base, left = top + TOP + HEIGHT, MARGIN
    parts = [_text(MARGIN, top + 20, title, 16, "start", "bold"),
             _text(MARGIN, top + 37, conditions, 11, "start")]
    for size, group in _groups(of_table).items():
        width = len(group) * (BAR + GAP) - GAP
        highest = max(row["mpps_max"] for row in group) * size * 8 / 1000
        for at, row in enumerate(group):
            parts += _bar(row, left + at * (BAR + GAP), base, (HEIGHT - 30) / highest)
        parts += [f'<path d="M{left - 8} {base}h{width + 16}" stroke="#222"/>',
                  _text(left + width / 2, base + 34, f"{size:,} B", 13, weight="bold")]
        left += width + GAP + GROUP_GAP
    return parts


def svg(panels, heading):
    """`panels`: (title, conditions, rows) of each table; `heading`: the machine."""
    width = max(640, *(_width(of_table) for _, _, of_table in panels))
    height = 60 + PANEL * len(panels) + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
             f'viewBox="0 0 {width} {height}" font-family="sans-serif" fill="#222">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             _text(MARGIN, 22, heading, 12, "start")]
    left = MARGIN
    for name in dict.fromkeys(row["backend"] for _, _, rows in panels for row in rows):
        parts += [f'<rect x="{left}" y="32" width="12" height="12" '
                  f'fill="{COLOURS.get(name, "#666")}"/>', _text(left + 17, 42, name, 12, "start")]
        left += 40 + 7 * len(name)
    parts.append(_text(left, 42, "above: median Mpps, Gbit/s; line: range; below: ratio to testpmd",
                       11, "start"))
    for number, panel in enumerate(panels):
        parts += _panel(*panel, 52 + number * PANEL)
    return "\n".join([*parts, "</svg>", ""])
