"""The slow tier: what is larger than memory passes through less than four gigabytes of it."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from glm_dist.model import ModelSettings
from glm_dist.model.huggingface import our_shapes
from glm_dist.model.weight_files import WeightFolder, write_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
GIB = 1 << 30
TEXT_BYTES, MEMORY_BYTES = 2 * GIB, 4 * GIB
DOCUMENTS_PER_BLOCK = 2000


def write_text(path):
    """JSON lines that all differ; the number of documents."""
    rng = np.random.default_rng(0)
    words = np.array(
        ["".join(rng.choice(list("etaoinshr"), size=n)) for n in rng.integers(2, 9, 3000)]
    )
    shares = 1 / np.arange(1, 3001)
    lines = [
        json.dumps({"text": f"@ {' '.join(rng.choice(words, 400, p=shares / shares.sum()))} @"})
        for _ in range(DOCUMENTS_PER_BLOCK)
    ]
    block = "\n".join(lines).encode() + b"\n"
    num_blocks = -(-TEXT_BYTES // len(block))
    with path.open("wb") as file:
        for number in range(num_blocks):
            file.write(block.replace(b"@", str(number).encode()))
    return num_blocks * DOCUMENTS_PER_BLOCK


def resident_bytes(job):
    """Proportional set size of the job's whole tree: shared pages are counted once."""
    total = 0
    for process in [job, *job.children(recursive=True)]:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it has just ended
        [line] = [line for line in rollup.splitlines() if line.startswith("Pss:")]
        total += int(line.split()[1]) * 1024
    return total


def run_watched(home, name, *arguments):
    """The most that a job and its children held at a time, in bytes."""
    job = subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "GLM_DIST_HOME": str(home)},
    )
    peak = 0
    while job.poll() is None:
        try:
            peak = max(peak, resident_bytes(psutil.Process(job.pid)))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    assert job.wait() == 0
    return peak


def test_two_gigabytes_of_text_are_prepared_in_less_than_four_of_memory(tmp_path):
    num_documents = write_text(tmp_path / "large.jsonl")
    source = f"sources=[{{name: large, path: {tmp_path / 'large.jsonl'}}}]"
    start = time.monotonic()
    peak = run_watched(tmp_path, "prepare_data", "output=data/large", source)
    print(
        f"{TEXT_BYTES / GIB:.1f} GiB in {time.monotonic() - start:.0f} s, peak {peak / GIB:.2f} GiB"
    )
    manifest = json.loads((tmp_path / "data/large/manifest.json").read_text())
    shards = [shard for split in manifest["splits"].values() for shard in split]
    assert sum(shard["documents"] for shard in shards) == num_documents
    assert 0 < peak < MEMORY_BYTES


def write_model(folder, settings):
    """A model of ours whose tensors differ, in bf16, made one shard at a time."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 20, generator=generator).bfloat16()
    shapes = our_shapes(settings)
    tensors = (
        (name, (noise.repeat(-(-math.prod(shape) // len(noise)))[: math.prod(shape)]).view(shape))
        for name, shape in shapes.items()
    )
    config = {"config.json": {"model": settings.model_dump(mode="json"), "name": folder.name}}
    write_folder(folder, tensors, config)


def test_ten_billion_parameters_are_converted_in_less_than_four_gigabytes(tmp_path):
    settings = ModelSettings(preset="glm-4-9b")
    assert settings.num_parameters > 9e9
    write_model(tmp_path / "ours", settings)
    peaks = {}
    for name, *arguments in (
        ("export", "--model", tmp_path / "ours", "--output", tmp_path / "theirs"),
        ("import_model", "--source", tmp_path / "theirs", "--output", tmp_path / "again"),
    ):
        peaks[name] = run_watched(tmp_path, name, *map(str, arguments))
        print(f"{name}: {settings.num_parameters:,} parameters, peak {peaks[name] / GIB:.2f} GiB")
    first, again = WeightFolder(tmp_path / "ours"), WeightFolder(tmp_path / "again")
    again.check(first.shapes)
    assert all(torch.equal(first[name], again[name]) for name in first.shapes)
    shutil.rmtree(tmp_path)
    assert 0 < max(peaks.values()) < MEMORY_BYTES
