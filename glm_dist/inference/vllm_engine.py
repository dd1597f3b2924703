"""vLLM behind the interface of our engine, for exported causal models where it is installed.

The only file that imports vllm, whose torch is another than ours: it runs in an environment of its
own. vLLM computes and chooses, token by token; which text that is, stop strings, ends and
bookkeeping are ours, so that endpoints cannot tell one engine from the other.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glm_dist.engine.folders import read_config, read_model_config
from glm_dist.errors import ModelError, RequestError
from glm_dist.inference.admission import check_adapter, check_request
from glm_dist.inference.constraints import Matchers
from glm_dist.inference.detokenize import TokenTexts
from glm_dist.inference.requests import (
    Alternative,
    AnyRequest,
    Delta,
    EngineStats,
    Output,
    Request,
    ScoreRequest,
    Scores,
    Usage,
)
from glm_dist.inference.sampling import noise_key
from glm_dist.inference.sequences import Generated, Group, Scored
from glm_dist.inference.settings import EngineLimits
from glm_dist.inference.vllm_terms import (
    check_askable,
    check_hostable,
    prompt_ids,
    sampling_arguments,
    structured_arguments,
)
from glm_dist.inference.vocabulary import ending_ids, forbidden_ids
from glm_dist.inference.work import Work
from glm_dist.tokenizer import Tokenizer

Logprobs = Mapping[int, Any]
"""vLLM's: each id with its log-probability and rank."""


