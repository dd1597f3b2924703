"""Completes prompts and fills blanks: Part A once, then token by token with a KV cache.

As in the reference, the blanks of a text are filled from left to right; each blank's tokens share
the position of its mask and count a second position from 1, and later blanks see earlier ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glm_dist.errors import ModelError
from glm_dist.inference.sampling import choose_tokens
from glm_dist.inference.settings import GenerationSettings
from glm_dist.model import GLM, KVCache
from glm_dist.tokenizer import Tokenizer

STEPS_BETWEEN_LOOKS = 8  # looking whether all texts are done makes the device wait


@dataclass(frozen=True)
class Generation:
    """One text, filled."""

    prompt: str
    blanks: list[str]
    """What was generated for each mask, left to right."""
    text: str
    """The prompt with its blanks filled in, or with its continuation."""


@dataclass
class _Rows:
    """Texts being decoded, one a row of the batch; tensors are [B] unless said."""

    mask_positions: Tensor
    """[B, most blanks], the place of each mask in Part A."""
    num_blanks: Tensor
    blank: Tensor
    block_position: Tensor
    tokens: Tensor
    """The token fed next."""

    @property
    def is_done(self) -> Tensor:
        """Whether a text has all its blanks filled."""
        return self.blank >= self.num_blanks

    @property
    def positions(self) -> Tensor:
        """The first position of the token fed next."""
        last = (self.num_blanks - 1).clamp(min=0)
        return self.mask_positions.gather(1, torch.minimum(self.blank, last)[:, None])[:, 0]


class Generator:
    """Generates with one model and its tokenizer, many texts at a time."""

    def __init__(self, model: GLM, tokenizer: Tokenizer) -> None:
        head = model.settings.head
        if head.is_classifier:
            raise ModelError(
                f"this model's head scores the labels {', '.join(head.labels)} and no tokens; "
                "generate with a language model"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        special = tokenizer.special
        self._mask_ids = (special.mask, special.smask, special.gmask)
        forbidden = torch.zeros(model.settings.padded_vocab_size, dtype=torch.bool)
        forbidden[torch.from_numpy(tokenizer.special_ids).long()] = True
        forbidden[[special.eop, special.eos]] = False
        self._forbidden = forbidden.to(self.device)

    @torch.inference_mode()
    def generate(
        self, texts: Sequence[str], settings: GenerationSettings | None = None
    ) -> list[Generation]:
        """Fill the `[MASK]`, `[sMASK]` and `[gMASK]` of each text; one without is continued.

        Raises:
            ModelError: when a text or an answer is longer than the model's positions.
        """
        if not texts:
            return []
        settings = settings or GenerationSettings()
        prompts = [self.encode(text) for text in texts]
        self._check_lengths(prompts, settings)
        tokens, blanks = self._decode(prompts, settings)
        return [
            self._finish(text, prompt, row_tokens, row_blanks)
            for text, prompt, row_tokens, row_blanks in zip(
                texts, prompts, tokens, blanks, strict=True
            )
        ]

    def encode(self, text: str) -> np.ndarray:
        """Part A of a text: `[ENC]`, its tokens, and `[gMASK]` where it has no mask."""
        tokens = self.tokenizer.encode_with_masks(text)
        tail = [] if np.isin(tokens, self._mask_ids).any() else [self.tokenizer.special.gmask]
        return np.concatenate(([self.tokenizer.special.enc], tokens, tail)).astype(np.int64)

    def _check_lengths(self, prompts: list[np.ndarray], settings: GenerationSettings) -> None:
        limit = self.model.settings.max_position_embeddings
        longest = max(map(len, prompts))
        if longest > limit or settings.max_new_tokens >= limit:
            raise ModelError(
                f"the longest prompt has {longest} tokens and max_new_tokens is "
                f"{settings.max_new_tokens}; this model has {limit} positions for each: shorten"
            )

    def _decode(
        self, prompts: list[np.ndarray], settings: GenerationSettings
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens generated and the blank each belongs to, [B, steps]; -1 where there is none."""
        rows = self._start(prompts)
        num_steps = int(rows.num_blanks.max()) * (settings.max_new_tokens + 1)
        prompt_length = max(map(len, prompts))
        cache = KVCache.allocate(
            self.model.settings,
            batch_size=len(prompts),
            max_tokens=prompt_length + num_steps,
            dtype=next(self.model.parameters()).dtype,
            device=self.device,
        )
        visible = torch.ones(
            len(prompts), prompt_length + num_steps, dtype=torch.bool, device=self.device
        )
        visible[:, :prompt_length] = self._prefill(prompts, cache)
        generated = torch.full((2, len(prompts), num_steps), -1, device=self.device)
        for step in range(num_steps):
            hidden = self.model.hidden_states(
                rows.tokens[:, None],
                rows.positions[:, None],
                rows.block_position[:, None],
                visible[:, None, None, : prompt_length + step + 1],
                cache,
            )
            logits = self.model.logits(hidden[:, -1]).masked_fill(self._forbidden, -torch.inf)
            self._advance(rows, logits, generated[:, :, step], step, settings)
            if step % STEPS_BETWEEN_LOOKS == 0 and bool(rows.is_done.all()):
                break
        tokens, blanks = generated.cpu().numpy()
        return tokens, blanks

    def _start(self, prompts: list[np.ndarray]) -> _Rows:
        places = [np.flatnonzero(np.isin(prompt, self._mask_ids)) for prompt in prompts]
        table = np.zeros((len(prompts), max(map(len, places))), dtype=np.int64)
        for row, masks in enumerate(places):
            table[row, : len(masks)] = masks
        ones = torch.ones(len(prompts), dtype=torch.long, device=self.device)
        return _Rows(
            mask_positions=torch.from_numpy(table).to(self.device),
            num_blanks=torch.tensor([len(masks) for masks in places], device=self.device),
            blank=ones - 1,
            block_position=ones.clone(),
            tokens=ones * self.tokenizer.special.sop,
        )

    def _prefill(self, prompts: list[np.ndarray], cache: KVCache) -> Tensor:
        """Run Part A, padded on the left, into the cache; which of its keys are real, [B, A]."""
        length = max(map(len, prompts))
        tokens = np.full((len(prompts), length), self.tokenizer.special.pad, dtype=np.int64)
        positions = np.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, length - len(prompt) :] = prompt
            positions[row, length - len(prompt) :] = np.arange(len(prompt))
        starts = np.array([length - len(prompt) for prompt in prompts])
        is_real = torch.from_numpy(np.arange(length) >= starts[:, None]).to(self.device)
        eye = torch.eye(length, dtype=torch.bool, device=self.device)  # padding sees itself
        visible = is_real[:, None, :]
        if self.model.settings.causal:
            visible = visible & torch.ones_like(eye).tril()
        on_device = torch.from_numpy(tokens).to(self.device)
        self.model.hidden_states(
            on_device,
            torch.from_numpy(positions).to(self.device),
            torch.zeros_like(on_device),
            (visible | eye)[:, None],
            cache,
        )
        return is_real

    def _advance(
        self,
        rows: _Rows,
        logits: Tensor,
        generated: Tensor,
        step: int,
        settings: GenerationSettings,
    ) -> None:
        """Take each row's next token; rows whose blank ends go on with the next one."""
        special = self.tokenizer.special
        token = choose_tokens(logits, step, settings)
        is_end = (token == special.eop) | (token == special.eos)
        is_kept = ~is_end & ~rows.is_done
        generated[0] = torch.where(is_kept, token, -1)
        generated[1] = torch.where(is_kept, rows.blank, -1)
        is_over = is_end | (rows.block_position >= settings.max_new_tokens)
        rows.blank = rows.blank + is_over.long()
        rows.tokens = torch.where(is_over, special.sop, token)
        rows.block_position = torch.where(is_over, 1, rows.block_position + 1)

    def _finish(
        self, text: str, prompt: np.ndarray, tokens: np.ndarray, blanks: np.ndarray
    ) -> Generation:
        decode = self.tokenizer.decode
        places = np.flatnonzero(np.isin(prompt, self._mask_ids))
        answers = [decode(tokens[blanks == blank]) for blank in range(len(places))]
        pieces, start = [], 1
        for place, answer in zip(places, answers, strict=True):
            pieces += [decode(prompt[start:place]), answer]
            start = int(place) + 1
        pieces.append(decode(prompt[start:]))
        return Generation(text, answers, "".join(pieces))
