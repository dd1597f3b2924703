"""Whether a request can be answered at all, said before it waits.

It stands apart because each rule names a field, a value, a bound and a remedy, and nothing past it
need look at a request with suspicion again.
"""

from collections.abc import Sequence

from glm_dist.errors import ModelError, RequestError
from glm_dist.inference.requests import (
    PROMPT_REQUESTS,
    AnyRequest,
    Blank,
    LabelRequest,
    Request,
    SamplingSettings,
    ScoreRequest,
)
from glm_dist.inference.settings import EngineLimits
from glm_dist.model import ModelSettings
from glm_dist.tokenizer import Tokenizer

TOO_LONG = "context_length_exceeded"


def check_is_language_model(settings: ModelSettings) -> None:
    """Refuse a model that gives no tokens.

    Raises:
        ModelError: with what it does instead.
    """
    if settings.head.is_classifier:
        raise ModelError(_without_tokens(settings))


def _without_tokens(settings: ModelSettings) -> str:
    labels = ", ".join(settings.head.labels[:20])
    return (
        f"this model's head scores the labels {labels} and no tokens; ask it for its labels, or "
        "another model for text"
    )


def check_adapter(request: AnyRequest, names: Sequence[str]) -> None:
    """Refuse a request for an adapter that is not there.

    Raises:
        RequestError: with those that are.
    """
    if request.adapter is not None and request.adapter not in names:
        known = f"there are {', '.join(names)}" if names else "there are none"
        raise RequestError(
            f"adapter {request.adapter!r} is not loaded; {known}",
            param="adapter",
            code="model_not_found",
        )


def check_request(
    request: AnyRequest, settings: ModelSettings, tokenizer: Tokenizer, limits: EngineLimits
) -> None:
    """Refuse what cannot be answered.

    Raises:
        RequestError: with the field and the remedy.
    """
    _check_prompt(request.tokens, settings)
    if isinstance(request, PROMPT_REQUESTS):
        if isinstance(request, LabelRequest):
            _check_labelled(request, settings)
        _check_blocks(request, 0, limits)
        return
    if settings.head.is_classifier:
        raise RequestError(_without_tokens(settings), param="model")
    special = tokenizer.special
    masks = (special.mask, special.smask, special.gmask)
    if isinstance(request, ScoreRequest):
        _check_place(request, request.tokens, settings, masks)
        _check_options(request, settings)
        longest = max(map(len, request.options)) + 1
    else:
        _check_blanks(request, settings, masks)
        lengths = [blank.sampling.max_tokens for blank in request.blanks]
        # A blank that others follow is fed whole, and each begins with a token of its own.
        longest = sum(lengths) + len(lengths) - 1 if request.is_joint else max(lengths)
    _check_blocks(request, longest, limits)


def room(num_prompt_tokens: int, place: int, settings: ModelSettings) -> int:
    """The longest answer, in tokens, to a mask at `place` of such a prompt; 0 where none fits."""
    longest = settings.max_position_embeddings
    if num_prompt_tokens > longest:
        return 0
    if settings.positions in ("rotary_1d", "rotary_half"):
        return max(0, longest - 1 - place)
    return longest - 1


def _check_prompt(tokens: Sequence[int], settings: ModelSettings) -> None:
    longest = settings.max_position_embeddings
    if not len(tokens):
        raise RequestError("the prompt has no tokens; give at least one", param="tokens")
    if len(tokens) > longest:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens and this model has {longest} positions; "
            "shorten it",
            param="tokens",
            code=TOO_LONG,
        )
    _check_ids(tokens, settings, "tokens")


def _check_ids(tokens: Sequence[int], settings: ModelSettings, param: str) -> None:
    wrong = [int(token) for token in tokens if not 0 <= token < settings.vocab_size]
    if wrong:
        raise RequestError(
            f"{param} holds the ids {wrong[:5]}; this model knows 0 to {settings.vocab_size - 1}",
            param=param,
        )


def _check_labelled(request: LabelRequest, settings: ModelSettings) -> None:
    if not settings.head.is_classifier:
        raise RequestError(
            "this model has no head that scores labels; compare the words of labels at a mask",
            param="model",
        )
    wrong = [place for place in request.places if not 0 <= place < len(request.tokens)]
    if wrong or not request.places:
        raise RequestError(
            f"places holds {wrong[:5]} and the prompt has {len(request.tokens)} tokens; name one "
            "place of them or several",
            param="places",
        )


