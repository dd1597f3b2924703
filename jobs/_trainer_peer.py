"""What users have today: the Trainer of transformers on the same causal shape and rows.

Its class computes all of a row as one text, without looking which samples lie in it, which is less
work than masks; and it takes all targets where ours leave padding out.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from glm_dist.data.rows import Rows
from glm_dist.engine.device import choose_device, choose_dtype
from glm_dist.model.huggingface import config_from_settings
from glm_dist.train.settings import PretrainSettings


class Laps(transformers.TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start a lap."""
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End it."""
        self.seconds.append(time.perf_counter() - self._start)


def trainer_loop(
    settings: PretrainSettings, steps: Sequence[Sequence[Rows]], folder: str, compiled: bool
) -> list[float]:
    """Train the model of these settings with the Trainer; seconds of each step."""
    transformers.utils.logging.set_verbosity_error()
    config = AutoConfig.for_model(
        **config_from_settings(settings.model, torch.float32, pad_token_id=0)
    )
    config.use_cache = False
    rows = [row for rows in steps for batch in rows for row in batch["tokens"]]
    engine = settings.engine
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings.batch.micro_batch_size,
        gradient_accumulation_steps=settings.accumulation_steps,
        max_steps=len(steps),
        learning_rate=settings.schedule.peak_learning_rate,
        lr_scheduler_type="constant",
        weight_decay=engine.weight_decay,
        adam_beta1=engine.beta1,
        adam_beta2=engine.beta2,
        max_grad_norm=engine.gradient_clip_norm,
        bf16=choose_dtype(engine, choose_device()) is torch.bfloat16,
        torch_compile=compiled,
        use_cpu=not torch.cuda.is_available(),
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    laps = Laps()
    Trainer(
        AutoModelForCausalLM.from_config(config),
        arguments,
        data_collator=_collate,
        train_dataset=rows,
        callbacks=[laps],
    ).train()
    return laps.seconds


def _collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    tokens = torch.stack([torch.as_tensor(row) for row in rows]).long()
    return {"input_ids": tokens, "labels": tokens}
