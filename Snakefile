"""Which notebook needs what. `./run_all.sh` calls this; so can you, also on a cluster:

    .venv/bin/snakemake --cores all --config profile=quick
    .venv/bin/snakemake --profile workflow/slurm --config profile=paper     (see docs/cluster.md)

A part is done when its mark lies in runs/workflow/<profile>/. The results in figures/ alone would
not tell: they are committed, so a fresh clone has them without having run anything.
"""

import logging
import os
import shlex
import sys
from pathlib import Path

import paperlib
from paperlib import launch, notebooks, paths, profile_files, settings
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

KEYS = ["profile", "seeds", "experiments", "processes", "machines", "supervised"]
if unknown := sorted(set(config) - set(KEYS)):
    raise WorkflowError(f"--config has no {', '.join(unknown)}; it has {', '.join(KEYS[:-1])}.")
paths.settle()

PROFILE = config.get("profile", "quick")
SEEDS = config.get("seeds")  # None: as many as the profile says
EXPERIMENTS = config.get("experiments")  # None: all that the profile has
PROCESSES = int(config.get("processes", 1))  # of section 4.3, on each machine
MACHINES = int(config.get("machines", 1))
SUPERVISED = "supervised" in config  # by `python -m paperlib run`
if PROFILE not in profile_files.names():
    there_are = ", ".join(profile_files.names())
    raise WorkflowError(f"there is no profile {PROFILE!r}; choose one of {there_are}.")
