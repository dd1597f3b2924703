"""A safetensors file read by ranges, on whatever storage it lies.

It stands apart because the library's own reader maps files of this machine, and a rank that resumes
needs its slices of a file alone, not the whole of it.
"""

import json
from typing import Any

import torch
from torch import Tensor

from glm_dist.engine.remote import AnyPath
from glm_dist.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""As the format's own library allows."""
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class TensorFile:
    """Flat tensors of one file; the header is read at once, elements when asked for.

    The format: eight bytes with the length of a JSON header, the header, then all tensors' bytes
    (https://huggingface.co/docs/safetensors).
    """

    def __init__(self, path: AnyPath) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
            length = int.from_bytes(self._bytes(0, 8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            self._tensors: dict[str, Any] = json.loads(self._bytes(8, length))
            self.metadata: dict[str, str] = self._tensors.pop("__metadata__", {})
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None
        self._start = 8 + length

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The elements [start, stop) of a tensor, counted in its flat order.

        Raises:
            CheckpointError: when the file does not hold them.
        """
        try:
            entry = self._tensors[name]
            part = torch.empty(stop - start, dtype=_DTYPES[entry["dtype"]])
            first = self._start + entry["data_offsets"][0] + start * part.itemsize
            if first + part.nbytes > self._start + entry["data_offsets"][1]:
                raise ValueError(f"{name} has fewer than {stop} elements")
            self._read_into(first, part.view(torch.uint8).numpy().data)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self._path}: cannot be read ({error})") from None
        return part

    def _bytes(self, first: int, length: int) -> bytes:
        data = bytearray(length)
        self._read_into(first, memoryview(data))
        return bytes(data)

    def _read_into(self, first: int, target: memoryview) -> None:
        self._file.seek(first)
        filled = 0
        while filled < len(target):
            read = self._file.readinto(target[filled:])
            if not read:
                raise ValueError(f"it ends at byte {first + filled}")
            filled += read
