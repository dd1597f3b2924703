"""Finished rows as a person would want to see them: samples, targets, positions, the mask.

It stands apart because it is for eyes alone; nothing is computed from it.
"""

from collections.abc import Iterator

import numpy as np

from glm_dist.data.rows import Rows, RowSettings
from glm_dist.data.samples import build_row_builder
from glm_dist.data.shards import TokenDataset
from glm_dist.objective import Mode, ObjectiveSettings, dense_mask
from glm_dist.tokenizer import Tokenizer

SHOWN_TOKENS = 24
SHOWN_MASK = 48
SHOWN_DOCUMENTS = 200


def show_rows(
    dataset: TokenDataset,
    num_rows: int,
    rows: RowSettings | None = None,
    objective: ObjectiveSettings | None = None,
) -> str:
    """The first rows of a dataset under an objective, as text for a terminal."""
    builder = build_row_builder(
        dataset,
        "train",
        rows or RowSettings(sequence_length=128),
        objective or ObjectiveSettings(),
        seed=1234,
    )
    documents = range(min(SHOWN_DOCUMENTS, dataset.num_documents("train")))
    packed = builder.packer(0).pack(documents, builder.lengths[list(documents)].tolist())
    chosen = packed[:num_rows]
    built = builder.build(np.arange(len(chosen)), ((0, pieces) for pieces in chosen))
    parts = []
    for row, pieces in enumerate(chosen):
        parts.append(f"row {row}: {len(pieces)} samples")
        for segment, piece in enumerate(pieces, start=1):
            title = f"document {piece.document}, tokens {piece.start} to "
            title += f"{piece.start + piece.length}"
            parts += [title, *_sample(built, row, segment, dataset.tokenizer)]
        parts += ["mask: a query a line; # it sees the key, . it does not", *_mask(built, row), ""]
    return "\n".join(parts)


def _sample(rows: Rows, row: int, segment: int, tokenizer: Tokenizer) -> Iterator[str]:
    here = rows["segment_ids"][row] == segment
    values = {name: rows[name][row][here] for name in rows if rows[name].ndim == 2}
    is_part_a = values["block_position_ids"] == 0
    yield f"  mode     {Mode(values['mode_ids'][0]).name.lower()}"
    yield f"  Part A   {tokenizer.decode(values['tokens'][is_part_a], keep_special=True)!r}"
    yield f"  Part B   {tokenizer.decode(values['tokens'][~is_part_a], keep_special=True)!r}"
    predicted = values["targets"][values["loss_mask"] > 0]
    yield f"  targets  {tokenizer.decode(predicted, keep_special=True)!r}"
    lines: dict[str, list[str]] = {"token": [], "target": [], "position": [], "block": []}
    edge = int(is_part_a.sum())
    first = max(0, edge - SHOWN_TOKENS // 2)
    for place in range(first, min(first + SHOWN_TOKENS, len(is_part_a))):
        has_loss = values["loss_mask"][place]
        lines["token"].append(_short(tokenizer, values["tokens"][place]))
        lines["target"].append(_short(tokenizer, values["targets"][place]) if has_loss else "")
        lines["position"].append(str(values["position_ids"][place]))
        lines["block"].append(str(values["block_position_ids"][place]))
    widths = [max(map(len, column)) for column in zip(*lines.values(), strict=True)]
    for name, cells in lines.items():
        padded = " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield f"  {name:<8} {padded}"


def _short(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.piece(int(token)).replace(" ", "·").replace("\n", "⏎")[:8]


def _mask(rows: Rows, row: int) -> Iterator[str]:
    """The mask of the row, every n-th token, small enough for a terminal."""
    step = -(-rows["segment_ids"].shape[1] // SHOWN_MASK)
    mask = dense_mask(rows["segment_ids"][row], rows["prefix_ends"][row])
    is_padding = rows["segment_ids"][row] == 0
    for query in range(0, len(mask), step):
        if not is_padding[query]:
            yield "  " + "".join("#" if seen else "." for seen in mask[query, ::step])
