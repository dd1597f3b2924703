"""Trained adapters as folders in peft's format, and a base model's weights with one merged in.

They stand apart because an adapter is a small file beside a large model that others use too. Only
tensors and formulae are needed here; peft is not.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from glm_dist.engine.folders import CONFIG, Weights, open_weight_folder
from glm_dist.engine.storage import hash_file
from glm_dist.errors import ModelError
from glm_dist.model.huggingface import our_shapes
from glm_dist.model.prefix import PrefixEncoder
from glm_dist.model.settings import ModelSettings
from glm_dist.model.tuning import HEAD, PREFIX
from glm_dist.model.tuning_settings import TuningSettings
from glm_dist.model.weight_files import WeightFolder, check_shapes, write_folder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
PROMPT = "prompt_embeddings"
ROOT = "base_model.model."
"""Begins the names of a low-rank adapter's tensors."""
_PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
_TASKS = {
    "language_model": None,  # peft would ask for a `generate`, which not every exported model has
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
}


def save_adapter(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: dict[str, Any],
    documents: Mapping[str, Any] | None = None,
) -> None:
    """Write a trained adapter's folder, in place of what was there.

    Args:
        folder: what is made.
        weights: what was trained, by the names of the tuned model.
        config: `model`, `tuning` and `base` as `config.json` holds them; see `AdapterFolder`.
        documents: further files, as `write_folder` takes them.
    """
    settings = ModelSettings(**config["model"])
    tuning = TuningSettings(**config["tuning"])
    tensors = to_peft(weights, settings, tuning)
    theirs = peft_config(settings, tuning, tensors, config["base"]["folder"])
    documents = {**(documents or {}), CONFIG: config, ADAPTER_CONFIG: theirs}
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder, tensors.items(), documents, sys.maxsize, ADAPTER_FILE)


def to_peft(
    weights: Mapping[str, Tensor], settings: ModelSettings, tuning: TuningSettings
) -> dict[str, Tensor]:
    """The tensors of `adapter_model.safetensors`: the adapter's name is no part of theirs."""
    tensors = {
        root_of(tuning) + name.replace(".default", "").replace("vector.weight", "vector"): weight
        for name, weight in weights.items()
        if not name.startswith(PREFIX)
    }
    if tuning.kind == "p_tuning":
        tokens = tuning.num_prefix_tokens
        encoder = PrefixEncoder(settings, tokens, tuning.prefix_projection)
        encoder.load_state_dict(
            {name: weights[f"{PREFIX}{name}"].float() for name in encoder.state_dict()}
        )
        tensors[PROMPT] = encoder.flat().detach()
    return tensors


def root_of(tuning: TuningSettings) -> str:
    """Begins the names of the model's own parameters: peft wraps it once more for low rank."""
    return ROOT if tuning.is_low_rank else "base_model."


def peft_config(
    settings: ModelSettings, tuning: TuningSettings, tensors: Mapping[str, Tensor], base: str
) -> dict[str, Any]:
    """`adapter_config.json`, in the fields whose defaults are others."""
    common = {
        "base_model_name_or_path": base,
        "task_type": _TASKS[settings.head.kind],
        "inference_mode": True,
        "modules_to_save": [HEAD.rstrip(".")] if settings.head.is_classifier else None,
    }
    if tuning.kind == "p_tuning":
        return common | {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": tuning.num_prefix_tokens,
            "num_layers": settings.num_layers,
            "num_attention_heads": settings.kv_heads,
            "token_dim": settings.kv_heads * settings.head_size,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": settings.hidden_size,
            "prefix_projection": False,
        }
    suffix = f".{_PARTS[0]}"
    return common | {
        "peft_type": "LORA",
        "r": tuning.rank,
        "lora_alpha": tuning.alpha,
        "lora_dropout": tuning.dropout,
        "use_dora": tuning.kind == "dora",
        "target_modules": sorted(
            name.removeprefix(ROOT).removesuffix(suffix)
            for name in tensors
            if name.endswith(suffix)
        ),
        "bias": "none",
    }


