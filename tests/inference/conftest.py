import numpy as np
import pytest
import torch

from glm_dist.inference import Blank, Request, SamplingSettings
from glm_dist.model import ModelSettings, build_model
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

WORDS = "the list returns a number of items when the given value is not in a range".split()
MODERN = {"norm": "rmsnorm", "mlp": "swiglu", "num_kv_heads": 2}
GLM_4 = {**MODERN, "positions": "rotary_half", "bias": "qkv", "tied_embeddings": False}
FAMILIES = {
    "2021": {"positions": "learned"},
    "rotary_2d": {"positions": "rotary_2d"},
    "ours": {**MODERN, "bias": "none", "query_key_norm": True},
    "glm_4": {**GLM_4, "causal": True, "num_kv_heads": 1, "head_dim": 16},
    "glm_4_0414": {**GLM_4, "causal": True, "sandwich_norm": True},
    "130b": {"residual": "deepnorm", "mlp": "geglu", "positions": "rotary_1d"},
    "chatglm": {"residual": "deepnorm", "tied_embeddings": False},
}
"""The options of each published family, to be put on a small shape."""


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer():
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, size=12)) for _ in range(400)]
    return train_tokenizer(lines, TokenizerSettings(vocab_size=320))


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """A small model of a family, whose answers are neither constant nor ended at once."""

    def make(family, **changes):
        shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "init_std": 0.5}
        shape |= {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256}
        options = {**shape, **FAMILIES[family], **changes}
        return build_model(ModelSettings(preset=None, **options)).eval()

    return make


@pytest.fixture(scope="session")
def make_request(tokenizer):
    """A request for all masks of a text; one without is continued."""
    special = tokenizer.special

    def make(text, request_id="a", sampling=None, **changes):
        tokens = [special.enc, *tokenizer.encode_masked(text).tokens.tolist()]
        masks = (special.mask, special.smask, special.gmask)
        if not set(tokens) & set(masks):
            tokens.append(special.gmask)
        places = [place for place, token in enumerate(tokens) if token in masks]
        blanks = [Blank(place, sampling or SamplingSettings()) for place in places]
        return Request(request_id, tokens, blanks, **changes)

    return make


@pytest.fixture
def random_requests(tokenizer):
    """Requests of any length, blanks, settings and number of samples."""

    def make(rng, count, longest=90, max_tokens=10):
        return [
            _random_request(rng, tokenizer, f"r{number}", longest, max_tokens)
            for number in range(count)
        ]

    return make


def _random_request(rng, tokenizer, request_id, longest, max_tokens):
    special = tokenizer.special
    plain = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
    tokens = rng.choice(plain, size=rng.integers(1, longest)).tolist()
    if rng.random() < 0.5:  # the beginning of one text that all know
        common = np.random.default_rng(0).choice(plain, size=longest)
        tokens = [*common[: rng.integers(longest)].tolist(), *tokens[: longest // 4]]
    masks = rng.choice([special.mask, special.smask, special.gmask], size=rng.integers(1, 4))
    for mask in masks.tolist():
        tokens.insert(int(rng.integers(len(tokens) + 1)), mask)
    places = [1 + place for place, token in enumerate(tokens) if token in set(masks.tolist())]
    return Request(
        request_id,
        [special.enc, *tokens],
        [Blank(place, _random_sampling(rng, max_tokens)) for place in places],
        num_samples=int(rng.integers(1, 3)),
        is_joint=bool(rng.random() < 0.7),
    )


CONSTRAINTS = [
    {"regex": "[a-z ]{3,25}"},
    {"json_schema": '{"type": "array", "items": {"type": "integer"}}'},
    {"choices": ("a range", "a", "items of the list")},
    {"grammar": 'start: "(" start ")" | /[xy]/'},
]


def _random_sampling(rng, max_tokens):
    is_constrained = rng.random() < 0.3
    constraint = CONSTRAINTS[rng.integers(len(CONSTRAINTS))] if is_constrained else {}
    return SamplingSettings(
        **constraint,
        max_tokens=int(rng.integers(1, max_tokens + 1)),
        temperature=float(rng.choice([0.0, 0.7, 1.5])),
        top_k=int(rng.choice([0, 1, 5, 40])),
        top_p=float(rng.choice([1.0, 0.9, 0.3])),
        min_p=float(rng.choice([0.0, 0.05])),
        repetition_penalty=float(rng.choice([1.0, 1.3])),
        frequency_penalty=float(rng.choice([0.0, 0.5])),
        seed=int(rng.integers(100)),
        num_logprobs=int(rng.integers(0, 5)),
        no_repeat_ngram=0 if is_constrained else int(rng.choice([0, 0, 2])),
        min_tokens=0 if is_constrained else int(rng.integers(0, 3)),
        ignore_eos=not is_constrained and bool(rng.random() < 0.3),
    )


@pytest.fixture
def collect():
    """Tokens, log-probabilities, texts and reasons of (request, sample, blank)."""

    def join(outputs):
        answers = {}
        for delta in outputs:
            key = (delta.request_id, delta.sample, delta.blank)
            answer = answers.setdefault(key, ([], [], [], [], []))
            answer[0].extend(delta.tokens)
            answer[1].extend(delta.logprobs)
            answer[2].append(delta.text)
            answer[3].extend(delta.alternatives)
            if delta.finish_reason:
                answer[4].append((delta.finish_reason, delta.stopped_by))
        return {
            key: (tokens, logprobs, "".join(texts), alternatives, reasons)
            for key, (tokens, logprobs, texts, alternatives, reasons) in answers.items()
        }

    return join


@pytest.fixture
def uncached(tokenizer):
    """Greedy answers, and log-probabilities of their tokens, by the whole text at every step."""

    def answer(model, request):
        special = tokenizer.special
        forbidden = torch.zeros(model.settings.padded_vocab_size, dtype=torch.bool)
        forbidden[tokenizer.special_ids] = True
        forbidden[[special.eop, special.eos]] = False
        tokens, count = list(request.tokens), len(request.tokens)
        positions, blocks, answers = list(range(count)), [0] * count, []
        for blank in request.blanks:
            taken, logprobs, token, block = [], [], special.sop, 1
            while True:
                tokens, positions, blocks = (
                    [*tokens, token],
                    [*positions, blank.place],
                    [*blocks, block],
                )
                if block > blank.sampling.max_tokens:
                    break
                mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
                if not model.settings.causal:
                    mask[:, :count] = True
                inputs = [torch.tensor([values]) for values in (tokens, positions, blocks)]
                with torch.inference_mode():
                    hidden = model.hidden_states(*inputs, mask[None, None])
                    logits = model.logits(hidden[0, -1])
                token = int(logits.masked_fill(forbidden, -torch.inf).argmax())
                if token in (special.eop, special.eos):
                    break
                taken.append(token)
                logprobs.append(float(logits.log_softmax(-1)[token]))
                block += 1
                if block > blank.sampling.max_tokens:
                    tokens, positions, blocks = (
                        [*tokens, token],
                        [*positions, blank.place],
                        [*blocks, block],
                    )
                    break
            answers.append((taken, logprobs))
        return answers

    return answer
