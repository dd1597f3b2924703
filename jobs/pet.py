#!/usr/bin/env python3
"""Learn from few labels and many texts: clozes of several patterns label texts for one classifier.

python jobs/pet.py --config jobs/configs/pet.yaml init_from=runs/base
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from _driver import RESUME_ME
from _job import run_job
from finetune import StoppedError
from results import show, train

from glm_dist.train.pet_settings import PetSettings

if TYPE_CHECKING:
    from glm_dist.evaluate.over_seeds import SeedScore
    from glm_dist.train.pet import Outcome, Pet

ENSEMBLE, FINAL = "ensemble", "final"


def main(settings: PetSettings, arguments: argparse.Namespace) -> int:
    """Run it all and put the scores side by side; RESUME_ME when asked to stop early."""
    from glm_dist.evaluate.task_report import SCORES, write_answers
    from glm_dist.metrics.provenance import provenance
    from glm_dist.train.pet import Pet

    origin = provenance()
    pet = Pet(settings, train)
    print(f"labelled     {len(pet.splits['train']):,} examples of {len(pet.task.labels)} labels")
    print(f"unlabelled   {len(pet.unlabelled):,} texts")
    print(f"scored       {len(pet.scored):,} examples", flush=True)
    try:
        outcome = pet.run(show)
    except StoppedError:
        print("next         the same command again goes on with the model that it was at")
        return RESUME_ME
    write_answers(settings.run_path / ENSEMBLE, pet.task, pet.scored, outcome.ensemble, origin)
    write_answers(settings.run_path / FINAL / "test", pet.task, pet.scored, outcome.final, origin)
    found = scores_of(pet, outcome)
    for name, scores in found.items():
        print(f"{name:<12} {scores[0]}")
    for pattern, weight in outcome.weights.items():
        print(f"weight       {weight:.2f} of {pattern!r}")
    kept: dict[str, Any] = {name: list(map(asdict, scores)) for name, scores in found.items()}
    kept = {**origin, "weights": outcome.weights, "scores": kept}
    path = settings.run_path / SCORES
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"scores       {path}")
    print(f"next         python jobs/evaluate.py model={pet.final_folder} data=FILE")
    return 0


def scores_of(pet: "Pet", outcome: "Outcome") -> dict[str, list["SeedScore"]]:
    """Of each pattern over its seeds, of the ensemble, and of the classifier that it taught."""
    from glm_dist.evaluate.over_seeds import over_seeds
    from glm_dist.evaluate.task_report import score_answers

    said = {
        f"pattern {number}": [one.answers for one in outcome.members if one.pattern == pattern]
        for number, pattern in enumerate(outcome.weights, start=1)
    }
    said |= {ENSEMBLE: [outcome.ensemble], FINAL: [outcome.final]}
    return {
        name: over_seeds([score_answers(pet.task, pet.scored, one) for one in by_seed])
        for name, by_seed in said.items()
    }


if __name__ == "__main__":
    sys.exit(run_job(main, PetSettings, description=__doc__ or ""))
