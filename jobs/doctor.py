#!/usr/bin/env python3
"""Look into a run folder: is every checkpoint whole, and where would the run go on?

python jobs/doctor.py runs/my_run           say what is there; nothing is changed
python jobs/doctor.py runs/my_run --mend    also do what cannot lose anything
"""

import argparse
import sys

from _job import quiet

from glm_dist.config import output_path
from glm_dist.errors import GlmDistError
from glm_dist.train.doctor import Findings, examine, mend


def main() -> int:
    """Examine, print, and mend if asked; the exit code is 1 where something is damaged."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run's folder; below GLM_DIST_HOME if relative")
    parser.add_argument("--mend", action="store_true", help="set damaged ones aside, tidy up")
    arguments = parser.parse_args()
    quiet()
    folder = output_path(arguments.run)
    try:
        findings = examine(folder)
        show(findings)
        if arguments.mend:
            for line in mend(folder, findings) or ["there was nothing to mend"]:
                print(line)
            findings = examine(folder)
        elif not findings.is_healthy:
            print(f"next         python jobs/doctor.py {folder} --mend")
    except GlmDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if findings.is_healthy else 1


def show(findings: Findings) -> None:
    """The findings, as a person would want them."""
    for checkpoint in findings.checkpoints:
        print(f"{checkpoint.name:<24} {checkpoint.state:<10} {checkpoint.detail}")
    print(f"attempts     {findings.attempts}, of which {len(findings.failures)} failed")
    for failure in findings.failures[-3:]:
        print(f"             {failure}")
    if findings.holder:
        print(f"in training  by {findings.holder}")
    if findings.stop_reason:
        print(f"STOP         lies there ({findings.stop_reason}); a new start removes it")
    if findings.resume_from:
        print(f"resumes      from {findings.resume_from}, the newest whole one on the lineage")
    elif findings.checkpoints:
        print("resumes      not at all: there are checkpoints and none is whole; restore one")
    else:
        print("resumes      from the beginning: there is no checkpoint")


if __name__ == "__main__":
    sys.exit(main())
