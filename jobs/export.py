#!/usr/bin/env python3
"""Write a finished model as a Hugging Face folder.

python jobs/export.py --model runs/demo --output exports/demo
python jobs/export.py --model runs/tuned --output exports/tuned --adapter
"""

import argparse
import sys

from _job import model_path, quiet

from glm_dist.config import output_path
from glm_dist.errors import GlmDistError

DTYPES = ("float32", "bfloat16", "float16")


def main() -> int:
    """Export and say where; the exit code is 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a run's folder, or a model's")
    parser.add_argument("--output", required=True, help="folder to be made")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; by default as they are")
    parser.add_argument(
        "--adapter", action="store_true", help="not merged: as peft opens it on the exported base"
    )
    parser.add_argument("--base", help="where the model beside an adapter lies, if it was moved")
    arguments = parser.parse_args()
    quiet()
    import torch

    from glm_dist.engine.adapter_export import export_adapter
    from glm_dist.engine.export import export_model
    from glm_dist.engine.folders import model_folder
    from glm_dist.model.head_config import auto_class

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    output = output_path(arguments.output)
    base = output_path(arguments.base) if arguments.base else None
    try:
        if arguments.adapter:
            export_adapter(model_folder(model_path(arguments.model)), output)
            print(f"exported     {output}")
            print(f'next         peft.PeftModel.from_pretrained(exported_base, "{output}")')
            return 0
        config = export_model(model_path(arguments.model), output, dtype, base)
    except GlmDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    print(f"exported     {output}, as {config['architectures'][0]} in {config['dtype']}")
    opener = auto_class(config)
    print(f'next         transformers.{opener}.from_pretrained("{output}"{trust})')
    return 0


if __name__ == "__main__":
    sys.exit(main())
