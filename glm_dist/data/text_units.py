"""A text's units where no tokenizer may stand between: words, and each Han character by itself.

One rule for scores of Chinese text, for overlap with evaluation text and for the n-gram baselines,
none of which may depend on a vocabulary.
"""

import re

HAN = re.compile(
    r"[\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_UNIT = re.compile(rf"{HAN.pattern}|(?:(?!{HAN.pattern})\w)+")


def text_units(text: str) -> list[str]:
    """Lower-cased words, and Han characters one by one; no punctuation."""
    return _UNIT.findall(text.lower())