class AdapterFolder:
    """A trained adapter; its `config.json` names the model it stands beside.

    Raises:
        ModelError: when the folder is none of ours, or a tensor is missing or unknown.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            self.settings = ModelSettings(**config["model"])
            self.tuning = TuningSettings(**config["tuning"])
            self.base = Path(config["base"]["folder"])
            self.base_sha256 = str(config["base"]["sha256"])
            self.config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise ModelError(
                f"{folder}: is no adapter of glm_dist ({error!r}); give the folder of a run that "
                "has ended, or its model/"
            ) from None
        self.weights = WeightFolder(folder, ADAPTER_FILE)
        self.targets = frozenset(self.config.get("target_modules", ()))
        self.weights.check(self._shapes())

    @property
    def prefix(self) -> Tensor | None:
        """Keys and values of all layers, [P, L * 2 * key heads * D], where they are trained."""
        return self.weights[PROMPT] if self.tuning.kind == "p_tuning" else None

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by its name in the model, fp32."""
        return self.weights[root_of(self.tuning) + name].float()

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the base model with what was trained beside it, in its own type.

        LoRA: W + alpha / rank B A. DoRA: each row of that scaled to its trained length.
        """
        module, _, kind = name.rpartition(".")
        if kind != "weight" or module not in self.targets:
            return weight
        product = self[f"{module}.lora_B.weight"] @ self[f"{module}.lora_A.weight"]
        whole = weight.float() + self.tuning.alpha / self.tuning.rank * product
        if self.tuning.kind == "dora":
            lengths = torch.linalg.vector_norm(whole, dim=1)
            whole *= (self[f"{module}.lora_magnitude_vector"] / lengths)[:, None]
        return whole.to(weight.dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes, settings, rank = our_shapes(self.settings), self.settings, self.tuning.rank
        root = root_of(self.tuning)
        expected = {root + name: shapes[name] for name in shapes if name.startswith(HEAD)}
        if self.tuning.kind == "p_tuning":
            width = settings.num_layers * 2 * settings.kv_heads * settings.head_size
            return {**expected, PROMPT: (self.tuning.num_prefix_tokens, width)}
        for target in self.targets:
            if f"{target}.weight" not in shapes:
                raise ModelError(f"{self.folder / ADAPTER_CONFIG}: {target} is no part of a GLM")
            outputs, inputs = shapes[f"{target}.weight"]
            sizes = ((rank, inputs), (outputs, rank), (outputs,))
            num_parts = 3 if self.tuning.kind == "dora" else 2
            for part, size in list(zip(_PARTS, sizes, strict=True))[:num_parts]:
                expected[f"{root}{target}.{part}"] = size
        return expected


class MergedWeights:
    """The weights of a base model with an adapter merged in, looked at as a `WeightFolder`.

    Raises:
        ModelError: when the base is gone or another one.
    """

    def __init__(self, adapter: AdapterFolder, base: Path | None = None) -> None:
        self.folder, self.adapter = adapter.folder, adapter
        base = base or adapter.base
        if not base.exists():
            raise ModelError(
                f"{adapter.folder}: its base model {base} is not there; bring it back, or say "
                "where it lies now (--base)"
            )
        if hash_model(base) != adapter.base_sha256:
            raise ModelError(
                f"{adapter.folder}: was trained beside other weights than those of {base}; give "
                "it the model it was trained beside (--base)"
            )
        self._base = open_whole(base)
        self.shapes: dict[str, tuple[int, ...]] = shapes_under_head(
            self._base.shapes, adapter.settings
        )

    def __getitem__(self, name: str) -> Tensor:
        """A tensor of the merged model."""
        if name.startswith(HEAD):
            return self.adapter[name]
        return self.adapter.merged(name, self._base[name])

    def check(self, expected: dict[str, tuple[int, ...]]) -> None:
        """See `WeightFolder`."""
        check_shapes(self._base.folder, self.shapes, expected)


def shapes_under_head(
    found: Mapping[str, tuple[int, ...]], settings: ModelSettings
) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's weights with the heads of another one in place of its own."""
    ours = our_shapes(settings)
    body = {name: shape for name, shape in found.items() if not name.startswith(HEAD)}
    if settings.head.is_classifier:
        body.pop("output_layer.weight", None)
    return body | {name: shape for name, shape in ours.items() if name.startswith(HEAD)}


def hash_model(folder: Path) -> str:
    """sha256 over the weight files of a model's folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}:{hash_file(path)};".encode())
    return digest.hexdigest()


def open_weights(folder: Path, base: Path | None = None) -> Weights | MergedWeights:
    """The weights of a finished model, which may be an adapter beside another one.

    Raises:
        ModelError: when there are none, or an adapter's base is missing.
    """
    if (folder / ADAPTER_CONFIG).exists():
        return MergedWeights(AdapterFolder(folder), base)
    return open_weight_folder(folder)


def open_whole(folder: Path, base: Path | None = None) -> Weights | MergedWeights:
    """The same, where the model is its own parameters alone.

    Raises:
        ModelError: when there are none, or prefix tokens belong to the model.
    """
    weights = open_weights(folder, base)
    if isinstance(weights, MergedWeights) and weights.adapter.prefix is not None:
        raise ModelError(
            f"{folder}: was tuned by P-tuning, whose keys and values cannot be merged into the "
            "model's parameters; use its base model, or tune by lora"
        )
    return weights
