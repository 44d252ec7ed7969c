"""The command line: ``python -m paperlib``.

Heavy modules are imported by the commands that need them, so that ``--help`` and the list of
notebooks are there at once, and the list even before anything is installed.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from paperlib import notebooks, paths
from paperlib.jobs import INTERRUPTED, check_output, fail, in_processes, job
from paperlib.notebooks import NotebookError, UsageError

LARGEST_SEED = 2**32 - 1
"""PyTorch's generators take some more, but not any number."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; 2 where the user has to change something."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    paths.settle()
    # Threads that wait shall spin for microseconds, then sleep: spinning for long, as by default,
    # they all but stop a training on a busy machine; without spinning, two are no faster than one.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # A scheduler's way to end a job is an interruption too: results are put back in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if "output" in options:
            check_output(options["output"])
        return command(**options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough, as in `... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(**options) -> int:
    """Run the notebooks of a profile, in order; what is done and unchanged is not done again."""
    from paperlib import launch, settings

    if options["profile"]:
        _named_profile(options["profile"], options["seeds"], options["experiments"])
    try:
        return launch.launch(**options)
    except settings.SettingsError as error:  # of the profile that suits the machine
        raise UsageError(f"{error}.") from None
    except launch.LaunchError as error:
        print(error, file=sys.stderr)
        return 1


def notebook(
    name: str, profile: str, seeds: int | None, experiments: str | None, report: Path | None
) -> int:
    """Execute one notebook with papermill."""
    _named_profile(profile, seeds, experiments)
    try:
        notebooks.run(notebooks.find(name), profile, seeds, experiments)
    except NotebookError as error:
        if error.traceback:
            print(error.traceback, file=sys.stderr)
        return fail(str(error), report)
    return 0


def synthetic(profile: str, seed: int, output: Path, report: Path | None) -> int:
    """Train all models of section 3 for one seed, and write what they come to as JSON."""
    loaded = _profile(profile)
    from paperlib.synthetic import run_seed

    print(f"Section 3, seed {seed}: what is trained already is found again.", file=sys.stderr)
    what = f"The training of section 3, seed {seed},"
    return job(what, lambda: run_seed(loaded, seed), output, report)


def beyond(profile: str, output: Path, report: Path | None, question: int | None) -> int:
    """Train what lies beyond the paper, for the first seed, and write what it comes to as JSON."""
    loaded = _profile(profile)
    if loaded.synthetic.beyond is None:
        raise UsageError(f"Profile {profile} has no [synthetic.beyond].")
    from paperlib.beyond import run_beyond
    from paperlib.settings import QUESTIONS

    if question not in (None, *QUESTIONS):
        numbers = ", ".join(map(str, QUESTIONS))
        raise UsageError(f"Question {question} has no trainings of its own; {numbers} have.")
    questions = QUESTIONS if question is None else [question]
    print("Beyond the paper: what is trained already is found again.", file=sys.stderr)
    what = "The training beyond the paper"
    return job(what, lambda: run_beyond(loaded, questions), output, report)


def experiment(profile: str, name: str, output: Path, report: Path | None) -> int:
    """Train and measure one experiment of section 4, and write what it comes to as JSON."""
    loaded = _profile(profile)
    if name not in loaded.corpora:
        names = ", ".join(loaded.corpora) or "none"
        raise UsageError(f"Profile {profile} has no experiment {name!r}; it has: {names}.")
    from paperlib.corpus_study import run_experiment

    print(f"Section 4, {name}: what is trained already is found again.", file=sys.stderr)
    return job(f"The experiment {name}", lambda: run_experiment(loaded, name), output, report)


def large(
    profile: str, output: Path, report: Path | None, processes: int, machines: int, meet: str
) -> int:
    """Train and measure section 4.3, and write what it comes to as JSON."""
    loaded = _profile(profile)
    if loaded.large is None:
        raise UsageError(f"Profile {profile} has no [large].")
    if processes * machines > 1:
        arguments = ["large", "--profile", profile, "--output", str(output)]
        return in_processes(arguments, report, processes, machines, meet)
    from paperlib import distributed
    from paperlib.large_study import run_large

    def compute() -> dict | None:
        with distributed.together():
            first = distributed.rank() == 0
            if first:
                print("Section 4.3: what is trained already is found again.", file=sys.stderr)
            result = run_large(loaded)
        return result if first else None

    return job("The large-scale experiment", compute, output, report)


def throughput(profile: str, streams: int | None, output: Path, **where) -> int:
    """Time the training steps of section 4.3, and write what was found as JSON."""
    loaded = _profile(profile)
    if loaded.large is None:
        raise UsageError(f"Profile {profile} has no [large].")
    if where["processes"] * where["machines"] > 1:
        arguments = ["throughput", "--profile", profile, "--output", str(output)]
        arguments += [] if streams is None else ["--streams", str(streams)]
        return in_processes(arguments, None, **where)
    from paperlib import distributed
    from paperlib.scaling import throughput as measure

    def compute() -> dict | None:
        with distributed.together():
            first = distributed.rank() == 0
            found = measure(loaded, streams)
        return found if first else None

    return job("The timing of section 4.3", compute, output, None)


def failed(what: str, code: int, report: Path) -> int:
    """Leave a report on a job that ended with ``code`` unless it left one or was interrupted."""
    if not report.exists() and code not in (INTERRUPTED, 128 + signal.SIGTERM):
        end = f"ended with exit code {code}"
        if code > 128:
            end = f"was ended by signal {code - 128}"
        if code == 128 + signal.SIGKILL:
            end += "; most often the memory ran out"
        fail(f"{what} {end}.", report)
    return 1


def check_proposition1() -> int:
    """Verify Proposition 1 and its expansions; exit code 1 if a statement does not hold."""
    from paperlib import proposition1

    text, holds = proposition1.report()
    print(text)
    return 0 if holds else 1


def shards(folder: Path, processes: int | None, **options) -> int:
    """Cut a folder of text of any size into a vocabulary and parts of tokens."""
    from pydantic import ValidationError

    from paperlib.shards.documents import SPLITS, TextError
    from paperlib.shards.prepare import TextSettings, prepare

    given = {name: value for name, value in options.items() if value is not None}
    try:
        made = prepare(folder, TextSettings.model_validate(given), processes)
    except ValidationError as error:
        first = error.errors()[0]
        option = "".join(f"--{name}: ".replace("_", "-") for name in first["loc"])
        raise UsageError(f"{option}{first['msg']}.") from None
    except TextError as error:
        raise UsageError(f"{error}.") from None
    print(made.address)
    print(f"{len(made.words())} words, most of all {', '.join(made.words()[2:8])}")
    for split in SPLITS:
        print(f"{split}: {made.tokens(split)} tokens in {len(made.parts(split))} parts")
    for name, why in made.left_out.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    return 0


def profiles() -> int:
    """List the profiles."""
    from paperlib import profile_files, settings

    for name in profile_files.names():
        print(f"{name:<10} {settings.load(name).summary}")
    return 0


def readme() -> int:
    """Copy the committed results' tables into the README."""
    from paperlib.reporting.readme import refresh

    refresh()
    return 0


def judge(profile: str) -> int:
    """Judge the claims of a profile anew, from the measures that its last run left."""
    _named_profile(profile, None, None)
    from pydantic import ValidationError

    from paperlib.checkpoints import CheckpointError
    from paperlib.reporting.report import judge_anew
    from paperlib.settings import SettingsError

    folder = paths.figures(profile)
    if not (folder / "provenance.json").is_file():
        raise UsageError(f"Profile {profile} has no results in {folder}; run it first.")
    try:
        page = judge_anew(folder)
    except (CheckpointError, SettingsError) as error:
        raise UsageError(f"{error}.") from None
    except (KeyError, OSError, ValueError) as error:
        why = str(error.args[0] if isinstance(error, KeyError) else error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UsageError(
            f"The results in {folder} do not fit this version of the project ({why}); run "
            f"profile {profile} again."
        ) from None
    print(f"{page} has the verdicts.")
    return 0


def list_notebooks() -> int:
    """List the notebooks in their order, and what each makes."""
    for entry in notebooks.declared().values():
        print(f"{entry.name:<24}{entry.title()}")
        for kind in ("tables", "figures", "files"):
            if names := getattr(entry, kind):
                print(f"{'':<24}{kind}: {', '.join(names)}")
    return 0


def _profile(name: str, seeds: int | None = None, experiments: str | None = None):
    from paperlib import settings

    try:
        return settings.load(name, seeds=seeds, experiments=experiments)
    except settings.SettingsError as error:
        raise UsageError(f"{error}.") from None


def _named_profile(name: str, seeds: int | None, experiments: str | None) -> None:
    """Refuse what is no profile, and a path, for results lie in a folder of the profile's name."""
    if name.endswith(".toml"):
        raise UsageError(f"A profile is run by its name: copy {name} into {paths.PROFILES}.")
    _profile(name, seeds, experiments)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {LARGEST_SEED}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m paperlib", description="Parts of the job.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command) -> argparse.ArgumentParser:
        summary = command.__doc__.splitlines()[0]
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command)
        return sub

    def for_profile(sub: argparse.ArgumentParser, **options) -> None:
        sub.add_argument("--profile", metavar="NAME", **options)

    def reporting(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--report", type=Path, metavar="PATH", help="file for the last words after a failure"
        )

    def together(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--processes", type=_number, default=1, metavar="N", help="on this machine, as one"
        )
        sub.add_argument(
            "--machines",
            type=_number,
            default=1,
            metavar="M",
            help="each of which gets this command",
        )
        sub.add_argument(
            "--meet", default="localhost:0", metavar="HOST:PORT", help="the same on all machines"
        )

    def selecting(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--seeds", type=int, metavar="N", help="seeds of section 3")
        sub.add_argument(
            "--experiments", metavar="NAMES", help="those of section 4 (a,b), or 'none'"
        )

    sub = add("run", run)
    for_profile(sub, help="medium with a CUDA GPU, quick without, unless given")
    sub.add_argument("--only", metavar="03", help="one notebook and what it depends on")
    selecting(sub)
    sub.add_argument("--cores", type=_number, metavar="N", help="processor cores (default: all)")
    sub.add_argument("--force", action="store_true", help="run notebooks that are up to date too")

    sub = add("notebook", notebook)
    sub.add_argument("name", help="its name or number")
    for_profile(sub, required=True)
    selecting(sub)
    reporting(sub)

    sub = add("synthetic", synthetic)
    for_profile(sub, required=True)
    sub.add_argument("--seed", type=_seed, required=True, metavar="K")
    sub.add_argument("--output", type=Path, required=True, metavar="PATH")
    reporting(sub)

    sub = add("beyond", beyond)
    for_profile(sub, required=True)
    sub.add_argument("--question", type=_number, metavar="N", help="of notebook 09 (default: all)")
    sub.add_argument("--output", type=Path, required=True, metavar="PATH")
    reporting(sub)

    sub = add("large", large)
    for_profile(sub, required=True)
    sub.add_argument("--output", type=Path, required=True, metavar="PATH")
    together(sub)
    reporting(sub)

    sub = add("throughput", throughput)
    for_profile(sub, required=True)
    sub.add_argument("--streams", type=_number, metavar="N", help="default: the profile's batch")
    sub.add_argument("--output", type=Path, required=True, metavar="PATH")
    together(sub)

    sub = add("experiment", experiment)
    for_profile(sub, required=True)
    sub.add_argument("--name", required=True, help="its name in the profile, such as mos_ptb")
    sub.add_argument("--output", type=Path, required=True, metavar="PATH")
    reporting(sub)

    sub = add("failed", failed)
    sub.add_argument("what", help="which job, as the start of a sentence")
    sub.add_argument("--code", type=int, required=True)
    sub.add_argument("--report", type=Path, required=True, metavar="PATH")

    sub = add("shards", shards)
    sub.add_argument("folder", type=Path, help="with .txt, .gz or .zst files, at any depth")
    sub.add_argument("--vocabulary", type=int, metavar="K", help="words (default: 100000)")
    sub.add_argument(
        "--tokens", help="'words' (default), signs apart, or 'whitespace': what spaces separate"
    )
    sub.add_argument("--part-bytes", type=int, dest="part_bytes", metavar="N", help="of a part")
    for split in ("valid", "test"):
        help = f"of the documents that are {split} text (default: 0.001)"
        sub.add_argument(f"--{split}", type=float, metavar="SHARE", help=help)
    sub.add_argument("--seed", type=int, metavar="K", help="of what is training and what is test")
    sub.add_argument("--damaged", help="'fatal' (default) or 'skip' files that cannot be read")
    sub.add_argument("--processes", type=_number, metavar="N", help="default: as many as cores")

    for_profile(add("judge", judge), required=True)
    add("check-proposition1", check_proposition1)
    add("profiles", profiles)
    add("notebooks", list_notebooks)
    add("readme", readme)
    return parser