PLAN = settings.load(PROFILE, seeds=SEEDS, experiments=EXPERIMENTS)
NOTEBOOKS = [book for book in notebooks.declared().values() if book.has_part_in(PLAN)]
CORES = workflow.cores or 1
# Trainings share the cores: small networks gain more from running side by side than from threads.
THREADS = max(1, CORES // min(CORES, PLAN.synthetic.seeds + len(PLAN.corpora)))

# What most other work waits for comes first, and short notebooks last: they fill the gaps. But for
# the first one, which shows in seconds whether notebooks run here at all.
ORDER = ["first notebook", "seed", "experiment", "large", "beyond", "long notebook", "notebook"]
PRIORITY = {name: 100 * (len(ORDER) - place) for place, name in enumerate(ORDER)}

# A task a machine with all of its cores: srun does not take their number from the job.
SRUN = "srun --ntasks-per-node=1 --cpus-per-task={threads} --kill-on-bad-exit=1 "


# Of the progress bars of what is no seed of section 3 and no experiment of section 4.
FIRST_LINE = PLAN.synthetic.seeds + len(PLAN.corpora)


def local(path):
    """Paths inside the project are relative to it, where Snakemake works."""
    return str(path.relative_to(paths.PROJECT))


MARKS = local(launch.state(PROFILE))
REPORT = f"{MARKS}/failure.txt"

# A change of these redoes everything, in seconds where the trainings stay the same. What only
# starts and watches is left out.
STARTERS = {"__main__.py", "cli.py", "options.py", "jobs.py", "launch.py", "notebooks.py"}
LIBRARY = Path(paperlib.__file__).parent
# What a profile runs is measured against the paper's sizes.
SOURCES = sorted(str(path) for path in {*profile_files.files(PROFILE), *profile_files.files("paper")})
SOURCES += [str(LIBRARY / name) for name in ("claims.toml", "reporting/report.html.j2")]
SOURCES += sorted(str(path) for path in LIBRARY.rglob("*.py") if path.name not in STARTERS)


def trainings_of(notebook):
    """Marks of the trainings that a notebook reads: of section 3, beyond it, and of section 4."""
    count = {"none": 0, "first": 1, "all": PLAN.synthetic.seeds}[notebook.trained]
    seeds = [f"{MARKS}/synthetic_seed{seed}.json" for seed in range(count)]
    experiments = [f"{MARKS}/experiment_{name}.json" for name in PLAN.corpora if notebook.reads(name)]
    questions = settings.QUESTIONS if notebook.beyond else []
    beyond = [f"{MARKS}/beyond_question{number}.json" for number in questions]
    large = [f"{MARKS}/large.json"] if notebook.large else []
    return seeds + beyond + large + experiments


def job(arguments, title, line="0", launcher=""):
    """A shell command that leaves a report if it fails, even if it is killed.

    Its progress bars are on this ``line`` of those that are shown together. ``launcher`` starts it
    on several machines.
    """
    program = f"{shlex.quote(sys.executable)} -m paperlib"
    otherwise = f"{program} failed {shlex.quote(title)} --code $? --report {shlex.quote(REPORT)}"
    program_with_bars = f"PAPERLIB_BAR_LINE={line} {launcher}{program}"
    return f"{program_with_bars} {arguments} --report {shlex.quote(REPORT)} || {otherwise}"


if SUPERVISED:
    # Only what went wrong is worth a line, and not even that where a job said it better.
    logger.addFilter(lambda record: record.levelno >= logging.ERROR and not Path(REPORT).exists())


onstart:
    Path(REPORT).unlink(missing_ok=True)


onerror:
    if not SUPERVISED and Path(REPORT).exists():
        print(Path(REPORT).read_text(encoding="utf-8"), file=sys.stderr)


rule all:
    input:
        [f"{MARKS}/{notebook.name}.done" for notebook in NOTEBOOKS],


rule synthetic_seed:
    input:
        SOURCES,
    output:
        MARKS + "/synthetic_seed{seed}.json",
    threads: THREADS
    resources:
        gpu_jobs=1,  # how many may share a GPU is limited with --resources gpu_jobs=N
    priority: PRIORITY["seed"]
    shell:
        job(
            "synthetic --profile {PROFILE} --seed {wildcards.seed} --output {output:q}",
            "The training of section 3, seed {wildcards.seed},",
            line="{wildcards.seed}",
        )


rule beyond:
    input:
        SOURCES,
        MARKS + "/synthetic_seed0.json",  # it starts from what is trained there
    output:
        MARKS + "/beyond_question{question}.json",
    params:
        line=lambda wildcards: FIRST_LINE + 1 + settings.QUESTIONS.index(int(wildcards.question)),
    threads: THREADS
    resources:
        gpu_jobs=1,
    priority: PRIORITY["beyond"]
    shell:
        job(
            "beyond --profile {PROFILE} --question {wildcards.question} --output {output:q}",
            "The training beyond the paper, question {wildcards.question},",
            line="{params.line}",
        )


rule large:
    input:
        SOURCES,
    output:
        MARKS + "/large.json",
    params:
        line=FIRST_LINE,
        # On several machines, which Slurm gives, the first of them is where they meet.
        together=f"--processes {PROCESSES}"
        + (
            f" --machines {MACHINES}"
            ' --meet "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29400"'
            if MACHINES > 1
            else ""
        ),
        # With another text to be had it is done again; so below.
        data=os.environ.get("PAPERLIB_DATA", ""),
        text=launch.text_there_is(PLAN.large.folder) if PLAN.large and PLAN.large.folder else "",
    threads: THREADS
    resources:
        gpu_jobs=1,
        # A task a machine. By itself the executor would take `tasks` for those of each GPU.
        **(
            {"mpi": "srun", "nodes": MACHINES, "tasks": MACHINES, "tasks_per_gpu": 0}
            if MACHINES > 1
            else {}
        ),
    priority: PRIORITY["large"]
    shell:
        job(
            "large --profile {PROFILE} --output {output:q} {params.together}",
            "The large-scale experiment",
            line="{params.line}",
            launcher=SRUN if MACHINES > 1 else "",
        )


rule experiment:
    input:
        SOURCES,
    output:
        MARKS + "/experiment_{experiment}.json",
    params:
        line=lambda wildcards: PLAN.synthetic.seeds + list(PLAN.corpora).index(wildcards.experiment),
        data=os.environ.get("PAPERLIB_DATA", ""),
        text=lambda wildcards: launch.text_there_is(PLAN.corpora[wildcards.experiment].corpus),
    threads: THREADS
    resources:
        gpu_jobs=1,
    priority: PRIORITY["experiment"]
    shell:
        job(
            "experiment --profile {PROFILE} --name {wildcards.experiment} --output {output:q}",
            "The experiment {wildcards.experiment}",
            line="{params.line}",
        )


def kind_of(notebook):
    """What it counts as in ``ORDER``."""
    if notebook == NOTEBOOKS[0]:
        return "first notebook"
    return "long notebook" if notebook.long else "notebook"


for position, notebook in enumerate(NOTEBOOKS):

    rule:
        name:
            notebook.name
        input:
            SOURCES,
            local(notebook.source),
            trainings_of(notebook),
            [f"{MARKS}/{other.name}.done" for other in NOTEBOOKS if other.name in notebook.needs],
        output:
            touch(f"{MARKS}/{notebook.name}.done"),
            # "update": results that are there stay until new ones are, and if the notebook fails.
            update([local(path) for path in notebook.products(PROFILE)]),
            update(local(notebook.executed(PROFILE))),
        params:
            selection=(f"--seeds {SEEDS} " if SEEDS else "")
            + (f"--experiments {EXPERIMENTS}" if EXPERIMENTS else ""),
        priority: PRIORITY[kind_of(notebook)] - position
        shell:
            job("notebook {rule} --profile {PROFILE} {params.selection}", "Notebook {rule}")
