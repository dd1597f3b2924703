"""What a client has been given of one request, so that another replica can go on with it.

It stands apart as the whole of what "the same bytes" rests on. An engine's tokens, texts and
log-probabilities are the same bits on every replica of the same weights, whatever else runs there;
so a replay from the start gives for each blank of each sample what the first replica gave, and what
is already given is left out, wherever the replay puts the cuts between its deltas.
"""

from dataclasses import dataclass, replace

from glm_dist.inference import Delta, Output


@dataclass
class _Given:
    """Of one blank of one sample."""

    num_tokens: int = 0
    num_characters: int = 0
    is_finished: bool = False


class Progress:
    """Counts what is passed on, and cuts it off what comes again."""

    def __init__(self) -> None:
        self.num_tokens = 0
        """Passed on, of all samples and blanks."""
        self._given: dict[tuple[int, int], _Given] = {}
        self._replayed: dict[tuple[int, int], _Given] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether anything was passed on."""
        return bool(self._given)

    def replay(self) -> None:
        """From now on it comes again, from the start."""
        self._replayed = {}

    def pass_on(self, output: Output) -> Output | None:
        """What is new of an output; None where nothing is."""
        if not isinstance(output, Delta):
            return output
        place = (output.sample, output.blank)
        given = self._given.setdefault(place, _Given())
        if self._replayed is not None:
            output = _cut(output, self._replayed.setdefault(place, _Given()), given)
        given.num_tokens += len(output.tokens)
        given.num_characters += len(output.text)
        self.num_tokens += len(output.tokens)
        is_new = bool(output.tokens or output.text)
        if output.finish_reason is not None and not given.is_finished:
            given.is_finished = is_new = True
        return output if is_new or self._replayed is None else None


def _cut(delta: Delta, replayed: _Given, given: _Given) -> Delta:
    """The part of a replayed delta that lies behind what was given."""
    tokens = max(0, given.num_tokens - replayed.num_tokens)
    characters = max(0, given.num_characters - replayed.num_characters)
    replayed.num_tokens += len(delta.tokens)
    replayed.num_characters += len(delta.text)
    return replace(
        delta,
        tokens=delta.tokens[tokens:],
        text=delta.text[characters:],
        logprobs=delta.logprobs[tokens:],
        alternatives=delta.alternatives[tokens:],
        finish_reason=None if given.is_finished else delta.finish_reason,
    )
