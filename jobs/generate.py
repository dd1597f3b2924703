#!/usr/bin/env python3
"""Complete prompts and fill blanks with a trained model: some texts, or a dataset.

python jobs/generate.py --model RUN "Return the number of" "The [MASK] of a list is [MASK]."
python jobs/generate.py --model RUN --data reviews.csv --column text --output answers --engines 2
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _job import model_path, quiet
from pydantic import ValidationError

from glm_dist.config import output_path
from glm_dist.errors import ConfigError, DataError, GlmDistError
from glm_dist.evaluate.pool_settings import PoolSettings

if TYPE_CHECKING:
    from glm_dist.data.records import Record
    from glm_dist.inference import GenerationSettings

USUAL_COLUMNS = ("text", "prompt", "input")


def main() -> int:
    """Generate and print, or write down; the exit code is 2 for a mistake of the user."""
    arguments = read_arguments()
    quiet()
    from glm_dist.inference import GenerationSettings

    try:
        settings = GenerationSettings(
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )
        if arguments.data is None:
            print_generations(arguments, settings)
        else:
            write_generations(arguments, settings)
    except ValidationError as error:
        for problem in error.errors():
            print(f"error: {problem['loc'][0]}: {problem['msg']}", file=sys.stderr)
        return 2
    except GlmDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def read_arguments() -> argparse.Namespace:
    """What the user asks for: texts or a dataset, not both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*", help="prompts, or texts with [MASK] blanks")
    parser.add_argument(
        "--model", required=True, help="a run's folder, a model's or a checkpoint's"
    )
    parser.add_argument("--base", help="where the model beside an adapter lies, if it was moved")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    many = parser.add_argument_group("a dataset, answered by a pool of engines under Ray Data")
    many.add_argument(
        "--data", help="CSV, TSV, JSON lines, parquet, or text with one prompt a line"
    )
    many.add_argument("--column", help="name of the texts' column, or its number from 0")
    many.add_argument("--output", help="folder of the answers; the same command goes on with it")
    many.add_argument("--engines", type=int, default=1, help="each with a copy of the model")
    many.add_argument("--threads", type=int, default=1, help="of each engine")
    many.add_argument("--gpus", type=float, default=0, help="of each engine")
    many.add_argument("--rows-per-part", type=int, default=256, help="written down together")
    arguments = parser.parse_intermixed_args()
    if bool(arguments.texts) == (arguments.data is not None):
        parser.error("give texts, or a dataset with --data, and not both")
    if arguments.data is not None and arguments.output is None:
        parser.error("--data: give --output, the folder of its answers")
    return arguments


def print_generations(arguments: argparse.Namespace, settings: "GenerationSettings") -> None:
    """Each text and what became of it."""
    from glm_dist.inference import Generator, load_model

    base = output_path(arguments.base) if arguments.base else None
    model, tokenizer = load_model(model_path(arguments.model), base)
    for generation in Generator(model, tokenizer).generate(arguments.texts, settings):
        print(f"{generation.prompt}\n  → {generation.text}\n")


def write_generations(arguments: argparse.Namespace, settings: "GenerationSettings") -> None:
    """The answers to a dataset, as parquet."""
    from _pool import answer_all

    from glm_dist.engine.adapters import hash_model
    from glm_dist.engine.folders import model_folder, read_model_config
    from glm_dist.evaluate.part_work import FilledTexts
    from glm_dist.evaluate.pipeline import Parts

    pool = PoolSettings(
        num_engines=arguments.engines,
        num_threads=arguments.threads,
        num_gpus=arguments.gpus,
        rows_per_part=arguments.rows_per_part,
    )
    folder, output = model_folder(model_path(arguments.model)), output_path(arguments.output)
    read_model_config(folder)
    rows = read_rows(arguments.data, arguments.column)
    base = str(output_path(arguments.base)) if arguments.base else None
    told = {"model_sha256": hash_model(folder), "settings": settings.model_dump(mode="json")}
    device = "cuda" if pool.num_gpus else "cpu"
    work = FilledTexts(str(folder), base, device, settings)
    answers = answer_all(Parts(output, rows, told, pool), work, pool, len(rows))
    print(f"first        {answers[0]['text']!r}")
    print(f"answers      {output}/part-*.parquet: place, prompt, text and blanks of each row")
    reading = f"print(pyarrow.parquet.read_table('{output}').to_pylist()[0])"
    print(f'next         python -c "import pyarrow.parquet; {reading}"')


def read_rows(data: str, column: str | None) -> list[tuple[int, str, str]]:
    """Number, place and text of each row.

    Raises:
        ConfigError: when no column is the texts', with those that are there.
        DataError: when the file cannot be read, or texts are empty.
    """
    from glm_dist.data.records import format_of, read_records
    from glm_dist.tasks.examples import raise_problems

    path = str(Path(data).expanduser())
    wanted = int(column) if column and column.isdigit() else column

    def has_header(rows: Sequence[list[str]]) -> bool:
        names = {cell.strip().lower() for cell in rows[0]}
        return isinstance(wanted, str) or (wanted is None and bool(names & set(USUAL_COLUMNS)))

    rows, empty = list[tuple[int, str, str]](), list[str]()
    for number, record in enumerate(read_records(path, format_of(path), has_header)):
        if not number:
            wanted = found_column(record, wanted, path)
        assert wanted is not None
        text = record.values.get(wanted)
        if not isinstance(text, str) or not text.strip():
            empty.append(f"{record.place}: {wanted!r} holds no text; fill it or take the row out")
        rows.append((number, record.place, str(text)))
    if not rows:
        raise DataError(f"{path}: holds no rows")
    raise_problems(empty)
    return rows


def found_column(record: "Record", wanted: str | int | None, path: str) -> Any:
    """The column of the texts: as it is wanted, by a usual name, or the only one."""
    names = [name for name in record.values if isinstance(name, str)]
    known = list(map(str, names or record.values))
    if wanted is None:
        usual = [name for name in names if name.lower() in USUAL_COLUMNS]
        wanted = usual[0] if usual else next(iter(record.values)) if len(known) == 1 else None
    if wanted not in record.values:
        raise ConfigError(
            f"--column: {path} has the columns {', '.join(known)}; say which one holds the texts"
        )
    return wanted


if __name__ == "__main__":
    sys.exit(main())
