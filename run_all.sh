#!/usr/bin/env bash
# Everything: sets up the environment when needed, then runs the notebooks. See --help.
set -euo pipefail

unset CDPATH

usage() {
    cat <<'END'
Usage: ./run_all.sh [OPTION]...

Makes .venv from requirements.txt when needed, then runs the notebooks in their order and says
where the results are. What is done and unchanged is not done again; what was interrupted goes on.

  --profile NAME  smoke, quick, averaged, longer, overnight, medium or paper: what to compute
                  (default: medium with a CUDA GPU, quick without)
  --only 03       one notebook, by its number, and what it depends on
  --seeds N       seeds of the synthetic study, in place of the profile's number
  --experiments A,B  experiments of section 4, in place of all that the profile has; 'none' leaves
                  section 4 out
  --cores N       processor cores to use (default: all)
  --force         run notebooks that are up to date too; trainings are found again, not repeated
                  (delete the folder runs/ to train again)
  --list          list the notebooks and what each makes, without running anything
  --lab           open the notebooks in JupyterLab, in the same environment
  --benchmarks [NAME]...  measure speed and memory beside what people would use instead
  --test [ARG]... run the tests in the same environment; what follows goes to pytest
  --help          show this

Environment variables: PYTHON, the Python to make .venv with (3.11 or newer); PAPERLIB_RUNS, a
folder for trained models in place of runs/; PAPERLIB_DATA, a folder of texts to look in before
data/; PAPERLIB_GPU_JOBS, how many trainings share a GPU (3).
An active conda environment called paperlib (see environment.yml) is used in place of .venv.
END
}

say() { printf '%s\n' "$1" >&2; }

fail() { # one sentence for the user, and an exit code
    say "run_all.sh: $1"
    exit "${2:-1}"
}

# Folders: the user's, where relative ones begin, and the project

