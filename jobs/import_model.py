#!/usr/bin/env python3
"""Read a model that others have saved, as a model of ours.

It may be a Hugging Face folder of `glm` or `glm4`, one of ChatGLM2, ChatGLM3 or GLM-4 in their own
layout, a checkpoint of the 2021 reference, or an export of ours.

python jobs/import_model.py --source THUDM/glm-4-9b-chat-hf --output models/glm-4-9b-chat
"""

import argparse
import sys
from pathlib import Path

from _job import quiet

from glm_dist.config import output_path
from glm_dist.errors import GlmDistError


def main() -> int:
    """Import and say where; the exit code is 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="the folder that was saved")
    parser.add_argument("--output", required=True, help="folder to be made")
    arguments = parser.parse_args()
    quiet()
    from glm_dist.engine.export import import_model

    output = output_path(arguments.output)
    try:
        settings = import_model(Path(arguments.source).expanduser(), output)
    except GlmDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"imported     {output}: {settings.num_parameters:,} parameters")
    print(f"next         python jobs/export.py --model {output} --output FOLDER")
    return 0


if __name__ == "__main__":
    sys.exit(main())
