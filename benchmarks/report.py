"""Medians with their spread, and tables in Markdown."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Median, least and most: ``9,810 (9,700 to 9,900)``; just the value where there is only one."""
    median = format(statistics.median(values), form)
    return median if len(values) == 1 else f"{median} ({min(values):{form}} to {max(values):{form}})"


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that at least ``share`` of all values do not exceed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)  # rounded up
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line with the least squared distance from ``points``; 0 where they do not tell."""
    try:
        return statistics.linear_regression(*zip(*points, strict=True)).slope
    except (statistics.StatisticsError, TypeError):
        return 0.0


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column to the left, all others to the right, padded so that it can be read as it is."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = f"|{'|'.join('-' * (width + 1) + (':' if i else '-') for i, width in enumerate(widths))}|"
    return "\n".join([line(head), rule, *map(line, rows)])
