"""Where metrics go: JSON lines, TensorBoard, wandb. The only file that knows wandb."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from glm_dist.config import Settings

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class SinkSettings(Settings):
    """What is written beside the JSON lines, which are always there."""

    tensorboard: bool = True
    """Write event files to the run folder's tensorboard/."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online where WANDB_API_KEY is set, else offline, into the run folder's wandb/."""
    wandb_project: str = "glm_dist"
    """Project the run is listed under."""


class Sink(Protocol):
    """Takes a run's metrics."""

    def config(self, values: Mapping[str, Any]) -> None:
        """The resolved configuration, once."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Figures of a step."""

    def resume(self, step: int) -> None:
        """Forget what came after `step`: those steps are done again."""

    def close(self) -> None:
        """Write what is left."""


class Sinks:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def config(self, values: Mapping[str, Any]) -> None:
        """See `Sink`."""
        for sink in self._sinks:
            sink.config(values)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Sink`."""
        for sink in self._sinks:
            sink.log(step, metrics)

    def resume(self, step: int) -> None:
        """See `Sink`."""
        for sink in self._sinks:
            sink.resume(step)

    def close(self) -> None:
        """See `Sink`."""
        for sink in self._sinks:
            sink.close()


class JsonLinesSink:
    """One line a call in `metrics.jsonl`; a resumed run cuts off the steps it does again.

    On a full disk lines wait until there is room again.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS_FILE
        self._waiting = b""

    def config(self, values: Mapping[str, Any]) -> None:
        """The config lies beside it in a file of its own."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line, and those that had to wait."""
        had_room = not self._waiting
        self._waiting += json.dumps({"step": step, **metrics}).encode() + b"\n"
        if self._append(self._waiting):
            self._waiting = b""
        elif had_room:
            logger.warning("%s: no room for a line; lines wait until there is", self._path)

    def _append(self, data: bytes) -> bool:
        """Whether all of it could be written; a part of it is taken back."""
        try:
            with open(self._path, "ab", buffering=0) as file:
                start = file.tell()
                try:
                    is_whole = file.write(data) == len(data)
                except OSError:
                    is_whole = False
                if not is_whole:
                    file.truncate(start)
                return is_whole
        except OSError:
            return False

    def resume(self, step: int) -> None:
        """Keep the lines up to `step`; a half line at the end goes too."""
        if not self._path.exists():
            return
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        if step == 0:
            kept = []
        temporary = self._path.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self._path)

    def close(self) -> None:
        """Nothing is held back."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, an unfinished last one left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class TensorBoardSink:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = str(folder / "tensorboard")
        self._open = SummaryWriter
        self._writer: Any = None

    def config(self, values: Mapping[str, Any]) -> None:
        """The configuration as text."""
        self._writer.add_text("config", f"```json\n{json.dumps(values, indent=1)}\n```")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Each figure as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def resume(self, step: int) -> None:
        """Open; later steps of an earlier attempt are purged."""
        self._writer = self._open(self._folder, purge_step=step + 1 if step else None)

    def close(self) -> None:
        """Flush the events."""
        self._writer.close()


class WandbSink:
    """A wandb run, without its console chatter."""

    def __init__(self, folder: Path, name: str, settings: SinkSettings) -> None:
        self._folder, self._name, self._settings = folder, name, settings
        self._run: Any = None

    def config(self, values: Mapping[str, Any]) -> None:
        """The configuration of the run."""
        self._run.config.update(dict(values), allow_val_change=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Figures under their step; two calls of one step are merged."""
        self._run.log(dict(metrics), step=step)

    def resume(self, step: int) -> None:
        """Start the run, an online one under the id it had."""
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        mode = self._settings.wandb
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._run = wandb.init(
            project=self._settings.wandb_project,
            name=self._name,
            id=f"{self._folder.name}-{os.stat(self._folder).st_ino}",
            dir=str(self._folder),
            mode="online" if mode == "online" else "offline",
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def build_sinks(settings: SinkSettings, folder: Path, name: str) -> Sinks:
    """The sinks asked for, writing into a run folder; call `resume` before the rest."""
    sinks: list[Sink] = [JsonLinesSink(folder)]
    if settings.tensorboard:
        sinks.append(TensorBoardSink(folder))
    if settings.wandb != "off":
        sinks.append(WandbSink(folder, name, settings))
    return Sinks(sinks)
