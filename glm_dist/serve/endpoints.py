"""What each endpoint answers for one model: a body, or the events of a stream.

It stands apart from routes, keys and limits, which know nothing of models.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import numpy as np

from glm_dist.errors import RequestError
from glm_dist.inference import AnyRequest, Delta, Embedding, Failure, Output, Scores
from glm_dist.model import ModelSettings
from glm_dist.serve.engine_thread import EngineThread, Stream
from glm_dist.serve.errors import ApiError, from_request_error
from glm_dist.serve.prompts import Prompt, Prompts
from glm_dist.serve.protocol import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    InfillRequest,
    Sampled,
    StreamOptions,
    TokenizeRequest,
)
from glm_dist.serve.replies import (
    DONE,
    Answer,
    Echo,
    Frame,
    TokenNames,
    event,
    usage_of,
)
from glm_dist.serve.settings import RequestLimits
from glm_dist.tokenizer import Tokenizer

Reply: TypeAlias = dict[str, Any] | AsyncIterator[str]
"""A whole body, or server-sent events."""
Arrival: TypeAlias = tuple[int, Output]
"""Which of the requests it belongs to, and what came."""


class Endpoints:
    """Answers for one model."""

    def __init__(
        self,
        name: str,
        engine: EngineThread,
        tokenizer: Tokenizer,
        settings: ModelSettings,
        limits: RequestLimits,
    ) -> None:
        self.name, self.engine = name, engine
        self._tokenizer, self._settings = tokenizer, settings
        self._prompts = Prompts(tokenizer, settings, limits)
        self._names = TokenNames(tokenizer)
        self._created = int(time.time())

    def describe(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "glm_dist",
            "max_model_len": self._settings.max_position_embeddings,
            "attention": "causal" if self._settings.causal else "prefix",
            "kind": "base model",
        }

    async def completions(self, body: CompletionRequest, salt: str) -> Reply:
        """`/v1/completions`."""
        prompts = self._prompts.of_completion(body, salt)
        frame = Frame("text_completion", self.name, "cmpl")
        if body.stream:
            if body.echo and body.logprobs is not None:
                raise ApiError(400, "logprobs: cannot be streamed with echo", param="logprobs")
            return await self._stream(
                [prompt.request for prompt in prompts if prompt.request is not None],
                body,
                lambda place, delta: frame.of([self._completion_part(body, place, delta)]),
                [frame.of([self._echo_part(body, i, p)]) for i, p in enumerate(prompts)]
                if body.echo
                else [],
                frame,
            )
        echoes = await self._echoes(prompts)
        asked = [p.request for p in prompts if p.request is not None]
        answers, usage = await self._answers(asked)
        choices = []
        for number, prompt in enumerate(prompts):
            for sample in range(body.num_samples):
                answer = answers.get((number, sample, 0), Answer(finish_reason="length"))
                logprobs = None
                if body.logprobs is not None:
                    echo = echoes.get(number)
                    logprobs = self._names.completion_logprobs(answer, body.logprobs, echo)
                choices.append(
                    {
                        "index": number * body.num_samples + sample,
                        "text": (prompt.text if body.echo else "") + answer.text,
                        "logprobs": logprobs,
                        "finish_reason": answer.finish_reason,
                    }
                )
        return {**frame.of(choices), "usage": usage}

    async def chat(self, body: ChatRequest, salt: str) -> Reply:
        """`/v1/chat/completions`."""
        request = self._prompts.of_chat(body, salt)
        frame = Frame("chat.completion", self.name, "chatcmpl")
        if body.stream:
            kind = "chat.completion.chunk"
            first = [
                frame.of([self._chat_part(sample, {"role": "assistant", "content": ""})], kind)
                for sample in range(body.num_samples)
            ]
            return await self._stream(
                [request],
                body,
                lambda _, delta: frame.of(self._chat_parts(body, delta), kind),
                first,
                frame,
                kind,
            )
        answers, usage = await self._answers([request])
        choices = [
            {
                "index": sample,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._names.chat_logprobs(answer.tokens, answer)
                if body.logprobs
                else None,
                "finish_reason": answer.finish_reason,
            }
            for (_, sample, _), answer in sorted(answers.items())
        ]
        return {**frame.of(choices), "usage": usage}

    async def infill(self, body: InfillRequest, salt: str) -> Reply:
        """`/v1/infill`."""
        request = self._prompts.of_infill(body, salt)
        frame = Frame("infill", self.name, "infill")
        if body.stream:
            return await self._stream(
                [request],
                body,
                lambda _, delta: frame.of([self._infill_part(delta)], "infill.chunk"),
                [],
                frame,
                "infill.chunk",
            )
        answers, usage = await self._answers([request])
        choices = []
        for sample in range(body.num_samples):
            blanks = [answers[(0, sample, blank)] for blank in range(len(request.blanks))]
            choices.append({"index": sample, **self._filled(body, blanks)})
        return {**frame.of(choices), "usage": usage}

    async def classify(self, body: ClassifyRequest, salt: str) -> dict[str, Any]:
        """`/v1/classify`: probabilities of the labels, which add up to 1."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        requests = [self._prompts.of_classify(body, text, salt) for text in texts]
        data: list[dict[str, Any]] = [{} for _ in requests]
        async with self._asking(requests) as streams:
            async for place, output in merged(streams):
                assert isinstance(output, Scores)
                totals = np.array([score.total for score in output.options])
                if body.normalise_length:
                    totals = totals / [len(score.logprobs) for score in output.options]
                shares = np.exp(totals - np.logaddexp.reduce(totals))
                data[place] = {
                    "index": place,
                    "label": body.labels[int(shares.argmax())],
                    "probs": dict(zip(body.labels, shares.tolist(), strict=True)),
                    "logprobs": dict(zip(body.labels, totals.tolist(), strict=True)),
                }
            usage = usage_of([stream.usage for stream in streams])
        return {"object": "list", "model": self.name, "data": data, "usage": usage}

    async def embeddings(self, body: EmbeddingRequest, salt: str) -> dict[str, Any]:
        """`/v1/embeddings`: means of the final hidden states."""
        del salt
        if body.dimensions not in (None, self._settings.hidden_size):
            raise ApiError(
                400,
                f"dimensions: this model gives {self._settings.hidden_size}",
                param="dimensions",
            )
        tokens = self._prompts.prompt_tokens(body.input, "input")
        requests = [self._prompts.of_embedding(one) for one in tokens]
        data: list[dict[str, Any]] = [{} for _ in requests]
        async with self._asking(requests) as streams:
            async for place, output in merged(streams):
                assert isinstance(output, Embedding)
                vector: list[float] | str = list(output.vector)
                if body.encoding_format == "base64":
                    vector = base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()
                data[place] = {"object": "embedding", "index": place, "embedding": vector}
            usage = usage_of([stream.usage for stream in streams])
        return {"object": "list", "model": self.name, "data": data, "usage": usage}

    async def tokenize(self, body: TokenizeRequest, salt: str) -> dict[str, Any]:
        """`/tokenize`: ids of a text or of a dialogue."""
        del salt
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "prompt: give it or messages, and not both", param="prompt")
        if body.messages is not None:
            tokens = self._prompts.chat_tokens(body.messages)
        else:
            tokens = self._tokenizer.encode(body.prompt or "").tolist()
            if body.add_special_tokens:
                special = self._tokenizer.special
                tokens = [special.enc, *tokens, special.gmask]
        longest = self._settings.max_position_embeddings
        return {"tokens": tokens, "count": len(tokens), "max_model_len": longest}

    async def detokenize(self, body: DetokenizeRequest, salt: str) -> dict[str, Any]:
        """`/detokenize`: the text of ids."""
        del salt
        wrong = [token for token in body.tokens if token >= self._tokenizer.vocab_size]
        if wrong:
            raise ApiError(400, f"tokens: {wrong[:5]} are no ids of this model", param="tokens")
        return {"prompt": self._tokenizer.decode(body.tokens)}

    @asynccontextmanager
    async def _asking(self, requests: Sequence[AnyRequest]) -> AsyncIterator[list[Stream]]:
        """Streams of the requests, dropped again however this ends."""
        streams: list[Stream] = []
        try:
            for request in requests:
                try:
                    streams.append(await self.engine.submit(request))
                except RequestError as error:
                    raise from_request_error(error) from None
                except RuntimeError as error:
                    raise ApiError(503, str(error)) from None
            yield streams
        finally:
            for stream in streams:
                self.engine.cancel(stream)

    async def _answers(
        self, requests: Sequence[AnyRequest]
    ) -> tuple[dict[tuple[int, int, int], Answer], dict[str, Any]]:
        """Whole answers by request, sample and blank, and what they took."""
        answers: dict[tuple[int, int, int], Answer] = {}
        async with self._asking(requests) as streams:
            async for place, delta in merged(streams):
                assert isinstance(delta, Delta)
                answers.setdefault((place, delta.sample, delta.blank), Answer()).add(delta)
            return answers, usage_of([stream.usage for stream in streams])

    async def _echoes(self, prompts: Sequence[Prompt]) -> dict[int, Echo]:
        """Log-probabilities of the prompts' own tokens by prompt, where they are wanted."""
        places = [number for number, prompt in enumerate(prompts) if prompt.scoring is not None]
        found = {}
        scorings = [prompts[number].scoring for number in places]
        async with self._asking([one for one in scorings if one is not None]) as streams:
            async for place, output in merged(streams):
                assert isinstance(output, Scores)
                number = places[place]
                found[number] = Echo.of(prompts[number].tokens.tolist(), output.options[0])
        return found

    async def _stream(
        self,
        requests: Sequence[AnyRequest],
        body: Sampled,
        part_of: Callable[[int, Delta], dict[str, Any]],
        first: Sequence[dict[str, Any]],
        frame: Frame,
        kind: str | None = None,
    ) -> AsyncIterator[str]:
        """Events of a streamed reply, begun: what is refused is refused before there is one."""

        async def parts(streams: Sequence[Stream]) -> AsyncIterator[dict[str, Any]]:
            for part in first:
                yield part
            async for place, delta in merged(streams):
                assert isinstance(delta, Delta)
                if delta.text or delta.tokens or delta.finish_reason:
                    yield part_of(place, delta)

        async def events() -> AsyncIterator[str]:
            options = body.stream_options or StreamOptions()
            async with self._asking(requests) as streams:
                try:
                    async for part in parts(streams):
                        if options.include_usage:
                            running = usage_of([stream.usage for stream in streams])
                            part["usage"] = running if options.continuous_usage_stats else None
                        yield event(part)
                    if options.include_usage:
                        usage = usage_of([stream.usage for stream in streams])
                        yield event({**frame.of([], kind), "usage": usage})
                except ApiError as error:
                    yield event(error.body)
            yield DONE

        begun = events()
        return _chained(await anext(begun), begun)

    def _completion_part(self, body: CompletionRequest, place: int, delta: Delta) -> dict[str, Any]:
        logprobs = None
        if body.logprobs is not None and delta.tokens:
            answer = Answer()
            answer.add(delta)
            logprobs = self._names.completion_logprobs(answer, body.logprobs)
        return {
            "index": place * body.num_samples + delta.sample,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }

    def _echo_part(self, body: CompletionRequest, place: int, prompt: Prompt) -> dict[str, Any]:
        index = place * body.num_samples
        return {"index": index, "text": prompt.text, "logprobs": None, "finish_reason": None}

    def _chat_part(
        self, sample: int, delta: dict[str, Any], finish_reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": sample, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def _chat_parts(self, body: ChatRequest, delta: Delta) -> list[dict[str, Any]]:
        """What came, and the end in a part of its own."""
        part = self._chat_part(delta.sample, {"content": delta.text} if delta.text else {})
        if body.logprobs and delta.tokens:
            part["logprobs"] = self._names.chat_logprobs(delta.tokens, delta)
        if not delta.finish_reason:
            return [part]
        if not delta.text and not part["logprobs"]:
            return [self._chat_part(delta.sample, {}, delta.finish_reason)]
        return [part, self._chat_part(delta.sample, {}, delta.finish_reason)]

    def _infill_part(self, delta: Delta) -> dict[str, Any]:
        return {
            "index": delta.sample,
            "blank_index": delta.blank,
            "delta": {"text": delta.text},
            "finish_reason": delta.finish_reason,
        }

    def _filled(self, body: InfillRequest, blanks: Sequence[Answer]) -> dict[str, Any]:
        """The text with its blanks filled, and where each lies in it."""
        rest, text, shown = body.input, "", []
        for number, answer in enumerate(blanks):
            mask = min(
                (mask for mask in ("[MASK]", "[sMASK]", "[gMASK]") if mask in rest),
                key=rest.index,
            )
            before, rest = rest.split(mask, 1)
            text += before
            entry: dict[str, Any] = {
                "index": number,
                "type": mask,
                "start": len(text),
                "end": len(text) + len(answer.text),
                "text": answer.text,
                "finish_reason": answer.finish_reason,
            }
            if body.logprobs is not None:
                entry["logprobs"] = self._names.chat_logprobs(answer.tokens, answer)
            shown.append(entry)
            text += answer.text
        return {"text": text + rest, "blanks": shown}


async def merged(streams: Sequence[Stream]) -> AsyncIterator[Arrival]:
    """Outputs of all streams as they come; the first failure ends it.

    Raises:
        ApiError: when a request broke while it ran.
    """
    arrivals: asyncio.Queue[Arrival | Exception | None] = asyncio.Queue()

    async def pump(place: int, stream: Stream) -> None:
        try:
            async for output in stream.outputs():
                arrivals.put_nowait((place, output))
        except Exception as error:
            arrivals.put_nowait(error)
        arrivals.put_nowait(None)

    tasks = [asyncio.create_task(pump(place, stream)) for place, stream in enumerate(streams)]
    try:
        remaining = len(tasks)
        while remaining:
            arrival = await arrivals.get()
            if arrival is None:
                remaining -= 1
            elif isinstance(arrival, Exception):
                raise ApiError(500, f"the engine failed: {arrival}") from arrival
            elif isinstance(arrival[1], Failure):
                raise ApiError(500, arrival[1].message)
            else:
                yield arrival
    finally:
        for task in tasks:
            task.cancel()


async def _chained(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for one in rest:
        yield one
