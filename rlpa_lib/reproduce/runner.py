"""Runs the numbered notebooks with papermill, each after those that it needs, skipping what is finished."""

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from rlpa_lib import runs
from rlpa_lib.agents import own_servers
from rlpa_lib.client.usage import NOTEBOOK_VARIABLE
from rlpa_lib.reproduce import schedule
from rlpa_lib.runs import record
from rlpa_lib.runs.notebooks import NOTEBOOKS, STAGES, TRAINING, list_notebooks
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import config
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, METHODS, POLICIES, USERS
from rlpa_lib.settings.people import check_people

UNTRAINABLE = "an endpoint policy cannot be trained"
Agree = Callable[[Config, Collection[str], Path], float | None]
STUDY = "34_user_and_reward_model_evaluation"  # has counts of users of its own
Failure = tuple[str, int]  # a line about the cell at which a notebook stopped, and the exit code


def reproduce(
    scale: str, seed: int, run_dir: Path, only: Sequence[str] = (), overrides: Sequence[str] = (),
    notebooks: Path = NOTEBOOKS, verbose: bool = False, jobs: int | None = None,
    agree: Agree | None = None,
) -> int:  # fmt: skip
    """Exit code: 0 done, 1 a notebook failed, 2 one found bad input. InputError before anything is written.

    `jobs` notebooks (None: `default_jobs`) run side by side where they can; the results are the same.
    `agree(cfg, names of notebooks, run_dir)` compares the cost with the cap (`plan.spending`): InputError, or
    USD in place of `endpoint.max_usd` (None: as it is).
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs: {jobs} is less than 1")
    cfg = config.load_config(scale, overrides)
    file, label = config.locate_params(scale)
    config.check_files(cfg, label)
    everything = list_notebooks(notebooks)
    chosen = select_notebooks(everything, only)
    jobs, skipped = jobs or default_jobs(cfg), find_untrainable(cfg, chosen, only)
    check_servers(cfg, jobs)
    names = {path.stem for path in chosen}.difference(skipped)
    check_needs(cfg, label, names, run_dir)
    if agree and (accepted := agree(cfg, names, run_dir)):
        overrides = [*overrides, f"endpoint.max_usd={accepted:f}"]
        cfg = config.load_config(scale, overrides)
    run = runs.claim(cfg, seed, run_dir, label)
    if skipped:
        run.note("skipped_notebooks", dict.fromkeys(skipped, UNTRAINABLE))
    parameters = {
        "params": file.stem if file.parent == config.PARAMS_DIR else str(file), "seed": seed,
        "run_dir": str(run.dir), "overrides": config.anchor_paths(overrides),
    }
    start = time.monotonic()
    try:
        with kernel_environment(run, [path.stem for path in chosen]):
            failure = _run_all(run, everything, chosen, parameters, verbose, skipped, jobs)
    except KeyboardInterrupt:
        run.finish("interrupted")
        raise
    run.finish("failed" if failure else "done")
    if failure:
        line, code = failure
        print(f"rlpa_lib: {line}", file=sys.stderr)
        return code
    print(f"finished in {_clock(start)}: {run.dir}")
    if (run.dir / "report.html").exists():
        print(f"report: {run.dir / 'report.html'}")
    return 0


def select_notebooks(notebooks: Sequence[Path], only: Sequence[str]) -> list[Path]:
    """The notebooks named by `only` (20_ppo, 20_ppo.ipynb or 20), in their own order; all when empty."""
    wanted: set[Path] = set()
    for name in only:
        stem = name.removesuffix(".ipynb")
        matches = [path for path in notebooks if stem in (path.stem, path.stem[:2])]
        if not matches:
            near = get_close_matches(stem, [path.stem for path in notebooks], n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"--only {name}: no such notebook{hint}")
        wanted.update(matches)
    return [path for path in notebooks if path in wanted or not only]


def find_untrainable(cfg: Config, notebooks: Sequence[Path], only: Sequence[str] = ()) -> list[str]:
    """Notebooks to skip: a policy behind a chat endpoint cannot be trained. InputError: `only` has one."""
    trainable = POLICIES[cfg.policy.kind].trainable
    found = [path.stem for path in notebooks if path.stem in TRAINING and not trainable]
    if found and only:
        raise InputError(f"--only {found[0]}: {UNTRAINABLE} (policy.kind); use local or vllm")
    return found


def check_servers(cfg: Config, jobs: int) -> None:
    """InputError: vLLM servers of the run's own cannot be started here, or `jobs` would share them."""
    if own_servers.are_needed(cfg):
        if jobs > 1:
            raise InputError(f"--jobs: {jobs} notebooks cannot share the servers that one of them starts")
        own_servers.check(cfg)


def check_needs(cfg: Config, label: str, notebooks: set[str], run_dir: Path) -> None:
    """Look now, and not after hours of training, for what notebooks need: enough users, conversations of SFT
    and DPO, RAG's encoder, the servers of other models. InputError: something is missing or broken."""
    check_people(cfg, label, study=STUDY in notebooks)
    if cfg.run.accelerate is not None:
        from rlpa_lib.methods import stages  # slow to import

        stages.check_shares(cfg, [stage for name, stage in STAGES.items() if name in notebooks])
    if notebooks & {"11_sft", "12_dpo"}:
        from rlpa_lib.methods import preferences

        preferences.check_conversations(cfg)
    if not notebooks & {"10_prompting_baselines", "30_evaluation", "33_reasoning_models"}:
        return
    if any(METHODS[name].needs_encoder for name in cfg.evaluation.methods):
        from rlpa_lib.methods import retrieval

        retrieval.source_of(cfg.evaluation.encoder)
    if cfg.evaluation.comparators:
        from rlpa_lib.client.endpoint import endpoint_for

        bare = cfg.endpoint.model_copy(update={"cache": "off", "cache_only": False})  # nothing is written
        for name in cfg.evaluation.comparators:
            endpoint_for(cfg.model_copy(update={"endpoint": bare}), "policy", run_dir, name)


