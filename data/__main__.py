"""``dynarep describe <card or recording>``, or ``python -m dynarep.data describe``: what is in it, and a card that reads it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Print the description; 0 if ``prepare`` would take the data, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m dynarep.data", description="Look at recordings and dataset cards.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "describe",
        prog="dynarep describe",
        help="print what is in a recording or a dataset, and a card that reads it",
        description="Print episodes, steps, ranges, returns, how episodes end, what looks suspicious, and for a recording "
        "a card that reads it. The exit status is 1 if prepare would refuse the data.",
    )
    command.add_argument(
        "target", help="name of a card in configs/datasets, a card's .yaml file, or a recording's file or folder"
    )
    arguments = parser.parse_args()

    from dynarep.data.describe import describe
    from dynarep.data.schema import DataError

    try:
        text, accepted = describe(arguments.target, Path())
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, MemoryError) as error:
        print(f"error: {arguments.target}: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0 if accepted else 1


if __name__ == "__main__":
    sys.exit(main())
