"""The command line: ``python -m paperlib``.

Heavy modules are imported by the commands that need them, so that ``--help`` and the list of
notebooks are there at once, and the list even before anything is installed.
"""

import errno
import os
import signal
import sys
from pathlib import Path

from paperlib import notebooks, paths
from paperlib.jobs import INTERRUPTED, check_output, fail, in_processes, job
from paperlib.notebooks import NotebookError, UsageError
from paperlib.options import parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; 2 where the user has to change something."""
    options = vars(parser(COMMANDS).parse_args(arguments))
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
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.ENOSPC):
            raise
        place = error.filename or "A file"
        print(f"{place} cannot be read or written: {error.strerror}.", file=sys.stderr)
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

    if options["profile"] is not None:
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
    found = notebooks.find(name)
    if not found.has_part_in(_profile(profile, seeds, experiments)):
        raise UsageError(f"Notebook {name} has nothing to show: what it is about is not run.")
    try:
        notebooks.run(found, profile, seeds, experiments)
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

    from paperlib.settings import first_fault
    from paperlib.shards.documents import SPLITS, TextError
    from paperlib.shards.prepare import TextSettings, prepare
    from paperlib.shards.texts import ShardedText

    given = {name: value for name, value in options.items() if value is not None}
    try:
        made = prepare(folder, TextSettings.model_validate(given), processes)
    except ValidationError as error:
        name = "".join(error.errors()[0]["loc"])
        option = f"--{name}".replace("_", "-") if name else ""
        raise UsageError(f"{option}{first_fault(error).removeprefix(name)}.") from None
    except TextError as error:
        raise UsageError(f"{error}.") from None
    print(made.address)
    print(f"{len(made.words())} words, most of all {', '.join(made.words()[2:8])}")
    for split in SPLITS:
        print(f"{split}: {made.tokens(split)} tokens in {len(made.parts(split))} parts")
    for name, why in made.left_out.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    try:
        ShardedText(made, seed=0)
    except TextError as error:  # of a split without text
        raise UsageError(f"{error}.") from None
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
    from paperlib.settings import SettingsError, first_fault

    folder = paths.figures(profile)
    if not (folder / "provenance.json").is_file():
        raise UsageError(f"Profile {profile} has no results in {folder}; run it first.")
    try:
        page = judge_anew(folder)
    except (CheckpointError, SettingsError) as error:
        raise UsageError(f"{error}.") from None
    except (KeyError, FileNotFoundError, ValueError) as error:
        why = str(error.args[0] if isinstance(error, KeyError) else error)
        if isinstance(error, ValidationError):
            why = first_fault(error)
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
    from paperlib import profile_files

    if name.endswith(".toml"):
        raise UsageError(f"A profile is run by its name: copy {name} into {paths.PROFILES}.")
    if name not in (there_are := profile_files.names()):
        raise UsageError(f"There is no profile {name!r}; choose one of {', '.join(there_are)}.")
    _profile(name, seeds, experiments)


COMMANDS = {
    "run": run,
    "notebook": notebook,
    "synthetic": synthetic,
    "beyond": beyond,
    "large": large,
    "throughput": throughput,
    "experiment": experiment,
    "failed": failed,
    "shards": shards,
    "judge": judge,
    "check-proposition1": check_proposition1,
    "profiles": profiles,
    "notebooks": list_notebooks,
    "readme": readme,
}
"""What ``python -m paperlib`` can be asked for, by name."""