def default_jobs(cfg: Config) -> int:
    """Two where the tiny model's rule-made world leaves a core free, else one."""
    parties = USERS[cfg.user.kind], JUDGES[cfg.judge.kind], EVALUATORS[cfg.evaluator.kind]
    small = cfg.policy.model == "tiny" and POLICIES[cfg.policy.kind].in_process
    small = small and all(party.scripted for party in parties)
    threads = record.cores() if cfg.run.threads == "auto" else cfg.run.threads
    return 2 if small and record.cores() >= 2 * threads else 1


@contextmanager
def kernel_environment(run: Run, notebooks: Sequence[str]) -> Iterator[None]:
    """Kernels, one a notebook: this interpreter, the run's threads, own files inside the run directory."""
    with tempfile.TemporaryDirectory(dir=run.dir, prefix=".kernel-") as scratch:
        # log level CRITICAL: no warnings that the loopback is not encrypted or that a kernel was stopped
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=50"]
        for name in notebooks:
            spec = {"argv": command, "display_name": "Python 3", "language": "python"}
            spec["env"] = {NOTEBOOK_VARIABLE: name}  # tells the usage record whose requests they are
            folder = Path(scratch) / "kernels" / _name_kernel(name)
            folder.mkdir(parents=True)
            (folder / "kernel.json").write_text(json.dumps(spec))
        changes = {
            "JUPYTER_PATH": scratch, "JUPYTER_RUNTIME_DIR": f"{scratch}/runtime",
            "IPYTHONDIR": f"{scratch}/ipython", "OMP_NUM_THREADS": str(run.cfg.run.threads),
            "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        if run.cfg.policy.model in ("tiny", "smollm2"):
            changes |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _name_kernel(notebook: str) -> str:
    """Jupyter takes small letters, digits and a few signs; notebooks that differ in case alone stay apart."""
    plain = re.sub(r"[^a-z0-9._-]", "_", notebook.lower())
    return plain if plain == notebook else f"{plain}-{hashlib.sha256(notebook.encode()).hexdigest()[:8]}"


def _run_all(
    run: Run, everything: Sequence[Path], chosen: Sequence[Path], parameters: dict, verbose: bool,
    skipped: Sequence[str], jobs: int,
) -> Failure | None:  # fmt: skip
    """Execute what is not done yet and not `skipped`; the first failure, or None."""
    width, paths = max(len(path.stem) for path in chosen), {path.stem: path for path in chosen}

    def one(stem: str) -> Failure | None:
        def tell(what: str) -> None:
            print(f"[{[*paths].index(stem) + 1}/{len(paths)}] {stem.ljust(width)}  {what}", flush=True)

        if stem in skipped:
            tell(f"skipped: {UNTRAINABLE}")
            return None
        key, inputs = f"notebook {stem}", fingerprint(run, everything, paths[stem])
        if run.done(key, inputs) and (run.dir / "notebooks" / paths[stem].name).exists():
            tell("done before, nothing it depends on has changed")
            return None
        tell("running")
        start = time.monotonic()
        failure = execute(run, paths[stem], parameters, verbose)
        if own_servers.are_needed(run.cfg):
            own_servers.end_orphans()  # of a kernel that was killed; the next notebook needs their cards
        if failure is None:
            run.mark_done(key, inputs)
            tell(_clock(start))
        return failure

    return schedule.run(list(paths), jobs, one)


def fingerprint(run: Run, notebooks: Sequence[Path], notebook: Path) -> str:
    """Digest of what a notebook depends on: params, seed, library, its own text and the code before it."""
    before = [_code(path) for path in notebooks if path.name < notebook.name]
    return run.fingerprint(*before, notebook.read_text(encoding="utf-8"))


def _code(notebook: Path) -> str:
    """Code cells of a notebook; prose of earlier notebooks does not change what later ones compute."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{notebook}: not a notebook: {error}") from None
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def execute(run: Run, notebook: Path, parameters: dict, verbose: bool) -> Failure | None:
    """Run one notebook in its folder; the copy is notebooks/<name>.ipynb, or .failed.ipynb after an error."""
    import papermill  # slow to import, and not needed when everything is done
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    finished = run.path(f"notebooks/{notebook.name}")
    current, failed = finished.with_suffix(".running.ipynb"), finished.with_suffix(".failed.ipynb")
    options = {"kernel_name": _name_kernel(notebook.stem), "cwd": str(notebook.parent), "progress_bar": False}
    options |= {"log_output": verbose, "start_timeout": 180}
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        papermill.execute_notebook(str(notebook), str(current), parameters, **options)
    except PapermillExecutionError as error:
        # the first and the last line of what the cell raised, without terminal colours
        text = re.sub(r"\x1b\[[0-9;]*m", "", f"{error.ename}: {error.evalue}").strip()
        lines = [line for line in text.splitlines() if line.strip()]
        said = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}"
        where = f"{notebook.stem}, cell In [{error.exec_count}]: {said}"
        code = 2 if error.ename == "InputError" else 1
    except (DeadKernelError, CellTimeoutError) as error:
        where, code = f"{notebook.stem}: {str(error).strip().splitlines()[0]}", 1
    else:
        failed.unlink(missing_ok=True)
        current.replace(finished)
        return None
    current.replace(failed)
    return f"{where} (see {failed})", code


def _clock(start: float) -> str:
    """Time since `start` of the monotonic clock."""
    minutes, rest = divmod(round(time.monotonic() - start), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
