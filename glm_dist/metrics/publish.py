"""Pages of figures under `docs/`, written by the program that measured them, JSON beside."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm_dist.metrics.provenance import describe


def publish(
    folder: Path,
    name: str,
    page: str,
    figures: Mapping[str, Any],
    pictures: Mapping[str, Path],
) -> Path:
    """Write `<name>.md` and `<name>.json`; what stood there before stays under its date.

    Args:
        folder: made if missing.
        name: of page, figures and pictures.
        page: Markdown, which shows a picture by the name it has in `pictures`.
        figures: plain values; under `origin` what `provenance` gave.
        pictures: file name in the page → file to copy, which becomes `<name>-<file name>`.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _keep_older(folder / f"{name}.json", figures["origin"]["date"])
    for shown, picture in pictures.items():
        shutil.copyfile(picture, folder / f"{name}-{shown}")
        page = page.replace(f"({shown})", f"({name}-{shown})")
    closing = f"\n{describe(figures['origin'])} The figures as JSON: [{name}.json]({name}.json).\n"
    (folder / f"{name}.md").write_text(page + closing, encoding="utf-8")
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder / f"{name}.md"


def _keep_older(path: Path, date: str) -> None:
    if path.exists():
        older = json.loads(path.read_text(encoding="utf-8"))["origin"]["date"]
        if older != date:
            os.replace(path, path.with_name(f"{path.stem}-{older}.json"))
