"""What a client may ask for at most, and which fields go together, beyond the types of bodies.

It stands apart from the prompts, which are built of what has passed here.
"""

from collections.abc import Sequence

from glm_dist.inference.admission import TOO_LONG, room
from glm_dist.model import ModelSettings
from glm_dist.serve.errors import ApiError
from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.protocol import CompletionRequest, InfillRequest, Sampled


class Checks:
    """The rules of one model; each refuses with the field, what it got and what it takes."""

    def __init__(self, settings: ModelSettings, limits: RequestLimits) -> None:
        self._settings, self.limits = settings, limits

    def completion(self, body: CompletionRequest) -> None:
        """Refuse fields of a completion that do not go together."""
        self.sampled(body)
        if body.suffix and body.echo:
            raise ApiError(400, "echo: cannot go with suffix; leave one out", param="echo")
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(
                400, "max_tokens: 0 asks for nothing; only echo goes with it", param="max_tokens"
            )
        best_of = body.best_of or body.num_samples
        self.count("best_of", best_of, self.limits.max_samples)
        if body.use_beam_search and body.best_of not in (None, body.num_beams):
            raise ApiError(
                400,
                f"best_of: got {best_of}, and beam_width is {body.num_beams}; give one of them",
                param="best_of",
            )
        if best_of < body.num_samples:
            raise ApiError(
                400, f"best_of: got {best_of}, and n is {body.num_samples}", param="best_of"
            )
        if body.stream and best_of > body.num_samples:
            raise ApiError(
                400, "best_of: is known at the end, and cannot be streamed", param="best_of"
            )

    def infill(self, body: InfillRequest, num_blanks: int) -> None:
        """Refuse more blanks than there may be, and more answers than a search gives."""
        self.count("blanks", num_blanks, self.limits.max_blanks, "input")
        is_joint = num_blanks > 1 and body.order != "independent"
        if body.beams is not None and body.num_samples > 1 and is_joint:
            raise ApiError(
                400,
                "n: a beam search gives one answer to blanks that see each other; ask for one, or "
                "for order: independent",
                param="n",
            )

    def sampled(self, body: Sampled) -> None:
        """Refuse more answers, beams, strings and biases than are given."""
        self.count("n", body.num_samples, self.limits.max_samples)
        self.strings("stop", body.stops, self.limits.max_stops)
        self.strings("bad_words", body.bad_words or (), self.limits.max_bad_words)
        self._search(body)
        self._biases(body)

    def count(self, name: str, count: int, most: int, param: str | None = None) -> None:
        """Refuse more than there may be."""
        if count > most:
            raise ApiError(
                400, f"{name}: got {count}; at most {most} are taken", param=param or name
            )

    def strings(self, name: str, strings: Sequence[str], most: int) -> None:
        """Refuse more strings, and longer ones, than there may be."""
        self.count(name, len(strings), most)
        longest = max((len(one.encode()) for one in strings), default=0)
        allowed = self.limits.max_stop_bytes
        if longest > allowed:
            raise ApiError(
                400, f"{name}: one has {longest} bytes; at most {allowed} are taken", param=name
            )

    def length(self, num_tokens: int, param: str) -> None:
        """Refuse a prompt that has more tokens than the model has positions."""
        longest = self._settings.max_position_embeddings
        if not room(num_tokens, num_tokens - 1, self._settings):
            raise ApiError(
                400,
                f"{param}: the prompt has {num_tokens} tokens and this model has {longest} "
                "positions; shorten it",
                param=param,
                code=TOO_LONG,
                n_prompt_tokens=num_tokens,
                n_ctx=longest,
            )

    def _search(self, body: Sampled) -> None:
        if body.use_beam_search:
            self.count("beam_width", body.num_beams, self.limits.max_beams)
        beams = body.beams
        if beams is not None and beams.num_beams < body.num_samples:
            raise ApiError(
                400,
                f"beam_width: got {beams.num_beams}, and n is {body.num_samples}",
                param="beam_width",
            )

    def _biases(self, body: Sampled) -> None:
        """Refuse biases of ids that the model does not have, naming all of them."""
        biases = body.logit_bias or {}
        self.count("logit_bias", len(biases), self.limits.max_logit_bias)
        wrong = [key for key in biases if int(key) >= self._settings.vocab_size]
        if wrong:
            raise ApiError(
                400,
                f"logit_bias: this model knows the ids 0 to {self._settings.vocab_size - 1}, and "
                f"not {', '.join(wrong[:20])}",
                param="logit_bias",
            )
