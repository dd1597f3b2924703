"""Which requests are in work, which of their answers are open, and what all of them have taken.

It stands apart from the engine, which computes, as the bookkeeping by which a request ends with the
last of its answers.
"""

from collections.abc import Sequence

from glm_dist.inference.requests import Usage
from glm_dist.inference.sequences import Group
from glm_dist.inference.sequences import Sequence as Answer


class Work:
    """The requests that an engine has taken in."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self._groups: dict[str, Group] = {}
        self._answers: dict[str, list[Answer]] = {}
        self._ended: dict[str, Group] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def find(self, request_id: str) -> Group | None:
        """A request in work; None where there is none of this name."""
        return self._groups.get(request_id)

    def usage(self, request_id: str) -> Usage | None:
        """Tokens of a request in work, or of one that ended since `forget_ended`."""
        group = self._groups.get(request_id) or self._ended.get(request_id)
        if group is None:
            return None
        return Usage(len(group.tokens), group.cached_tokens or 0, group.generated_tokens)

    def begin(self, group: Group, answers: Sequence[Answer]) -> None:
        """A request has come, with the answers that it begins with."""
        name = group.request.id
        self._groups[name], self._answers[name] = group, [*answers]
        group.num_open = len(answers)
        self.prompt_tokens += len(group.tokens)

    def count(self, group: Group, num_tokens: int) -> None:
        """So many tokens of an answer were generated."""
        group.generated_tokens += num_tokens
        self.generated_tokens += num_tokens

    def enter(self, answer: Answer) -> None:
        """A request has one more answer."""
        answer.group.num_open += 1
        self._answers[answer.group.request.id].append(answer)

    def leave(self, answer: Answer) -> None:
        """An answer has ended, and with the last one its request."""
        self._answers[answer.group.request.id].remove(answer)
        answer.group.num_open -= 1
        if not answer.group.num_open:
            self._end(answer.group)

    def drop(self, group: Group) -> list[Answer]:
        """A request has ended, whatever is open of it; that comes back."""
        answers = self._answers[group.request.id]
        group.num_open = 0
        self._end(group)
        return answers

    def forget_ended(self) -> None:
        """Nobody asks for what has ended any more."""
        self._ended = {}

    def _end(self, group: Group) -> None:
        del self._groups[group.request.id], self._answers[group.request.id]
        self._ended[group.request.id] = group
        self.cached_tokens += group.cached_tokens or 0