def _check_place(
    asked: Blank | ScoreRequest,
    tokens: Sequence[int],
    settings: ModelSettings,
    masks: tuple[int, ...],
) -> None:
    place = asked.place
    if asked.start is not None:
        _check_ids([asked.start], settings, "start")
        if not settings.causal or place != len(tokens) - 1:
            raise RequestError(
                "start begins an answer at the end of a causal model's prompt; leave it out, and "
                "name the place of a mask",
                param="start",
            )
    elif not 0 <= place < len(tokens) or tokens[place] not in masks:
        raise RequestError(
            f"there is no mask at place {place} of the prompt of {len(tokens)} tokens; name the "
            "place of a mask",
            param="blanks",
        )


def _check_blanks(request: Request, settings: ModelSettings, masks: tuple[int, ...]) -> None:
    if not request.blanks:
        raise RequestError("the prompt has no blank to fill; put a mask in it", param="blanks")
    if request.num_samples < 1:
        raise RequestError(
            f"num_samples is {request.num_samples}; ask for at least one", param="num_samples"
        )
    last = len(request.blanks) - 1
    for number, blank in enumerate(request.blanks):
        _check_place(blank, request.tokens, settings, masks)
        is_followed = request.is_joint and number < last
        _check_length(
            request, blank, room(len(request.tokens), blank.place, settings) - is_followed
        )
        _check_blank(blank.sampling, settings)
    _check_beams(request)


def _check_beams(request: Request) -> None:
    if request.beams is None:
        return
    width, num_samples = request.beams.num_beams, request.num_samples
    if num_samples > width:
        raise RequestError(
            f"num_samples is {num_samples} and num_beams {width}; a search gives no more answers "
            "than it has beams",
            param="num_samples",
        )
    if num_samples > 1 and request.is_joint and len(request.blanks) > 1:
        raise RequestError(
            f"num_samples is {num_samples} and there are {len(request.blanks)} blanks, each of "
            "which goes on behind the best answer to the one before; ask for one, or fill the "
            "blanks side by side",
            param="num_samples",
        )
    for blank in request.blanks:
        for name, is_given in (
            ("temperature", blank.sampling.temperature > 0),
            ("stop", bool(blank.sampling.stop)),
        ):
            if is_given:
                raise RequestError(
                    f"{name} has no meaning in a beam search; leave it out, or sample", param=name
                )


def _check_length(request: Request, blank: Blank, longest: int) -> None:
    if blank.sampling.max_tokens > longest:
        raise RequestError(
            f"max_tokens is {blank.sampling.max_tokens}, and behind this prompt of "
            f"{len(request.tokens)} tokens there is room for {longest}; ask for fewer",
            param="max_tokens",
            code=TOO_LONG,
        )


def _check_blank(sampling: SamplingSettings, settings: ModelSettings) -> None:
    _check_ids(list(sampling.logit_bias), settings, "logit_bias")
    _check_ids(sampling.stop_tokens, settings, "stop_tokens")
    _check_ids(sampling.allowed_tokens, settings, "allowed_tokens")


def _check_options(request: ScoreRequest, settings: ModelSettings) -> None:
    if not request.options:
        raise RequestError("there is no option to score; give at least one", param="options")
    longest = room(len(request.tokens), request.place, settings)
    for option in request.options:
        if not len(option) and not request.scores_end:
            raise RequestError(
                "an option has no tokens; give some, or score its end", param="options"
            )
        if len(option) > longest:
            raise RequestError(
                f"an option has {len(option)} tokens and there is room for {longest}; shorten it",
                param="options",
                code=TOO_LONG,
            )
        _check_ids(option, settings, "options")


def _check_blocks(request: AnyRequest, answer_tokens: int, limits: EngineLimits) -> None:
    size = limits.block_tokens
    needed = -(-len(request.tokens) // size) - (-answer_tokens // size)
    # One more, since an answer begins only where a block is left for it.
    needed = max(needed, -(-len(request.tokens) // size) + 1)
    if needed > limits.cache_tokens // size:
        raise RequestError(
            f"prompt and answer take {needed * size} tokens of the cache, which has "
            f"{limits.cache_tokens}; ask for fewer, or raise cache_tokens of the engine",
            param="tokens",
            code=TOO_LONG,
        )
