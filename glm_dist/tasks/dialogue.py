"""Dialogues of several turns: what the assistant says is learnt, what others say is read.

Each answer is a sample of its own behind the turns before it, in the form that a chat is served in,
so that nothing an answer is learnt from differs from what it will be asked with.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from glm_dist.objective import supervised_sample
from glm_dist.tasks.examples import Example
from glm_dist.tasks.postprocess import PostprocessSettings, postprocess
from glm_dist.tasks.settings import DecodingSettings, TaskSettings
from glm_dist.tasks.task import Answer, Question, Reply, Task, TaskSample
from glm_dist.tokenizer import Tokenizer

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "usr": "user",
    "human": "user",
    "assistant": "assistant",
    "sys": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "tool": "observation",
    "function": "observation",
    "observation": "observation",
}
"""What data calls a role (OpenAI, ShareGPT, CrossWOZ): what the vocabulary calls it."""
ROLE_KEYS, TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text", "utterance")


class Turn(NamedTuple):
    """Who says what."""

    role: str
    text: str


class TurnsSettings(TaskSettings):
    """Lists of messages, in OpenAI's or ShareGPT's form."""

    fields: ClassVar[tuple[str, ...]] = ("messages",)
    optional_fields: ClassVar[tuple[str, ...]] = ("system",)

    system: str = ""
    """Said before every dialogue that has no system message of its own."""
    max_answer_share: float = Field(0.5, gt=0, lt=1)
    """Share of a row's tokens that an answer may take in training; longer ones lose their end."""


S = TypeVar("S", bound=TurnsSettings)


class Turns(Task[S], Generic[S]):
    """What the assistant says next, learnt at each of its turns."""

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """Messages that are none, roles that nobody knows, nothing that an assistant says."""
        try:
            turns = read_turns(example.fields["messages"])
        except ValueError as error:
            return [str(error)]
        found = [f"message {n} is empty" for n, turn in enumerate(turns) if not turn.text]
        if is_labelled and not any(turn.role == "assistant" for turn in turns[1:]):
            found.append("no assistant answers anything in it; take it out")
        return found

    def training_samples(self, example: Example) -> list[TaskSample]:
        """One sample for each answer of the assistant."""
        turns = self.turns(example)
        return [
            self._sample(turns[:number], turn.text)
            for number, turn in enumerate(turns)
            if turn.role == "assistant" and number
        ]

    def turns(self, example: Example) -> list[Turn]:
        """The messages, with what is said before all of them."""
        turns = read_turns(example.fields["messages"])
        system = example.text("system") or self.settings.system
        if system and turns[0].role != "system":
            turns.insert(0, Turn("system", system))
        return turns

    def texts(self, example: Example) -> list[str]:
        """What everyone says, the answers too."""
        return [turn.text for turn in self.turns(example)]

    def _sample(self, before: Sequence[Turn], text: str) -> TaskSample:
        limit = self.binding.max_tokens
        answer = self.tokenizer.encode(text)[: int(limit * self.settings.max_answer_share) - 1]
        prompt = chat_prompt(before, self.tokenizer, limit - len(answer) - 1)
        return TaskSample(supervised_sample(prompt, answer, self.binding.infill))


class DialogueSettings(TurnsSettings):
    """Dialogues whose next turn is generated."""

    kind: Literal["dialogue"] = "dialogue"
    decoding: DecodingSettings = DecodingSettings()
    postprocess: PostprocessSettings = PostprocessSettings()


class Dialogue(Turns[DialogueSettings]):
    """The assistant's next turn."""

    Settings = DialogueSettings
    scoring = "text"

    def questions(self, example: Example) -> list[Question]:
        """What comes behind the turns; of a finished dialogue the assistant's last turn."""
        turns = self._open_turns(example)
        room = self.binding.max_tokens - int(
            self.binding.max_tokens * self.settings.max_answer_share
        )
        prompt = chat_prompt(turns, self.tokenizer, room)
        return [Question(prompt, (len(prompt) - 1,))]

    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """What was generated, put in order."""
        return Answer(postprocess(replies[0].texts[0], self.settings.postprocess))

    def gold(self, example: Example) -> list[str]:
        """The assistant's last turn."""
        return [turn.text for turn in self.turns(example) if turn.role == "assistant"][-1:]

    def shown(self, example: Example) -> str:
        """The turns before the answer."""
        return "\n".join(f"{turn.role}: {turn.text}" for turn in self._open_turns(example))

    def _open_turns(self, example: Example) -> list[Turn]:
        turns = self.turns(example)
        last = max((n for n, turn in enumerate(turns) if turn.role == "assistant"), default=0)
        return turns[:last] if last and last == len(turns) - 1 else turns


def read_turns(messages: Any) -> list[Turn]:
    """Messages in OpenAI's or ShareGPT's form, or texts of user and assistant by turns.

    Raises:
        ValueError: when it is none of these.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("its messages are no list of messages")
    turns = []
    for number, message in enumerate(messages):
        if isinstance(message, str):
            turns.append(Turn(("user", "assistant")[number % 2], message.strip()))
            continue
        role, text = _first(message, ROLE_KEYS), _first(message, TEXT_KEYS)
        if role is None or text is None:
            raise ValueError(f"message {number} has no role and content, nor from and value")
        if role not in ROLES:
            raise ValueError(
                f"message {number} has the role {role!r}; known are {', '.join(ROLES)}"
            )
        turns.append(Turn(ROLES[role], str(text).strip()))
    return turns


def _first(message: Any, keys: Sequence[str]) -> Any:
    if not isinstance(message, Mapping):
        return None
    return next((message[key] for key in keys if message.get(key) is not None), None)


def chat_prompt(turns: Sequence[Turn], tokenizer: Tokenizer, max_tokens: int) -> np.ndarray:
    """Part A of a dialogue: roles and what they say, and the mask of the assistant's answer.

    Where there is not room for all, the oldest turns behind the system's go first, then the last
    turn loses its beginning.
    """
    special = tokenizer.special
    said = [
        np.concatenate(([getattr(special, turn.role)], tokenizer.encode(turn.text)))
        for turn in turns
    ]
    room = max_tokens - 3
    head = said[:1] if turns and turns[0].role == "system" else []
    kept = said[len(head) :]
    while len(kept) > 1 and sum(map(len, [*head, *kept])) > room:
        kept = kept[1:]
    while head and sum(map(len, [*head, *kept])) > room:
        head = []
    if kept and len(kept[-1]) > room:
        kept = [np.concatenate((kept[-1][:1], kept[-1][1 - room :]))]
    opening, asked = np.array([special.enc]), np.array([special.assistant, special.gmask])
    return np.concatenate([opening, *head, *kept, asked]).astype(np.int32)
