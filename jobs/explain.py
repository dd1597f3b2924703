#!/usr/bin/env python3
"""Show which tokens of a text spoke for the label that a tuned model gave it.

python jobs/explain.py model=runs/RUN texts='["a moving film", "dull and cold"]'
"""

import argparse
import sys
from typing import TYPE_CHECKING

from _job import run_job
from pydantic import Field

from glm_dist.config import Settings, output_path
from glm_dist.errors import ConfigError

if TYPE_CHECKING:
    from glm_dist.evaluate.explain import Explanation

SHOWN_TOKENS = 6


class ExplainSettings(Settings):
    """Which model explains which texts."""

    model: str
    """A finished run or model folder that carries a classification; below GLM_DIST_HOME if
    relative."""
    texts: list[str] = Field(min_length=1)
    """Texts to be classified."""
    output: str | None = None
    """Folder of the explanations; by default `explanations` in the run's folder."""


def main(settings: ExplainSettings, arguments: argparse.Namespace) -> int:
    """Classify, explain, print what counts most, write JSON and pictures."""
    from glm_dist.engine.export import model_folder
    from glm_dist.evaluate.answers import Answerer
    from glm_dist.evaluate.decisions import decision_of
    from glm_dist.evaluate.explain import explain
    from glm_dist.evaluate.explain_picture import draw_explanation
    from glm_dist.inference import load_model
    from glm_dist.tasks import load_task
    from glm_dist.tasks.dataset import check_examples
    from glm_dist.tasks.examples import Example

    folder = output_path(settings.model)
    model, tokenizer = load_model(folder)
    task = load_task(model_folder(folder), tokenizer, pools_first=model.settings.pools_first)
    if task is None:
        raise ConfigError(
            f"model: {folder} carries no task; give a model that jobs/finetune.py has tuned"
        )
    examples = [
        Example({"text": text}, f"texts[{number}]") for number, text in enumerate(settings.texts)
    ]
    check_examples(task, {"texts": examples}, is_labelled=False)
    output = folder / "explanations" if settings.output is None else output_path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    answers = Answerer(model, tokenizer, task).answer(examples)
    for number, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        decision, label = decision_of(task, example, answer), str(answer.value)
        if not task.head.is_classifier:  # longer words are chosen by their other tokens too
            label += f" by {tokenizer.piece(decision.answers[decision.chosen])!r}"
        found = explain(model, tokenizer, decision, label)
        found.save(output / f"{number:03d}.json")
        draw_explanation(output / f"{number:03d}.svg", found)
        show(example.text("text"), found)
    print(f"explanations {output}")
    return 0


def show(text: str, found: "Explanation") -> None:
    """The label, and the tokens that speak most for it and against it."""
    print(f"\n{text}\n  → {found.label}, log odds {found.log_odds:.2f}")
    pairs = zip(found.tokens, found.attributions, strict=True)
    strongest = sorted(pairs, key=lambda pair: -abs(pair[1]))[:SHOWN_TOKENS]
    print("  " + "  ".join(f"{token.strip()} {value:+.2f}" for token, value in strongest))


if __name__ == "__main__":
    sys.exit(run_job(main, ExplainSettings, description=__doc__ or ""))
