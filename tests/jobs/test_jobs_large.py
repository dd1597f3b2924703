"""The slow tier: two gigabytes of text prepared in less than four gigabytes of memory."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

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


def test_two_gigabytes_of_text_are_prepared_in_less_than_four_of_memory(tmp_path):
    num_documents = write_text(tmp_path / "large.jsonl")
    source = f"sources=[{{name: large, path: {tmp_path / 'large.jsonl'}}}]"
    job = subprocess.Popen(
        [sys.executable, "jobs/prepare_data.py", "output=data/large", source],
        cwd=ROOT,
        env={**os.environ, "GLM_DIST_HOME": str(tmp_path)},
    )
    start, peak = time.monotonic(), 0
    while job.poll() is None:
        try:
            peak = max(peak, resident_bytes(psutil.Process(job.pid)))
        except psutil.NoSuchProcess:
            break
        time.sleep(1)
    assert job.wait() == 0
    print(
        f"{TEXT_BYTES / GIB:.1f} GiB in {time.monotonic() - start:.0f} s, peak {peak / GIB:.2f} GiB"
    )
    manifest = json.loads((tmp_path / "data/large/manifest.json").read_text())
    shards = [shard for split in manifest["splits"].values() for shard in split]
    assert sum(shard["documents"] for shard in shards) == num_documents
    assert 0 < peak < MEMORY_BYTES
