"""The work of launch.plan: by arithmetic, by the compiler, or both; text, JSON and a picture."""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from mdlm_jax.config import RunConfig
from mdlm_jax.planning import budget, estimate, remedies, search, search_report
from mdlm_jax.planning.decoding import Blocks, Decoding
from mdlm_jax.planning.topologies import Topology

# Read by libtpu when it loads. The pair of accelerator type and hostnames keeps it from asking a metadata server.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at a time
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What was asked for, checked.

    Attributes:
      sizes: of the mesh; not used by a search.
      compiled: meshes to compile, 0: arithmetic alone.
      tokens: of the budget; None: the config's own.
      note: said before a plan of one mesh; "": nothing.
    """

    config: RunConfig
    topology: Topology
    sizes: dict[str, int]
    decoding: Decoding | None
    search: bool
    compiled: int
    tokens: float | None
    efficiency: float
    json: str | None
    picture: str | None
    note: str = ""


def run(task: Task) -> bool:
    """Prints the plan and writes its files; says whether it fits."""
    if task.decoding:
        os.environ.update(ENVIRONMENT)
        from mdlm_jax.planning import measure

        return _end(task, _shown(measure.decoding_plan(task.config, task.topology, task.sizes, task.decoding)))
    if task.search:
        return _search(task)
    if task.note:
        print(f"note       {task.note}", flush=True)
    if task.compiled:
        return _end(task, _compiled(task, task.config, task.sizes))
    found = estimate.estimate(task.config, task.topology, task.sizes)
    print(search_report.estimate_text(found), end="", flush=True)
    return _end(task, _with_budget(task, found))


def run_caches(config: RunConfig, blocks: Blocks, caches: tuple[str, ...], json_file: str | None) -> None:
    """Prints what a generated token costs with each cache, and writes it down."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from mdlm_jax.planning import block_decoding, report
    from mdlm_jax.planning.step import network_of

    network, plans = network_of(config), []
    print(report.blocks_text(blocks), end="", flush=True)
    for cache in caches:
        print(f"compiling  the forwards with cache={cache} ...", file=sys.stderr, flush=True)
        plans.append(block_decoding.plan(network, blocks, cache))
        print(report.cache_text(plans[-1]), end="", flush=True)
    if json_file:
        found = {"blocks": dataclasses.asdict(blocks), "caches": plans}
        Path(json_file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _search(task: Task) -> bool:
    begin = time.monotonic()
    ranked = search.search(task.config, task.topology)
    print(search_report.text(ranked, time.monotonic() - begin), end="", flush=True)
    best = ranked[0]
    if not best["fits"]:
        print(search_report.misfit_text(best, remedies.remedies(task.config, task.topology)), end="", flush=True)
        if not task.compiled:  # the compiler may still find room
            return _end(task, best, {"search": ranked, "compiled": []})
    elif not task.compiled:
        best = _with_budget(task, best)
    plans = []
    for one in ranked[: task.compiled]:
        print(flush=True)
        plans.append(_compiled(task, *search.changed(task.config, one)))
        print(search_report.predicted_text(one, plans[-1]), end="", flush=True)
    if len(plans) > 1:
        print("\n" + search_report.compiled_text(plans), end="", flush=True)
    return _end(task, search.best(plans) if plans else best, {"search": ranked, "compiled": plans})


def _compiled(task: Task, config: RunConfig, sizes: dict[str, int]) -> dict:
    os.environ.update(ENVIRONMENT)
    from mdlm_jax.planning import measure

    return _with_budget(task, _shown(measure.plan(config, task.topology, sizes)))


def _shown(plan: dict) -> dict:
    from mdlm_jax.planning import report

    print(report.text(plan), end="", flush=True)
    return plan


def _with_budget(task: Task, plan: dict) -> dict:
    if "bound" not in plan:
        return plan
    found = budget.budget(task.config, task.topology, plan["bound"]["step"], task.tokens, task.efficiency)
    print(search_report.budget_text(found), end="", flush=True)
    return plan | {"budget": found}


def _end(task: Task, plan: dict, more: dict | None = None) -> bool:
    """Writes the files; JSON holds ``plan``, of a search with ``search`` and ``compiled`` beside it."""
    if task.json:
        Path(task.json).write_text(json.dumps(plan | (more or {}), indent=1) + "\n", encoding="utf-8")
    if task.picture and "bound" in plan:
        from mdlm_jax.planning import picture

        picture.plan_png(plan, task.picture)
        print(f"picture    {task.picture}")
    elif task.picture:
        print("picture    none: what does not fit has no numbers to draw")
    return plan["fits"]
