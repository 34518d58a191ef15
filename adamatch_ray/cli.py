"""The command line that every job shares: `[--config …] [--root …] [--<section>.<field> VALUE …]`.

Progress goes to stderr; the last line of stdout is one JSON object. A user's mistake is one line and exit 2.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from adamatch_ray.config import PRESETS, RunConfig, describe, load_config, meaning_of


@dataclass(frozen=True)
class CommandLine:
    """What every job's command line says."""

    config: RunConfig
    config_source: str
    root: str
    resume: str
    overwrite: bool
    dry_run: bool
    run_name: str
    words: tuple[str, ...]
    overrides: dict[str, str]

    def for_parent(self) -> list[str]:
        """The arguments with which this command would make a stage that its own depends on."""
        arguments = ["--config", self.config_source, "--root", self.root]
        return arguments + [part for key, value in self.overrides.items() for part in (f"--{key}", value)]


def parse_command_line(arguments: Sequence[str], usage: str, choices: Sequence[str] = ()) -> CommandLine:
    """Parse a job's arguments; prints the help and exits 0 on `--help`. `choices` are its positional words, if any."""
    flags = {"--config": "phantom", "--root": "", "--resume": "auto", "--run-name": "run"}
    switches = {"--overwrite": False, "--dry-run": False}
    overrides: dict[str, str] = {}
    words: list[str] = []
    queue = list(arguments)
    while queue:
        head, joined, value = queue.pop(0).partition("=")
        if head in ("-h", "--help"):
            print(help_text(usage))
            raise SystemExit(0)
        if head in switches:
            if joined:
                raise ValueError(f"{head} takes no value: give it, or leave it out")
            switches[head] = True
        elif head.startswith("--"):
            if not joined and (not queue or queue[0].startswith("--")):
                raise ValueError(f"{head} needs a value")
            target = flags if head in flags else overrides
            target[head if head in flags else head[2:]] = value if joined else queue.pop(0)
        elif head in choices:
            words.append(head)
        else:
            expected = f"one of {', '.join(choices)}" if choices else "options that start with --"
            raise ValueError(f"unexpected argument '{head}'; expected {expected}")
    name = Path(flags["--config"]).stem
    root = flags["--root"] or f"runs/{name}"
    # Training workers run elsewhere, so a relative root is fixed here, on the driver.
    root = root if "://" in root else str(Path(root).resolve())
    return CommandLine(
        config=load_config(flags["--config"], overrides),
        config_source=flags["--config"],
        root=root,
        resume=_resume(flags["--resume"]),
        overwrite=switches["--overwrite"],
        dry_run=switches["--dry-run"],
        run_name=flags["--run-name"],
        words=tuple(words),
        overrides=overrides,
    )


def _resume(given: str) -> str:
    """`auto`, `never`, or the folder of a checkpoint as workers elsewhere find it."""
    if given in ("auto", "never") or "://" in given:
        return given
    if not Path(given).is_dir():
        raise ValueError(f"--resume {given}: neither auto, never nor the folder of a checkpoint")
    return str(Path(given).resolve())


def help_text(usage: str) -> str:
    """The usage line, the common options and every configuration field with type, default and meaning, by section."""
    lines = [
        usage.strip(),
        "",
        "common options:",
        f"  --config NAME|FILE     preset ({', '.join(PRESETS)}) or YAML file; default phantom",
        "  --root DIR|s3://…      where all stages live; default runs/<config>",
        "  --resume auto|never|PATH  continue an interrupted training run, start anew, or from a checkpoint",
        "  --run-name NAME        name of the training run under its stage; default 'run'",
        "  --overwrite            recompute a finished stage",
        "  --dry-run              print the resolved configuration and the plan, then exit",
        "",
        "fields (defaults before the preset is applied):",
    ]
    for section, found in groupby(describe(), lambda field: field[0].split(".")[0]):
        lines += ["", f"{section}: {meaning_of(section)}"]
        lines += [f"  --{name} <{kind}> [{default}]\n        {meaning}" for name, kind, default, meaning in found]
    return "\n".join(lines)


def run_as_command(main: Callable[[Sequence[str]], Mapping[str, Any] | None]) -> None:
    """Run a job's `main(arguments)` and print what it returns as the last line of stdout.

    A user's mistake (ValueError, OSError) is one line on stderr and exit 2, any other failure is exit 1.
    Set ADAMATCH_TRACEBACK=1 to see where an error came from.
    """
    try:
        result = main(sys.argv[1:])
    except (ValueError, OSError) as error:
        if os.environ.get("ADAMATCH_TRACEBACK"):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    if result is not None:
        if (ray := sys.modules.get("ray")) is not None:
            ray.shutdown()  # what workers still have to say must not come after the answer
        print(json.dumps(result), flush=True)


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; of an error from a worker, the message of its cause."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        error = cause
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
