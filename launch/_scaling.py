"""What launch.scaling does: the grid as text, its runs one after another, the fits and the figure."""

import dataclasses
import json
import sys
import time

from mdlm_jax.config import ConfigError
from mdlm_jax.evaluation import scaling, scaling_report
from mdlm_jax.planning import budget, search, topologies

from ._supervisor import Job, supervise
from ._workdir import check_workdir, read_config
from .scaling import Cell, Study


def run(study: Study) -> int:
    """Prints the grid; trains what is not done; fits what is. The status of the first run that failed, or 0."""
    print(grid(study), flush=True)
    if study.dry_run:
        return 0
    study.workdir.mkdir(parents=True, exist_ok=True)
    for cell in study.cells:
        check_workdir(str(study.workdir / cell.name), cell.config)  # before any time is spent
        _check_measured(study, cell)
    status = 0 if study.report else _train(study)
    report(study)
    return status


def grid(study: Study) -> str:
    """Every run, what it costs, and with a topology how long that takes."""
    planned = ["days", "chip-hours", "mesh"] if study.topology else []
    heads = ["run", "parameters", "tokens", "steps", "6 N D", *planned]
    rows = [[cell.name, f"{cell.parameters:,}", f"{cell.tokens:,}", f"{cell.config.train.steps:,}",
             f"{cell.spent:.3g}", *_planned(study, cell)] for cell in study.cells]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = ["  ".join(part.rjust(width) if i else part.ljust(width)
                       for i, (part, width) in enumerate(zip(row, widths, strict=True))) for row in [heads, *rows]]
    total = sum(cell.spent for cell in study.cells)
    end = f"{len(study.cells)} runs, {total:.3g} FLOPs (6 N D: without embedding, head and attention's products)"
    if study.topology:
        hours = sum(float(row[6].replace(",", "")) for row in rows)
        end += f"; {hours:,.0f} chip-hours at {study.efficiency:.0%} of the bound"
    return "\n".join([*lines, end])


def _planned(study: Study, cell: Cell) -> list[str]:
    if not study.topology:
        return []
    best = search.search(cell.config, study.topology)[0]
    if not best["fits"]:
        raise ConfigError(f"{cell.name}: fits no mesh of {study.topology.name}; choose a larger --topology, or set "
                          "model.remat=full")
    found = budget.budget(cell.config, study.topology, best["bound"]["step"], None, study.efficiency)["at_efficiency"]
    return [f"{found['days']:.3g}", f"{found['chip_hours']:,.1f}", topologies.mesh_text(best["mesh"])]


def _train(study: Study) -> int:
    todo = [cell for cell in study.cells if not _done(study, cell)]
    whole, begin = sum(cell.spent for cell in study.cells), time.monotonic()
    before = spent = whole - sum(cell.spent for cell in todo)
    for cell in todo:
        now = spent - before
        left = f", about {(time.monotonic() - begin) * (whole - spent) / now / 60:.0f} min left" if now else ""
        print(f"\n[{study.cells.index(cell) + 1} of {len(study.cells)}] {cell.name}: {spent / whole:.0%} of the FLOPs "
              f"to spend are spent{left}", flush=True)
        command = [sys.executable, "-m", f"{__package__}.train", f"--config={cell.recipe}",
                   f"--workdir={study.workdir / cell.name}", *cell.flags]
        status = supervise(Job(command, 1, None, max_restarts=0, grace=60))
        if status:
            print(f"[{cell.name}] ended with status {status}; the same command goes on from there", file=sys.stderr)
            return status
        spent += cell.spent
    return 0


def _done(study: Study, cell: Cell) -> bool:
    return (study.workdir / cell.name / "summary.json").exists()


def _check_measured(study: Study, cell: Cell) -> None:
    """ConfigError where a run that is done was measured otherwise than the others are to be."""
    if not _done(study, cell):
        return
    there, here = (dataclasses.asdict(config.eval)
                   for config in (read_config(study.workdir / cell.name / "config.json"), cell.config))
    for name in ("draws", "final_rows"):
        if there[name] != here[name]:
            raise ConfigError(f"{study.workdir / cell.name}: was measured with eval.{name}={there[name]}, not "
                              f"{here[name]}; runs of a study are measured alike: set --config.eval.{name}="
                              f"{there[name]}, or choose another --workdir")


def report(study: Study) -> None:
    """Fits, prints, and writes scaling.md, scaling.json and scaling.png of the runs that are done."""
    runs = [_read(study, cell) for cell in study.cells if _done(study, cell)]
    print(f"\n{len(runs)} of {len(study.cells)} runs are done")
    families = [scaling.fit(name, [run for run in runs if run.family == name])
                for name in dict.fromkeys(cell.family for cell in study.cells)]
    families = [family for family in families if family.parabolas]
    if not families:
        print("note     a parabola needs three sizes at one budget; there is nothing to fit yet")
        return
    found = scaling.estimates(families)
    text = scaling_report.table(families, found)
    print(text)
    (study.workdir / "scaling.md").write_text(text + "\n", encoding="utf-8")
    numbers = {name: {"value": e.value, "low": e.low, "high": e.high, "valid": e.valid} for name, e in found.items()}
    (study.workdir / "scaling.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    scaling_report.draw(families, study.workdir / "scaling.png")
    print(f"written to {study.workdir}: scaling.md, scaling.json, scaling.png", flush=True)


def _read(study: Study, cell: Cell) -> scaling.Run:
    held_out = json.loads((study.workdir / cell.name / "summary.json").read_text(encoding="utf-8"))["held_out"]
    return scaling.Run(cell.family, cell.flops, cell.parameters, held_out["nats_per_token"], held_out["nats_stderr"],
                       cell.tokens)
