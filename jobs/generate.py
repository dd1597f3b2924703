#!/usr/bin/env python3
"""Complete prompts and fill blanks with a trained model.

python jobs/generate.py --model RUN "Return the number of" "The [MASK] of a list is [MASK]."
"""

import argparse
import sys

from _job import model_path, quiet
from pydantic import ValidationError

from glm_dist.config import output_path
from glm_dist.errors import GlmDistError


def main() -> int:
    """Generate and print; the exit code is 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="+", help="prompts, or texts with [MASK] blanks")
    parser.add_argument("--model", required=True, help="a run's folder, or a model's")
    parser.add_argument("--base", help="where the model beside an adapter lies, if it was moved")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    quiet()
    from glm_dist.inference import GenerationSettings, Generator, load_model

    try:
        settings = GenerationSettings(
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )
        base = output_path(arguments.base) if arguments.base else None
        model, tokenizer = load_model(model_path(arguments.model), base)
        for generation in Generator(model, tokenizer).generate(arguments.texts, settings):
            print(f"{generation.prompt}\n  → {generation.text}\n")
    except ValidationError as error:
        for problem in error.errors():
            print(f"error: {problem['loc'][0]}: {problem['msg']}", file=sys.stderr)
        return 2
    except GlmDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
