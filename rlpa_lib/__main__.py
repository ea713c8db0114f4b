"""Commands: reproduce, train, plan, audit, publish. Exit codes: 0 done, 1 failed, 2 bad input or params."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

STAGES = ("ppo", "sft", "dpo", "grpo")


class _Parser(argparse.ArgumentParser):
    """argparse with a single line per error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rlpa_lib: {message} (try: {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(argv)
    try:
        return options.act(options)
    except InputError as error:
        print(f"rlpa_lib: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rlpa_lib: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m rlpa_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    several, setting = {"action": "append", "default": []}, "SECTION.KEY=VALUE"

    def begin(
        act: Callable[[argparse.Namespace], int], told: str, scaled: bool = True, seeded: bool = False
    ) -> Callable[..., argparse.Action]:
        command = commands.add_parser(act.__name__.removeprefix("_"), help=told)
        command.set_defaults(act=act)
        if scaled:
            told = "smoke, mini, smol, paper, released, or a params file"
            command.add_argument("--scale", default="mini", help=told)
            command.add_argument("--set", **several, metavar=setting, help="change one setting")
        if seeded:
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--run-dir", type=Path, help="default: runs/<scale>-<seed>")
        return command.add_argument

    add = begin(_reproduce, "run the notebooks in order, into a run directory", seeded=True)
    add("--only", **several, metavar="NOTEBOOK", help="20_ppo or 20; repeatable")
    add("--notebooks", type=Path, help="another folder of numbered notebooks")
    add("--verbose", action="store_true", help="show what the notebooks print while they run")
    told = "notebooks side by side (default: 2 for the tiny model on two cores, else 1)"
    add("--jobs", type=int, metavar="N", help=told)
    told = "what servers may cost, in place of endpoint.max_usd; asked for when more is planned"
    add("--accept-cost", type=float, metavar="USD", help=told)

    told = "train one stage alone, as its notebook does; also under accelerate launch"
    add = begin(_train, told, seeded=True)
    add("--stage", choices=STAGES, default="ppo", help="what is trained (default: ppo)")
    add("--name", help="ppo only: of the weights and the metrics (default: ppo)")
    add("--change", **several, metavar=setting, help="ppo only: a setting of this training alone")
    add("--until", type=int, metavar="UPDATES", help="ppo only: stop after so many updates")

    _add_plan_options(begin(_plan, "what a run will cost: requests, tokens, USD, hours, GPU memory"))

    add = begin(_audit, "check a folder of tables shaped like the paper's against each other", scaled=False)
    add("--tables", type=Path, metavar="DIR", help="default: the paper's own tables")
    add("--json", type=Path, metavar="OUT", help="where to write the list of findings")

    add = begin(_publish, "pool finished runs that differ in the seed alone, for figures/", scaled=False)
    add("runs", type=Path, nargs="+", metavar="RUN_DIR")
    add("--out", type=Path, default=Path("figures"))
    return parser


def _add_plan_options(add: Callable[..., argparse.Action]) -> None:
    add("--rpm", type=float, help="requests a minute that servers allow (default: endpoint.max_rpm, or 500)")
    add("--tpm", type=float, default=2e6, help="tokens a minute that servers allow")
    told = "put another length in place of the pilot's; repeatable"
    add("--assume", action="append", default=[], metavar="NAME=VALUE", help=told)
    add("--pilot", type=Path, nargs="+", default=[], metavar="RUN_DIR", help="scale runs of your own")
    told = "cards, such as 8xA100-80 or 2x8xA100-80: the layout, its command, memory, hours and USD"
    add("--gpus", metavar="CARDS", help=told)
    told = "hold the plan against a finished run of the same settings"
    add("--against", type=Path, metavar="RUN_DIR", help=told)
    add("--record", type=Path, nargs="+", metavar="RUN_DIR", help="make these runs the pilot that ships")


def _run_dir(options: argparse.Namespace) -> Path:
    return options.run_dir or Path("runs") / f"{Path(options.scale).stem}-{options.seed}"


def _reproduce(options: argparse.Namespace) -> int:
    from rlpa_lib.plan import spending
    from rlpa_lib.reproduce import runner

    return runner.reproduce(
        scale=options.scale, seed=options.seed, run_dir=_run_dir(options).expanduser().absolute(),
        only=options.only, overrides=options.set, notebooks=(options.notebooks or runner.NOTEBOOKS).resolve(),
        verbose=options.verbose, jobs=options.jobs,
        agree=partial(spending.agree, accepted=options.accept_cost),
    )  # fmt: skip


def _train(options: argparse.Namespace) -> int:
    from rlpa_lib.rlpa.processes import MainFailed, ProcessLost, work
    from rlpa_lib.rlpa.silence import SilentTraining

    if options.stage == "ppo":
        from rlpa_lib.rlpa import training

        asked = {"name": options.name or "ppo", "changes": options.change, "until": options.until}
        act = partial(training.work, **asked)
    elif options.name or options.change or options.until is not None:
        raise InputError(f"--stage {options.stage}: takes no --name, --change or --until, which are PPO's")
    else:
        from rlpa_lib.methods import stages  # TRL is slow to import

        act = partial(stages.train_here, stage=options.stage)
    where = options.scale, options.seed, _run_dir(options), options.set
    try:
        return work(*where, act, shards=options.stage == "ppo")
    except (MainFailed, ProcessLost, SilentTraining) as error:
        print(f"rlpa_lib: {error}", file=sys.stderr, flush=True)
        return 1


def _plan(options: argparse.Namespace) -> int:
    from rlpa_lib.plan import gpu, layouts, pilot, plan

    if options.record:
        print(pilot.write_pilot(options.record))
        return 0
    for name in ("rpm", "tpm"):
        limit = getattr(options, name)
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise InputError(f"--{name}: wants a number above 0; got {limit:g}")
    cfg = config.load_config(options.scale, options.set)
    known = pilot.read_pilot(options.pilot).assume(options.assume)
    if options.gpus is not None:
        rpm = options.rpm or cfg.endpoint.max_rpm or plan.RPM
        scale = (options.scale, options.set)
        print(layouts.describe(cfg, options.gpus, *scale, known, rpm, options.tpm))
        return 0
    if options.against is None:
        told = plan.table(cfg, known, rpm=options.rpm, tpm=options.tpm)
        print("\n\n".join(text for text in (told, gpu.table(cfg)) if text))
        return 0
    for name, (predicted, actual) in plan.compare(cfg, options.against, known).items():
        off = f"{(predicted - actual) / actual:+.1%}" if actual else "-"
        print(f"{name:30} planned {predicted:12,.0f}  asked {actual:12,.0f}  {off}")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from rlpa_lib.audit import audit

    return audit.main(options.tables or audit.PAPER_TABLES, options.json)


def _publish(options: argparse.Namespace) -> int:
    from rlpa_lib.report import publish

    for path in publish.publish([run.expanduser().absolute() for run in options.runs], options.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
