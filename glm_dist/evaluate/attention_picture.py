"""Who looks at whom, as a heat map: a square a head, its rows and columns named by their tokens.

SVG written by hand, as of an explanation, because tokens can be in any script.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

CELL, GAP, MARGIN, FONT_SIZE = 22, 28, 16, 13
PER_LINE = 3
"""Heads beside each other."""
COLOR, HIDDEN = "#2166ac", "#eeeeee"


def draw_attention(
    path: Path, tokens: Sequence[str], shares: np.ndarray, seen: np.ndarray, titles: Sequence[str]
) -> None:
    """The heads of one layer; what a token cannot see is grey.

    Args:
        path: of the picture.
        tokens: [S], as they are read.
        shares: [heads, S, S].
        seen: who sees whom, bool [S, S].
        titles: of the heads.
    """
    names = [token.strip() or "␣" for token in tokens]
    label = 8 + max(_width(name) for name in names)
    side = label + CELL * len(names)
    squares = [
        _square(names, head, seen, title, *_place(number, side, label))
        for number, (head, title) in enumerate(zip(shares, titles, strict=True))
    ]
    columns, lines = min(PER_LINE, len(squares)), -(-len(squares) // PER_LINE)
    width = MARGIN * 2 + columns * side + (columns - 1) * GAP
    height = MARGIN * 2 + lines * (side + FONT_SIZE + GAP)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="sans-serif" font-size="{FONT_SIZE}">\n'
        '<rect width="100%" height="100%" fill="white"/>\n'
    )
    path.write_text(head + "\n".join(squares) + "\n</svg>\n", encoding="utf-8")


def _place(number: int, side: float, label: float) -> tuple[float, float]:
    """Where the cells of a square begin."""
    line, column = divmod(number, PER_LINE)
    x = MARGIN + column * (side + GAP) + label
    return x, MARGIN + line * (side + FONT_SIZE + GAP) + FONT_SIZE + label


def _square(
    names: Sequence[str], shares: np.ndarray, seen: np.ndarray, title: str, x: float, y: float
) -> str:
    parts = [f'<text x="{x:.1f}" y="{y + CELL * len(names) + 18:.1f}">{escape(title)}</text>']
    for place, name in enumerate(names):
        middle = CELL * (place + 0.5) + FONT_SIZE / 3
        parts.append(
            f'<text x="{x - 4:.1f}" y="{y + middle:.1f}" text-anchor="end">{escape(name)}</text>'
            f'<text transform="translate({x + middle:.1f} {y - 4:.1f}) rotate(-90)">'
            f"{escape(name)}</text>"
        )
    for (row, column), share in np.ndenumerate(shares):
        can = bool(seen[row, column])
        parts.append(
            f'<rect x="{x + CELL * column:.1f}" y="{y + CELL * row:.1f}" width="{CELL - 1}" '
            f'height="{CELL - 1}" fill="{COLOR if can else HIDDEN}"'
            + (f' fill-opacity="{share:.3f}"/>' if can else "/>")
        )
    return "\n".join(parts)


def _width(name: str) -> float:
    """About what a token takes; beyond ASCII letters are taken for wide ones."""
    return FONT_SIZE * sum(0.6 if letter.isascii() else 1.0 for letter in name)
