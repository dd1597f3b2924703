"""Silent corruption: do all ranks hold the same weights, and does the same sum come out twice?

Machines that compute wrongly without an error are rare and ruinous; both checks name the rank.
"""

import socket
from collections import Counter

import torch

from glm_dist.engine import Engine
from glm_dist.engine.catalogue import exchange_objects
from glm_dist.errors import StepFailedError
from glm_dist.train.stream import StepRows


def check_ranks(engine: Engine, rows: StepRows, step: int) -> None:
    """Compare weights over ranks, and one micro-batch's losses over two runs; a collective.

    Raises:
        StepFailedError: on all ranks, naming those that differ from the most, or from themselves;
            all of them where no weights are those of the most.
    """
    batch, _ = next(rows.batches(engine.device))
    first, again = (engine.evaluate(batch).token_losses for _ in range(2))
    own = (engine.replica_hash(), torch.equal(first, again), socket.gethostname())
    found = exchange_objects(own)
    usual, count = Counter(weights for weights, _, _ in found).most_common(1)[0]
    has_majority = 2 * count > len(found)
    problems = [
        f"rank {rank} on {host} {what}"
        for rank, (weights, repeats, host) in enumerate(found)
        for is_wrong, what in (
            (weights != usual or not has_majority, "holds weights that most ranks do not"),
            (not repeats, "computes other losses of the same rows the second time"),
        )
        if is_wrong
    ]
    if problems:
        raise StepFailedError(
            f"step {step}: {'; '.join(problems)}; the hardware there may be failing"
        )


def is_check_due(every_steps: int, step: int) -> bool:
    """Whether the ranks are checked before step `step`."""
    return every_steps > 0 and step % every_steps == 0 and step > 0
