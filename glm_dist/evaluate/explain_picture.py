"""An explanation as a picture: the text with each token shaded by what it adds.

SVG written by hand, because a plotting library draws letters from fonts of the machine it runs on,
and a text to be explained can be in any script.
"""

from pathlib import Path
from xml.sax.saxutils import escape

from glm_dist.data.text_units import HAN
from glm_dist.evaluate.explain import Explanation

FONT_SIZE, LINE_HEIGHT, MARGIN, WIDTH = 16, 28, 16, 760
FOR, AGAINST = "#2166ac", "#b2182b"


def draw_explanation(path: Path, explanation: Explanation) -> None:
    """Blue speaks for the answer, red against it; the strongest token has the full colour."""
    largest = max(map(abs, explanation.attributions), default=0.0) or 1.0
    x, line, boxes = float(MARGIN), 1, list[str]()
    pairs = zip(explanation.tokens, explanation.attributions, strict=True)
    for token, attribution in pairs:
        width = _width(token)
        if x + width > WIDTH - MARGIN:
            x, line = float(MARGIN), line + 1
        boxes.append(_box(token, x, line, attribution / largest))
        x += width + 2
    height = (line + 1) * LINE_HEIGHT + MARGIN
    title = (
        f"{explanation.label}: log odds {explanation.log_odds:.2f}, of an empty text "
        f"{explanation.empty_log_odds:.2f}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="{FONT_SIZE}">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="{MARGIN}" y="{LINE_HEIGHT - 6}" font-weight="bold">{escape(title)}</text>\n'
    )
    path.write_text(head + "\n".join(boxes) + "\n</svg>\n", encoding="utf-8")


def _box(token: str, x: float, line: int, share: float) -> str:
    y, width = line * LINE_HEIGHT + 6, _width(token)
    color = FOR if share >= 0 else AGAINST
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{LINE_HEIGHT - 4}" rx="3" '
        f'fill="{color}" fill-opacity="{0.75 * abs(share):.3f}"/>'
        f'<text x="{x + 2:.1f}" y="{y + 17}">{escape(token)}</text>'
    )


def _width(token: str) -> float:
    """About what a token takes; Han characters are square."""
    wide = len(HAN.findall(token))
    return 4 + FONT_SIZE * (wide + 0.6 * (len(token) - wide))
