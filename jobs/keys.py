#!/usr/bin/env python3
"""The API keys of a server: make one, list them, take one back.

python jobs/keys.py keys.txt                     what there is; keys themselves are kept nowhere
python jobs/keys.py keys.txt --add id=team-a scopes=generate,classify requests_per_minute=60
python jobs/keys.py keys.txt --revoke team-a     a server that runs refuses it within a second
"""

import argparse
import sys
from pathlib import Path

from _job import describe_settings, quiet, report

from glm_dist.errors import ConfigError
from glm_dist.serve.key_file import KeyRules, add_key, read_rules, revoke_key


def main() -> int:
    """Do what is asked; the exit code is 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="rules, all of them optional:\n" + describe_settings(KeyRules, but=("sha256",)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="of keys, as in api_keys of jobs/serve.py")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--add", nargs="*", metavar="rule=value", help="make a key, shown once")
    asked.add_argument("--revoke", metavar="ID", help="take the key of this name out")
    arguments = parser.parse_args()
    quiet()
    path = arguments.file.expanduser()
    try:
        if arguments.add is not None:
            add(path, arguments.add)
        elif arguments.revoke is not None:
            gone = revoke_key(path, arguments.revoke)
            print(f"revoked      {gone.name}; servers that run refuse it within a second")
        else:
            show(read_rules(path))
    except ConfigError as error:
        return report(error)
    return 0


def add(path: Path, given: list[str]) -> None:
    """Make a key, and print it for the only time."""
    rules = dict(one.partition("=")[::2] for one in given)
    if "sha256" in rules or len(rules) < len(given):
        raise ConfigError("--add: names a rule twice, or sha256, which is made here")
    key, made = add_key(path, **rules)
    print(f"key          {key}")
    print(f"             shown this once; {path} holds its hash, as {made.name}")
    print(f"next         python jobs/serve.py model=runs/my_run api_keys={path}")


def show(rules: list[KeyRules]) -> None:
    """A line a key."""
    for rule in rules:
        _, *told = rule.line.split()
        may = [one for one in told if not one.startswith("id=")] or ["everything"]
        print(f"{rule.name:<20} {' '.join(may)}")
    if not rules:
        print("no keys: python jobs/keys.py FILE --add id=NAME makes one")


if __name__ == "__main__":
    sys.exit(main())
