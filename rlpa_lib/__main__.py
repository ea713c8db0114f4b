"""Command line: reproduce, train, plan, audit, publish. Exit codes: 0 done, 1 failed, 2 bad input or params (one line on stderr)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError


class _Parser(argparse.ArgumentParser):
    """argparse with a single line per error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rlpa_lib: {message} (try: {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = _parser().parse_args(argv)
    try:
        return {"reproduce": _reproduce, "train": _train, "plan": _plan, "audit": _audit, "publish": _publish}[options.command](options)
    except InputError as error:
        print(f"rlpa_lib: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rlpa_lib: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m rlpa_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    reproduce = commands.add_parser("reproduce", help="run the notebooks in order, into a run directory")
    _add_scale(reproduce)
    reproduce.add_argument("--seed", type=int, default=0)
    reproduce.add_argument("--run-dir", type=Path, help="default: runs/<scale>-<seed>")
    reproduce.add_argument("--only", action="append", default=[], metavar="NOTEBOOK", help="20_ppo or 20; repeatable")
    reproduce.add_argument("--notebooks", type=Path, help="another folder of numbered notebooks")
    reproduce.add_argument("--verbose", action="store_true", help="show what the notebooks print while they run")

    reproduce.add_argument("--jobs", type=int, metavar="N", help="notebooks side by side (default: 2 for the tiny model on two cores, else 1)")

    train = commands.add_parser("train", help="train by PPO alone, as 20_ppo does; also under accelerate launch")
    _add_scale(train)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--run-dir", type=Path, help="default: runs/<scale>-<seed>")
    train.add_argument("--name", default="ppo", help="of the adapter and the metrics")
    train.add_argument("--change", action="append", default=[], metavar="SECTION.KEY=VALUE", help="a setting of this training alone")
    train.add_argument("--until", type=int, metavar="UPDATES", help="stop after so many updates")

    plan = commands.add_parser("plan", help="what a run will cost: requests, tokens, USD, hours, GPU memory")
    _add_scale(plan)
    plan.add_argument("--rpm", type=float, help="requests a minute that servers allow (default: endpoint.max_rpm, or 500)")
    plan.add_argument("--tpm", type=float, default=2e6, help="tokens a minute that servers allow")
    plan.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE", help="put another length in place of the pilot's")
    plan.add_argument("--pilot", type=Path, nargs="+", default=[], metavar="RUN_DIR", help="scale your own runs, before the pilot's")
    plan.add_argument("--against", type=Path, metavar="RUN_DIR", help="hold the plan against a finished run of the same settings")
    plan.add_argument("--record", type=Path, nargs="+", metavar="RUN_DIR", help="make these runs the pilot that ships")

    audit = commands.add_parser("audit", help="check a folder of tables shaped like the paper's against each other")
    audit.add_argument("--tables", type=Path, metavar="DIR", help="default: the paper's own tables")
    audit.add_argument("--json", type=Path, metavar="OUT", help="where to write the list of findings")

    publish = commands.add_parser("publish", help="pool finished runs that differ in the seed alone, for figures/")
    publish.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    publish.add_argument("--out", type=Path, default=Path("figures"))
    return parser


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", default="mini", help="smoke, mini, smol, paper, released, or a params file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one setting")


def _run_dir(options: argparse.Namespace) -> Path:
    return options.run_dir or Path("runs") / f"{Path(options.scale).stem}-{options.seed}"


def _reproduce(options: argparse.Namespace) -> int:
    from rlpa_lib.reproduce import runner

    run_dir = _run_dir(options)
    return runner.reproduce(
        scale=options.scale, seed=options.seed, run_dir=run_dir.expanduser().absolute(), only=options.only, overrides=options.set,
        notebooks=(options.notebooks or runner.NOTEBOOKS).resolve(), verbose=options.verbose, jobs=options.jobs,
    )  # fmt: skip


def _train(options: argparse.Namespace) -> int:
    from rlpa_lib.rlpa import training
    from rlpa_lib.rlpa.processes import MainFailed, ProcessLost

    try:
        return training.worker(options.scale, options.seed, _run_dir(options), options.set, options.name, options.change,
                               options.until)  # fmt: skip
    except (MainFailed, ProcessLost) as error:
        print(f"rlpa_lib: {error}", file=sys.stderr, flush=True)
        return 1


def _plan(options: argparse.Namespace) -> int:
    from rlpa_lib.plan import memory, pilot, plan

    if options.record:
        print(pilot.write_pilot(options.record))
        return 0
    cfg, known = config.load_config(options.scale, options.set), pilot.read_pilot(options.pilot).assume(options.assume)
    if options.against is None:
        told = plan.table(cfg, known, rpm=options.rpm, tpm=options.tpm)
        print("\n\n".join(text for text in (told, memory.table(cfg)) if text))
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
