"""Where a figure comes from: what every published table carries beside its numbers."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "ray", "deepspeed", "numpy", "pyarrow", "sentencepiece")


def provenance() -> dict[str, Any]:
    """Command, commit, versions, hardware and date of this process, as plain values."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": _command(),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": _hardware(),
    }


def describe(origin: dict[str, Any]) -> str:
    """The same as the closing lines of a page."""
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    hardware = origin["hardware"]
    devices = f"{hardware['cores']} cores of {hardware['processor']}, {hardware['memory_gib']} GiB"
    return (
        f"Written on {origin['date']} by `{origin['command']}` at commit {origin['commit']}; "
        f"{versions}; {', '.join([devices, *hardware['gpus']])}."
    )


def _command() -> str:
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    return shlex.join(["python", str(name), *sys.argv[1:]])


def _commit() -> str:
    """The checked out commit, marked where files differ from it; unknown outside a checkout."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}, changed since" if _git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": gpus,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