class VllmEngine:
    """An engine of vLLM.

    Args:
        folder: an exported causal model.
        limits: as of our engine; blocks and tiles are vLLM's own.
        options: further arguments of vLLM's `EngineArgs`.

    Raises:
        ModelError: when it is no such model, or vLLM does not take the options.
    """

    adapters: tuple[str, ...] = ()

    def __init__(self, folder: Path, limits: EngineLimits, options: Mapping[str, Any]) -> None:
        check_hostable(folder)
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import EngineArgs, LLMEngine

        self.settings, _ = read_model_config(folder)
        self.tokenizer, self.limits = Tokenizer.load(folder), limits
        self.texts = TokenTexts(self.tokenizer)
        given = {
            "max_num_seqs": limits.max_running,
            "max_model_len": self.settings.max_position_embeddings,
            "enable_prefix_caching": limits.shares_prompts,
            # vLLM's own auto would make bfloat16 of float32.
            "dtype": read_config(folder)["dtype"] if limits.dtype == "auto" else limits.dtype,
            "disable_log_stats": True,
            "max_logprobs": -1,
            **options,
        }
        try:
            self._llm: Any = LLMEngine.from_engine_args(EngineArgs(model=str(folder), **given))
        except (TypeError, ValueError) as error:
            raise ModelError(f"vllm.options: vLLM refuses them ({error})") from None
        self._ends = ending_ids(self.settings, self.tokenizer)
        forbidden = forbidden_ids(self.settings, self.tokenizer)[: self.settings.vocab_size]
        self._forbidden = np.flatnonzero(forbidden.numpy()).tolist()
        self._work, self._answers = Work(), dict[str, Generated | Scored]()
        self._arrivals = self._steps = 0

    @property
    def has_work(self) -> bool:
        """See `Engine`."""
        return len(self._work) > 0

    def is_in_work(self, request_id: str) -> bool:
        """See `Engine`."""
        return self._work.find(request_id) is not None

    @property
    def stats(self) -> EngineStats:
        """See `Engine`; blocks are counted as if each answer had its whole prompt to itself."""
        size, total = self.limits.block_tokens, self.limits.cache_tokens // self.limits.block_tokens
        held = sum(
            -(-(len(each.group.tokens) + len(each.tokens)) // size)
            for each in self._answers.values()
        )
        running = min(len(self._answers), self.limits.max_running)
        return EngineStats(
            running=running,
            waiting=len(self._answers) - running,
            free_blocks=max(0, total - held),
            total_blocks=total,
            prompt_tokens=self._work.prompt_tokens,
            cached_tokens=self._work.cached_tokens,
            generated_tokens=self._work.generated_tokens,
            preemptions=0,
            steps=self._steps,
        )

    def prepare(self, request: AnyRequest) -> Matchers:
        """Nothing: vLLM compiles what answers are held to."""
        del request
        return {}

    def add(self, request: AnyRequest, matchers: Matchers | None = None) -> None:
        """See `Engine`."""
        del matchers
        if self.is_in_work(request.id):
            raise RequestError(f"request id {request.id!r} is in work already", param="id")
        if len(self._answers) >= self.limits.max_running + self.limits.max_waiting:
            raise RequestError(
                f"{self.limits.max_waiting} answers are waiting already; try again later",
                code="overloaded",
            )
        check_adapter(request, self.adapters)
        check_request(request, self.settings, self.tokenizer, self.limits)
        check_askable(request)
        self._arrivals += 1
        tokens = np.asarray(request.tokens, dtype=np.int64)
        group = Group(request, self._arrivals, tokens, [])
        if isinstance(request, ScoreRequest):
            self._add_scored(group, request)
        elif isinstance(request, Request):
            self._add_generated(group, request)

    def cancel(self, request_id: str) -> Usage | None:
        """See `Engine`."""
        group = self._work.find(request_id)
        if group is None:
            return None
        usage = self.usage(request_id)
        self._work.drop(group)
        self._forget(group)
        return usage

    def usage(self, request_id: str) -> Usage | None:
        """See `Engine`."""
        return self._work.usage(request_id)

    def step(self) -> list[Output]:
        """One step of vLLM; what it gave."""
        self._work.forget_ended()
        self._steps += 1
        outputs: list[Output] = []
        for found in self._llm.step():
            answer = self._answers.get(found.request_id)
            if answer is None:
                continue
            if answer.group.cached_tokens is None:
                answer.group.cached_tokens = found.num_cached_tokens or 0
            if isinstance(answer, Scored):
                outputs += self._score(answer, found)
            else:
                outputs += self._take(answer, found.outputs[0])
        return outputs

    def forget_prompts(self) -> None:
        """See `Engine`."""
        self._llm.reset_prefix_cache()

    def _add_generated(self, group: Group, request: Request) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        blank, special = request.blanks[0], self.tokenizer.special
        answers = [
            Generated.begin(group, number, [0], special, self.texts)
            for number in range(request.num_samples)
        ]
        held = structured_arguments(blank.sampling)
        try:
            asked = [
                SamplingParams(
                    **sampling_arguments(
                        blank.sampling,
                        noise_key(blank.sampling.seed, answer.number, 0, 0),
                        self._ends,
                        self._forbidden,
                    ),
                    output_kind=RequestOutputKind.DELTA,
                    structured_outputs=StructuredOutputsParams(**held) if held else None,
                )
                for answer in answers
            ]
        except ValueError as error:
            raise RequestError(str(error), param=next(iter(held), None)) from None
        self._enter(group, answers, [prompt_ids(request, blank, special)] * len(answers), asked)

    def _add_scored(self, group: Group, request: ScoreRequest) -> None:
        from vllm import SamplingParams

        special, number = self.tokenizer.special, max(1, request.num_logprobs)
        answers = [Scored.begin(group, place, special) for place in range(len(request.options))]
        asked = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=number, detokenize=False
        )
        begun = prompt_ids(request, request, special)
        prompts = [[*begun, *answer.targets] for answer in answers]
        self._enter(group, answers, prompts, [asked] * len(answers))

    def _enter(
        self, group: Group, answers: list[Any], prompts: list[list[int]], asked: list[Any]
    ) -> None:
        """Give the answers to vLLM, all of them or none."""
        names = [_name(answer) for answer in answers]
        try:
            for name, prompt, params in zip(names, prompts, asked, strict=True):
                given = {"prompt_token_ids": prompt}
                self._llm.add_request(name, given, params, priority=group.request.priority)
        except (ValueError, TypeError) as error:
            self._llm.abort_request(names)
            raise RequestError(f"vLLM refuses it: {error}", param="prompt") from None
        self._work.begin(group, answers)
        self._answers |= dict(zip(names, answers, strict=True))

    def _take(self, answer: Generated, found: Any) -> list[Output]:
        """What the new tokens of an answer make of it."""
        outputs: list[Output] = []
        num_shown = answer.sampling.num_logprobs
        ends = self._ends.union(answer.sampling.stop_tokens)
        logprobs = found.logprobs or [{}] * len(found.token_ids)
        for token, known in zip(found.token_ids, logprobs, strict=True):
            if answer.is_over:
                break
            taken = answer.take(token, ends, self.tokenizer.special, self.texts)
            is_kept = taken.token is not None
            self._work.count(answer.group, is_kept)
            if answer.is_over:
                self._end(answer)
            shown = is_kept and num_shown is not None
            outputs.append(
                Delta(
                    request_id=answer.group.request.id,
                    sample=answer.number,
                    blank=taken.blank,
                    tokens=(token,) if is_kept else (),
                    text=taken.text,
                    logprobs=(known[token].logprob,) if shown else (),
                    alternatives=(_likeliest(known, num_shown),) if shown and num_shown else (),
                    finish_reason=taken.finish_reason,
                    stopped_by=taken.stopped_by,
                    is_last=not answer.group.num_open,
                )
            )
        if found.finish_reason is not None and not answer.is_over:
            outputs.append(self._cut(answer, found.finish_reason))
        return outputs

    def _cut(self, answer: Generated, reason: str) -> Delta:
        """VLLM has ended an answer that by our rules would go on: its form is complete."""
        assert answer.stream is not None
        text, answer.blanks = answer.stream.finish(), []
        self._end(answer)
        return Delta(
            request_id=answer.group.request.id,
            sample=answer.number,
            blank=0,
            text=text,
            finish_reason="length" if reason == "length" else "stop",
            is_last=not answer.group.num_open,
        )

    def _score(self, answer: Scored, found: Any) -> list[Output]:
        if not found.finished:
            return []
        request = answer.group.request
        assert isinstance(request, ScoreRequest)
        given = found.prompt_logprobs[-len(answer.targets) :]
        for token, known in zip(answer.targets, given, strict=True):
            likeliest = _likeliest(known, max(1, request.num_logprobs))
            answer.note(known[token].logprob, token, likeliest)
        self._end(answer)
        if answer.group.num_open:
            return []
        return [Scores(request.id, tuple(one for _, one in sorted(answer.group.scores.items())))]

    def _end(self, answer: Generated | Scored) -> None:
        name = _name(answer)
        del self._answers[name]
        self._llm.abort_request([name])  # nothing, where vLLM has ended it too
        self._work.leave(answer)

    def _forget(self, group: Group) -> None:
        names = [name for name, answer in self._answers.items() if answer.group is group]
        self._llm.abort_request(names)
        for name in names:
            del self._answers[name]


def _name(answer: Generated | Scored) -> str:
    return f"{answer.group.request.id}/{answer.number}"


def _likeliest(known: Logprobs, count: int) -> tuple[Alternative, ...]:
    """The first by rank."""
    ranked = sorted(known.items(), key=lambda one: one[1].rank)
    return tuple(Alternative(token, one.logprob) for token, one in ranked[:count])
