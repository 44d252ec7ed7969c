"""The workflow: which jobs there are, and every notebook headless in profile ``smoke``."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from conftest import CHECKOUT, launch_job
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from paperlib import notebooks, paths, settings
from paperlib.reporting import cells

NAMES = list(notebooks.declared())


def jobs(*options: str, **environment: str) -> dict[str, int]:
    """Rules and numbers of jobs that a dry run in a fresh project lists."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", *options]
    output = subprocess.run(
        [*command, "--snakefile", CHECKOUT / "Snakefile"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    table = re.search(r"count\n[- ]+\n(.*?)\n\n", output.stdout + output.stderr, re.DOTALL)
    rows = (row.split() for row in table.group(1).splitlines())
    return {name: int(count) for name, count in rows if name not in ("all", "total")}


@pytest.fixture
def fresh_project(tmp_path):
    """A project of the real notebooks without any results; not the user's."""
    for name in ("notebooks", "workflow"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    return tmp_path


@pytest.fixture
def dry_run(fresh_project):
    """Jobs of a dry run there."""

    def run(*options: str) -> dict[str, int]:
        where = ("--directory", str(fresh_project))
        return jobs(*options, *where, PAPERLIB_PROJECT=str(fresh_project))

    return run


def test_everything(dry_run):
    assert dry_run("--cores", "2", "--config", "profile=smoke") == {
        **dict.fromkeys(NAMES, 1),
        "synthetic_seed": settings.load("smoke").synthetic.seeds,
        "beyond": len(settings.QUESTIONS),
        "large": 1,
        "experiment": len(settings.load("smoke").corpora),
    }


def test_one_notebook_brings_what_it_needs(dry_run):
    options = ("--cores", "2", "--config", "profile=smoke", "seeds=3")
    assert dry_run("03_table_1", *options) == {"03_table_1": 1, "synthetic_seed": 3}
    assert dry_run("02_language_model", *options) == {"02_language_model": 1, "synthetic_seed": 1}
    assert dry_run("00_start_here", *options) == {"00_start_here": 1}
    assert dry_run("06_penn_treebank", *options) == {"06_penn_treebank": 1, "experiment": 2}
    assert dry_run("07_wikitext_2", *options) == {"07_wikitext_2": 1, "experiment": 3}
    assert dry_run("09_beyond_the_paper", *options) == {
        "09_beyond_the_paper": 1,
        "synthetic_seed": 1,
        "beyond": len(settings.QUESTIONS),
        "experiment": 2,
    }
    assert dry_run("10_large_scale", *options) == {"10_large_scale": 1, "large": 1}
    everything = {**dict.fromkeys(NAMES, 1), "synthetic_seed": 3, "experiment": 3}
    everything |= {"beyond": len(settings.QUESTIONS), "large": 1}
    assert dry_run("99_report", *options) == everything


def test_experiments_can_be_left_out_and_so_are_their_notebooks(dry_run):
    without = ("06_penn_treebank", "07_wikitext_2", "10_large_scale")
    expected = {**dict.fromkeys([name for name in NAMES if name not in without], 1)}
    options = ("--cores", "2", "--config", "profile=smoke")
    synthetic = {"synthetic_seed": 1, "beyond": len(settings.QUESTIONS)}
    assert dry_run(*options, "experiments=none") == expected | synthetic
    some = dry_run(*options, "experiments=mos_wikitext2")
    assert some == expected | synthetic | {"experiment": 1, "07_wikitext_2": 1}
    large = dry_run(*options, "experiments=large")
    assert large == expected | synthetic | {"large": 1, "10_large_scale": 1}


def test_slurm_executor_lists_the_jobs(dry_run):
    profile = str(CHECKOUT / "workflow/slurm")
    assert dry_run("--profile", profile, "--config", "profile=paper") == {
        **dict.fromkeys(NAMES, 1),
        "synthetic_seed": settings.load("paper").synthetic.seeds,
        "beyond": len(settings.QUESTIONS),
        "large": 1,
        "experiment": len(settings.load("paper").corpora),
    }


def planned(project: Path, *options: str) -> subprocess.CompletedProcess:
    """What Snakemake says that it would do."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", *options]
    where = ["--directory", str(project), "--snakefile", str(CHECKOUT / "Snakefile")]
    environment = os.environ | {"PAPERLIB_PROJECT": str(project)}
    return subprocess.run(
        [*command, *where], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def job_on_two_machines(fresh_project, tmp_path):
    """Resources and command of section 4.3 on 2 × 8 GPUs, as the page on clusters has it."""
    profile = tmp_path / "slurm"
    profile.mkdir()
    text = (CHECKOUT / "workflow/slurm/config.yaml").read_text(encoding="utf-8")
    (before,) = re.findall(r"^  large:\n    gpu: 1\n", text, re.MULTILINE)
    page = (CHECKOUT / "docs/cluster.md").read_text(encoding="utf-8")
    instead = "gres: gpu:8"
    assert f"`{instead}`" in page
    text = text.replace(before, f"  large:\n    {instead}\n")
    (profile / "config.yaml").write_text(text, encoding="utf-8")
    options = ["large", "--profile", str(profile), "--printshellcmds"]
    config = ["profile=paper", "processes=8", "machines=2"]
    run = planned(fresh_project, *options, "--config", *config)
    run.check_returncode()
    listed = run.stdout + run.stderr
    pairs = re.search(r"^    resources: (.*)$", listed, re.MULTILINE).group(1).split(", ")
    found = dict(pair.split("=", 1) for pair in pairs)
    resources = {name: int(v) if v.isdecimal() else v for name, v in found.items()}
    return resources, re.search(r"srun .* -m paperlib large .*", listed).group()


def test_everything_is_done_again_for_other_sizes_of_the_paper(fresh_project):
    """They are what other profiles are measured against."""
    run = planned(fresh_project, "--cores", "1", "--config", "profile=smoke")
    listed = re.findall(r"^    input: (.*)$", run.stdout, re.MULTILINE)
    inputs = [line.split(", ") for line in listed if "claims.toml" in line]  # of all but `all`
    assert len(inputs) == len(listed) - 1 > len(NAMES)
    for profile in ("smoke", "paper"):
        assert all(str(paths.PROFILES / f"{profile}.toml") in one for one in inputs)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("profil=smoke", "--config has no profil; it has profile, seeds, experiments, "),
        ("profile=huge", "there is no profile 'huge'; choose one of"),
        ("profile=/somewhere/own.toml", "there is no profile '/somewhere/own.toml'; choose one of"),
    ],
)
def test_settings_that_are_none_are_refused(setting, message, fresh_project):
    run = planned(fresh_project, "--cores", "1", "--config", setting)
    assert run.returncode == 1
    assert message in run.stdout  # of a dry run


def test_slurm_starts_section_4_3_on_several_machines(job_on_two_machines):
    _, started = job_on_two_machines
    assert started.startswith("srun --ntasks-per-node=1 --cpus-per-task=4 --kill-on-bad-exit=1 ")
    assert "--processes 8 --machines 2 --meet" in started
    assert 'scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29400"' in started


class Resources(dict):
    """Resources of a job, as Snakemake's executors read them."""

    __getattr__ = dict.__getitem__


def test_slurm_gives_each_machine_its_gpus_and_one_task(job_on_two_machines):
    """What the executor itself submits."""
    resources, _ = job_on_two_machines
    job = types.SimpleNamespace(resources=Resources(resources), threads=4)
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    submitted = get_submit_command(job, dict.fromkeys(names, "")) + set_gres_string(job)
    options = set(submitted.split())
    assert {"--nodes=2", "--ntasks=2", "--gres=gpu:8", "--cpus-per-task=4"} <= options
    assert not re.search(r"--gpus|per-gpu", submitted)


def test_slurm_gives_a_gpu_to_all_that_loads_trainings():
    text = (CHECKOUT / "workflow/slurm/config.yaml").read_text(encoding="utf-8")
    with_gpu = set(re.findall(r"^  (\w+):\n    gpu: 1$", text, re.MULTILINE))
    table = notebooks.declared()
    trained = {
        name
        for name, notebook in table.items()
        if notebook.trained != "none" or notebook.experiments or notebook.large
    }
    assert with_gpu == {"synthetic_seed", "beyond", "large", "experiment", "99_report"} | trained


def test_table_lists_the_notebooks_there_are():
    assert sorted(path.stem for path in (CHECKOUT / "notebooks").glob("*.ipynb")) == NAMES
    makes = [file for notebook in notebooks.declared().values() for file in notebook.makes]
    assert len(makes) == len(set(makes))


@pytest.mark.slow
def test_every_notebook_headless(fresh_project, runs_folder):
    # One core: the other tests run beside this one.
    options = ("--profile", "smoke", "--cores", "1")
    result = launch_job(fresh_project, *options)
    assert result.returncode == 0, result.stderr
    figures = fresh_project / "figures/smoke"
    made = {str(path.relative_to(figures)) for path in figures.rglob("*") if path.is_file()}
    declared = {file for notebook in notebooks.declared().values() for file in notebook.makes}
    assert made == declared | {f"notebooks/{name}.ipynb" for name in NAMES}
    for name in NAMES:
        text = (figures / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        executed = json.loads(text)["cells"]
        assert all(cell["execution_count"] for cell in executed if cell["cell_type"] == "code")
        assert "Warning" not in text
        for folder in (fresh_project, CHECKOUT, runs_folder):
            assert str(folder) not in text
    provenance = json.loads((figures / "provenance.json").read_text(encoding="utf-8"))
    studies = {one["study"] for one in provenance["trainings"]}
    assert studies >= {"seed 0", "beyond", "mos_ptb", "doc_ptb", "large"}

    ledger = json.loads((figures / "claims.json").read_text(encoding="utf-8"))["claims"]
    for entry in [entry for entry in ledger if "cell" in entry]:
        executed = cells.read(figures / "notebooks" / f"{entry['notebook']}.ipynb")
        shown = cells.rendered(entry["notebook"], entry["cell"], executed[entry["cell"]]).shown
        assert shown.strip(), entry["claim"]
        if entry["cell"] == "measures":
            assert f"{entry['value']:.5g}" in shown, entry["claim"]

    again = launch_job(fresh_project, *options)
    assert again.returncode == 0
    assert "Nothing to do" in again.stderr

    # Stages that are found are as good as those that are trained.
    expected = (figures / "own_model.csv").read_text(encoding="utf-8")
    for stage in ("own_discriminator", "own_finetuning"):
        shutil.rmtree(runs_folder / stage)
    result = launch_job(fresh_project, *options, "--only", "08", "--force")
    assert result.returncode == 0, result.stderr
    assert (figures / "own_model.csv").read_text(encoding="utf-8") == expected