for variable in PAPERLIB_RUNS PAPERLIB_DATA; do
    case ${!variable:-} in
        '' | /* | '~'*) ;; # what stands for a home is put in later
        *) export "$variable=$PWD/${!variable}" ;;
    esac
done

has_project() { [[ -d $1/paperlib/profiles ]]; }

project=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# Slurm runs a copy of what it is given, in a folder of its own.
if ! has_project "$project" && has_project "${SLURM_SUBMIT_DIR:-}"; then
    project=$SLURM_SUBMIT_DIR
fi
has_project "$project" || fail "there is no paperlib/ beside it, in $project; start it where the \
project is, under Slurm with --wrap as in docs/cluster.md."
cd -- "$project"
project=$(pwd -P)

# Options, checked before anything is installed

action='run'
profile='' only='' seeds='' experiments='' cores='' force=''
passed_on=()

value_of() { # option, number of arguments left, the next one
    if (($2 < 2)) || [[ -z $3 || $3 == --* ]]; then fail "$1 needs a value; see --help." 2; fi
    printf '%s' "$3"
}

count_of() {
    local count
    count=$(value_of "$@") || exit 2
    [[ $count =~ ^[1-9][0-9]{0,5}$ ]] || fail "$1 needs a whole number from 1 on, not '$count'." 2
    printf '%s' "$count"
}

parse_options() {
    while (($#)); do
        case $1 in
            --profile)
                profile=$(value_of "$1" $# "${2-}")
                shift
                ;;
            --only)
                only=$(value_of "$1" $# "${2-}")
                shift
                ;;
            --seeds)
                seeds=$(count_of "$1" $# "${2-}")
                shift
                ;;
            --experiments)
                experiments=$(value_of "$1" $# "${2-}")
                shift
                ;;
            --cores)
                cores=$(count_of "$1" $# "${2-}")
                shift
                ;;
            --force) force=yes ;;
            --list | --lab) action=${1#--} ;;
            --test | --benchmarks)
                action=${1#--}
                passed_on=("${@:2}")
                break
                ;;
            --help | -h)
                usage
                exit 0
                ;;
            *) fail "there is no option '$1'; see --help." 2 ;;
        esac
        shift
    done
    check_profile
    check_only
}

check_profile() {
    if [[ -z $profile ]]; then return; fi
    if [[ $profile =~ ^[A-Za-z0-9_-]+$ && -f paperlib/profiles/$profile.toml ]]; then return; fi
    local known
    known=$(cd paperlib/profiles && printf '%s, ' *.toml)
    known=${known//.toml/}
    fail "there is no profile '$profile'; choose one of ${known%, }." 2
}

check_only() {
    if [[ -z $only ]]; then return; fi
    if [[ $only =~ ^[0-9]+$ ]] && compgen -G "notebooks/${only}_*.ipynb" >/dev/null; then return; fi
    fail "there is no notebook '$only'; --list shows their numbers." 2
}

# Python and the environment

is_recent() { # whether this is a Python that can make the environment
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        is_recent "$PYTHON" || fail "PYTHON is '$PYTHON', no Python 3.11 or newer with venv."
        printf '%s' "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if is_recent "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer with its module venv was found; install one, or name one that is \
not on the PATH: PYTHON=/path/to/python3 ./run_all.sh"
}

# What the environment depends on; as it is written when a set-up is complete, a stamp that differs
# or is missing means that there is something to do. Environments cannot be moved, hence the folder.
stamp_of() { # a Python
    printf '%s\n' "$project"
    "$1" -c 'import sys; print(sys.version.split()[0])'
    cat requirements.txt pyproject.toml
}

is_ready() {
    [[ -x .venv/bin/python && -f .venv/stamp ]] || return 1
    if [[ -n ${PYTHON:-} ]]; then
        stamp_of "$PYTHON" | cmp -s - .venv/stamp
    else
        stamp_of .venv/bin/python 2>/dev/null | cmp -s - .venv/stamp
    fi
}

must_be_remade() { # whether .venv cannot be brought up to date in place with this Python
    if [[ -e .venv/unfinished ]] || ! is_recent .venv/bin/python; then return 0; fi
    if [[ ! -f .venv/stamp ]]; then return 1; fi
    ! cmp -s <(stamp_of "$1" | head -n 2) <(head -n 2 .venv/stamp)
}

show_steps() { # of pip, as one line on a terminal
    local line
    while IFS= read -r line; do
        printf '%s\n' "$line" >>runs/setup.log
        case $line in
            Collecting* | *Downloading* | Building*) ;;
            Installing\ collected*) line='Installing them …' ;;
            ERROR*) printf '\n%s\n' "$line" >&2 && continue ;;
            *) continue ;;
        esac
        if [[ -t 2 ]]; then printf '\r\033[K  %.70s' "${line#"${line%%[![:space:]]*}"}" >&2; fi
    done
    if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
}

register_kernel() { # for JupyterLab
    "$1" -m ipykernel install --sys-prefix --name paperlib --display-name paperlib >/dev/null ||
        fail "the kernel for JupyterLab could not be registered."
}

set_up() {
    local base
    base=$(find_python)
    if must_be_remade "$base"; then rm -rf .venv; fi
    mkdir -p runs
    : >runs/setup.log
    say "Setting up .venv with $("$base" --version): once, 2 to 10 minutes by the network."
    mkdir -p .venv
    touch .venv/unfinished # before there is anything that an interruption could leave
    [[ -x .venv/bin/python ]] || "$base" -m venv .venv
    rm -f .venv/stamp
    local python=.venv/bin/python
    "$python" -m pip install --disable-pip-version-check --progress-bar off \
        -r requirements.txt -e . 2>&1 | show_steps ||
        fail "the set-up failed; runs/setup.log has all of what pip said."
    register_kernel "$python"
    stamp_of "$python" >.venv/stamp
    rm .venv/unfinished
    say "Set up in $SECONDS s."
}

set_up_if_needed() { # one start at a time, where the system can lock
    if is_ready; then return; fi
    mkdir -p runs
    exec 9>runs/setup.lock
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_ready; then set_up; fi
    exec 9>&-
}

use_environment() { # sets python, to that of the environment
    if [[ ${CONDA_DEFAULT_ENV:-} == paperlib ]]; then
        python=$CONDA_PREFIX/bin/python
        [[ -d $CONDA_PREFIX/share/jupyter/kernels/paperlib ]] || register_kernel "$python"
    else
        set_up_if_needed
        python=$project/.venv/bin/python
    fi
}

# Actions

count_cores() { getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1; }

parse_options "$@"

case $action in
    list)
        if is_ready; then python=.venv/bin/python; else python=$(find_python); fi
        exec "$python" -m paperlib notebooks
        ;;
    lab)
        use_environment
        exec "$python" -m jupyterlab
        ;;
    test)
        use_environment
        exec "$python" -m pytest -n "${cores:-$(count_cores)}" \
            ${passed_on[@]+"${passed_on[@]}"}
        ;;
    benchmarks)
        use_environment
        exec "$python" -m benchmarks ${passed_on[@]+"${passed_on[@]}"}
        ;;
    run)
        use_environment
        exec "$python" -m paperlib run \
            ${profile:+--profile "$profile"} \
            ${only:+--only "$only"} \
            ${seeds:+--seeds "$seeds"} \
            ${experiments:+--experiments "$experiments"} \
            ${cores:+--cores "$cores"} \
            ${force:+--force}
        ;;
esac
