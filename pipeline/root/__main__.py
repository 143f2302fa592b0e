"""The command ``dynarep``: a name for each program, imported when it is called."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

COMMANDS = {
    "init": ("dynarep.init", (), "lay out a project for a recording: cards, params.yaml, dvc.yaml"),
    "describe": ("dynarep.data", ("describe",), "say what is in a recording, and propose a card"),
    "score": ("dynarep.score", (), "rank the episodes of a recording by a demonstration"),
    "run": ("dvc", ("repro",), "check params.yaml, and run what is stale of this project (dvc repro)"),
    "status": ("dynarep.stages.status", (), "tell which stages are fresh, and why the others are not"),
    "report": ("dynarep.stages.report", (), "gather the scores of all policies on one page"),
}
"""Command -> module, arguments in front, what it does."""


def usage() -> str:
    """A line for each command."""
    lines = [f"  {name:9} {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(["usage: dynarep <command> ...", "", *lines, "", "dynarep <command> --help says more."])


def problems() -> bool:
    """Whether something is wrong in ``params.yaml``, told before hours are spent on it; without the file DVC speaks."""
    from dynarep.pipeline.entries import check_entries

    path = Path("params.yaml")
    found = check_entries(path) if path.is_file() else []
    for problem in found:
        print(f"error: run: {problem}", file=sys.stderr)
    return bool(found)


def main() -> int:
    """Run a command with the arguments behind it; exit status 2 where there is no such command."""
    name, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"error: dynarep: found {name!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, first, _ = COMMANDS[name]
    if name == "run" and problems():
        return 1
    if module == "dvc":  # whose stages call python, which has to be this one
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        os.execv(sys.executable, [sys.executable, "-m", module, *first, *rest])
    sys.argv = [f"dynarep {name}", *first, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
