"""What each endpoint answers for one model: a body, or the events of a stream.

It stands apart from routes, keys and limits, which know nothing of models.
"""

import base64
import copy
import time
from dataclasses import replace
from typing import Any

import numpy as np

from glm_dist.inference import Embedding
from glm_dist.model import ModelSettings
from glm_dist.serve import choosing, completions, dialogue, editor, infilling, tasks
from glm_dist.serve.asking import Asker, Reply, merged
from glm_dist.serve.chat_protocol import ChatRequest, TokenizeRequest
from glm_dist.serve.context import Context
from glm_dist.serve.editor import EditorRequest
from glm_dist.serve.engine_thread import AnyEngine
from glm_dist.serve.errors import ApiError
from glm_dist.serve.keys import Caller
from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.prompts import Prompts
from glm_dist.serve.protocol import CompletionRequest, InfillRequest
from glm_dist.serve.readiness import Readiness
from glm_dist.serve.replies import TokenNames, usage_of
from glm_dist.serve.task_protocol import (
    ClassifyRequest,
    DecisionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    ScoreRequest,
    TaskRequest,
)
from glm_dist.serve.templates import ChatTemplate
from glm_dist.tasks import Task
from glm_dist.tokenizer import PIECES, Tokenizer


class Endpoints:
    """Answers for one model."""

    def __init__(
        self,
        name: str,
        engine: AnyEngine,
        tokenizer: Tokenizer,
        settings: ModelSettings,
        limits: RequestLimits,
        template: ChatTemplate | None = None,
        task: Task[Any] | None = None,
    ) -> None:
        """Answers for a model.

        Args:
            name: what clients call it.
            engine: what computes.
            tokenizer: the model's.
            settings: the model's.
            limits: what may be asked for at most.
            template: lays dialogues out; ours where none is given.
            task: what the model was tuned for, if anything.
        """
        self.name, self.engine, self.task = name, engine, task
        self._template = template or ChatTemplate.named("glm_dist", tokenizer)
        self._context = Context(
            name,
            settings,
            tokenizer,
            Asker(engine),
            Prompts(tokenizer, settings, limits),
            TokenNames(tokenizer),
        )
        self.readiness = Readiness(engine, tokenizer, settings)
        self.parent: str | None = None
        """Name of the model that this is an adapter of."""
        self._created = int(time.time())

    def of_adapter(self, name: str, task: Task[Any] | None = None) -> "Endpoints":
        """The same model with an adapter of its engine, under the adapter's name."""
        other = copy.copy(self)
        other.name, other.parent, other.task = name, self.name, task
        asker = self._context.asker.of_adapter(name)
        other._context = replace(self._context, name=name, asker=asker)
        return other

    def describe(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`."""
        settings = self._context.settings
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "glm_dist",
            "parent": self.parent,
            "max_model_len": settings.max_position_embeddings,
            "attention": "causal" if settings.causal else "prefix",
            "kind": "base model" if self.task is None else "tuned model",
            "task": None if self.task is None else tasks.describe_task(self.task),
        }

    async def completions(self, body: CompletionRequest, caller: Caller) -> Reply:
        """`/v1/completions`."""
        return await completions.complete(self._context, body, caller)

    async def chat(self, body: ChatRequest, caller: Caller) -> Reply:
        """`/v1/chat/completions`."""
        return await dialogue.chat(self._context, self._template, body, caller)

    async def infill(self, body: InfillRequest, caller: Caller) -> Reply:
        """`/v1/infill`."""
        return await infilling.infill(self._context, body, caller)

    async def fill_at_cursor(self, body: EditorRequest, caller: Caller) -> Reply:
        """`/infill`."""
        return await editor.fill_at_cursor(self._context, body, caller)

    async def classify(self, body: ClassifyRequest, caller: Caller) -> Reply:
        """`/v1/classify`."""
        if body.labels is None:
            return await tasks.classify(self._context, self.task, body, caller)
        return await choosing.classify(self._context, body, body.labels, caller)

    async def answer(self, body: TaskRequest, caller: Caller) -> Reply:
        """`/v1/tasks/{name}`."""
        return await tasks.answer(self._context, self.task, body, caller)

    async def decisions(self, body: DecisionRequest, caller: Caller) -> Reply:
        """`/v1/decisions`."""
        return await choosing.decide(self._context, body, caller)

    async def score(self, body: ScoreRequest, caller: Caller) -> Reply:
        """`/v1/score`."""
        return await choosing.score(self._context, body, caller)

    async def embeddings(self, body: EmbeddingRequest, caller: Caller) -> Reply:
        """`/v1/embeddings`: means of the final hidden states."""
        size = self._context.settings.hidden_size
        if body.dimensions not in (None, size):
            raise ApiError(400, f"dimensions: this model gives {size}", param="dimensions")
        texts = self._context.prompts.texts(body.input, "input")
        requests = [self._context.prompts.of_embedding(text) for text in texts]
        for request in requests:
            self._context.prompts.checks.length(len(request.tokens), "input")
        data: list[dict[str, Any]] = [{} for _ in requests]
        async with self._context.asker.asking(requests, caller) as streams:
            async for place, output in merged(streams):
                assert isinstance(output, Embedding)
                vector: list[float] | str = list(output.vector)
                if body.encoding_format == "base64":
                    vector = base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()
                data[place] = {"object": "embedding", "index": place, "embedding": vector}
            usage = usage_of([stream.usage for stream in streams])
        return {"object": "list", "model": self.name, "data": data, "usage": usage}

    async def tokenize(self, body: TokenizeRequest, caller: Caller) -> Reply:
        """`/tokenize`: ids of a text or of a dialogue."""
        del caller
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "prompt: give it or messages, and not both", param="prompt")
        if body.messages is not None:
            tools = [tool.function.model_dump(exclude_none=True) for tool in body.tools or []]
            tokens = dialogue.chat_tokens(self._context, self._template, body.messages, tools)
        else:
            tokens = self._context.prompts.encode(body.prompt or "", "prompt")
            if body.add_special_tokens:
                special = self._context.tokenizer.special
                tokens = [special.enc, *tokens, special.gmask]
        longest = self._context.settings.max_position_embeddings
        return {"tokens": tokens, "count": len(tokens), "max_model_len": longest}

    async def detokenize(self, body: DetokenizeRequest, caller: Caller) -> Reply:
        """`/detokenize`: the text of ids."""
        del caller
        tokenizer = self._context.tokenizer
        wrong = [token for token in body.tokens if token >= tokenizer.vocab_size]
        if wrong:
            raise ApiError(400, f"tokens: {wrong[:5]} are no ids of this model", param="tokens")
        return {"prompt": tokenizer.decode(body.tokens)}

    def tokenizer_info(self) -> dict[str, Any]:
        """`/tokenizer_info`: the special tokens by their roles, as transformers names them."""
        tokenizer = self._context.tokenizer
        special = tokenizer.special
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": self._context.settings.max_position_embeddings,
            "bos_token": tokenizer.piece(special.sop),
            "eos_token": tokenizer.piece(special.eop),
            "pad_token": tokenizer.piece(special.pad),
            "unk_token": tokenizer.piece(special.unk),
            "mask_token": tokenizer.piece(special.mask),
            "additional_special_tokens": [
                tokenizer.piece(getattr(special, role))
                for role in PIECES
                if getattr(special, role) >= 0
            ],
        }
