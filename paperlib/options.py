"""The options of ``python -m paperlib``."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

LARGEST_SEED = 2**32 - 1
"""PyTorch's generators take some more, but not any number."""


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {LARGEST_SEED}")
    return int(text)


def parser(commands: Mapping[str, Callable[..., int]]) -> argparse.ArgumentParser:
    """Of the command line: each of the ``commands`` with its options, and the summary it has in its
    docstring."""
    whole = argparse.ArgumentParser(prog="python -m paperlib", description="Parts of the job.")
    there_are = whole.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str) -> argparse.ArgumentParser:
        summary = commands[name].__doc__.splitlines()[0]
        sub = there_are.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=commands[name])
        return sub

    def for_profile(sub: argparse.ArgumentParser, **options) -> None:
        sub.add_argument("--profile", metavar="NAME", **options)

    def to_file(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--output", type=Path, required=True, metavar="PATH")

    def reporting(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--report", type=Path, metavar="PATH", help="file for the reason if the job fails"
        )

    def together(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--processes",
            type=_number,
            default=1,
            metavar="N",
            help="that train together on this machine",
        )
        sub.add_argument(
            "--machines",
            type=_number,
            default=1,
            metavar="M",
            help="start the same command on each",
        )
        sub.add_argument(
            "--meet", default="localhost:0", metavar="HOST:PORT", help="the same on all machines"
        )

    def selecting(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--seeds", type=int, metavar="N", help="seeds of section 3")
        sub.add_argument(
            "--experiments", metavar="NAMES", help="those of section 4 (a,b), or 'none'"
        )

    sub = add("run")
    for_profile(sub, help="medium with a CUDA GPU, quick without, unless given")
    sub.add_argument("--only", metavar="03", help="one notebook and what it depends on")
    selecting(sub)
    sub.add_argument("--cores", type=_number, metavar="N", help="processor cores (default: all)")
    sub.add_argument("--force", action="store_true", help="run notebooks that are up to date too")

    sub = add("notebook")
    sub.add_argument("name", help="its name or number")
    for_profile(sub, required=True)
    selecting(sub)
    reporting(sub)

    sub = add("synthetic")
    for_profile(sub, required=True)
    sub.add_argument("--seed", type=_seed, required=True, metavar="K")
    to_file(sub)
    reporting(sub)

    sub = add("beyond")
    for_profile(sub, required=True)
    sub.add_argument("--question", type=_number, metavar="N", help="of notebook 09 (default: all)")
    to_file(sub)
    reporting(sub)

    sub = add("large")
    for_profile(sub, required=True)
    to_file(sub)
    together(sub)
    reporting(sub)

    sub = add("throughput")
    for_profile(sub, required=True)
    sub.add_argument("--streams", type=_number, metavar="N", help="default: the profile's batch")
    to_file(sub)
    together(sub)

    sub = add("experiment")
    for_profile(sub, required=True)
    sub.add_argument("--name", required=True, help="its name in the profile, such as mos_ptb")
    to_file(sub)
    reporting(sub)

    sub = add("failed")
    sub.add_argument("what", help="which job, as the start of a sentence")
    sub.add_argument("--code", type=int, required=True)
    sub.add_argument("--report", type=Path, required=True, metavar="PATH")

    sub = add("shards")
    sub.add_argument(
        "folder",
        type=Path,
        help="with .txt, .gz or .zst files, at any depth and of any name; empty lines in them part "
        "documents, which are shared out",
    )
    sub.add_argument("--vocabulary", type=int, metavar="K", help="words (default: 100000)")
    sub.add_argument(
        "--tokens", help="'words' (default), signs apart, or 'whitespace': what spaces separate"
    )
    sub.add_argument("--part-bytes", type=int, dest="part_bytes", metavar="N", help="of a part")
    for split in ("valid", "test"):
        help = f"of the documents that are {split} text (default: 0.001)"
        sub.add_argument(f"--{split}", type=float, metavar="SHARE", help=help)
    sub.add_argument("--seed", type=int, metavar="K", help="decides which documents are test text")
    sub.add_argument("--damaged", help="'fatal' (default) or 'skip' files that cannot be read")
    sub.add_argument("--processes", type=_number, metavar="N", help="default: as many as cores")

    for_profile(add("judge"), required=True)
    add("check-proposition1")
    add("profiles")
    add("notebooks")
    add("readme")
    return whole
