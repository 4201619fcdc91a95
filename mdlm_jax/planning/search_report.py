"""What arithmetic says, and what a budget of tokens takes, as text."""

from mdlm_jax.planning.chips import GPUS, backend_there
from mdlm_jax.planning.search import best

_GIB = 2**30
_NAMES = ("replica", "fsdp", "expert", "context", "tensor")
_HEADING = (f"{'mesh':<40}{'micro':>6}{'GiB':>8}{'compute':>9}{'memory':>8}{'ICI':>8}{'DCN':>8}{'bound s':>9}"
            f"{'MFU':>6}")


def text(found: list[dict], seconds: float, rows: int = 10) -> str:
    """The best ``rows`` of a search as a table, and the flags of the first."""
    fitting, first = sum(one["fits"] for one in found), found[0]
    lines = [
        f"searched   {len(found)} meshes in {1000 * seconds:.0f} ms by arithmetic, nothing compiled: {fitting} fit",
        f"           {_place(first)}, {first['rows']} rows of {first['length']}, remat {first['remat']}; a device has "
        f"{first['available'] / _GIB:.2f} GiB to use",
        _HEADING,
        *(_row(one) for one in found[:rows]),
        *_legend(first, "ICI"),
        *([_flags(first)] if fitting else []),
    ]
    return "\n".join(lines) + "\n"


def misfit_text(first: dict, remedies: list[tuple[str, dict]]) -> str:
    """Where nothing fits: by how much the ``first`` of a search misses, and what `remedies.remedies` found."""
    peak, room = first["memory"]["peak"], first["available"]
    lines = [f"misfit     nothing fits: the best, {_mesh(first, ':', ',')} in {first['microbatches']} microbatch(es), "
             f"needs {peak / _GIB:.2f} GiB of {room / _GIB:.2f}, {(peak - room) / _GIB:.2f} too many"]
    for number, (words, found) in enumerate(remedies):
        lines.append(f"{'' if number else 'might fit':<11}{words}: {found['memory']['peak'] / _GIB:.2f} GiB, "
                     f"{_mesh(found, ':', ',')} in {found['microbatches']} microbatch(es)")
    if not remedies:
        lines.append("           nor with model.remat=full, fewer rows or more devices; lower data.length, or choose a "
                     "smaller network or a chip with more memory")
    return "\n".join(lines) + "\n"


def compiled_text(plans: list[dict]) -> str:
    """Compiled meshes beside each other, in the order they were found in, and the flags of the best."""
    chosen = best(plans)
    verdict = "" if chosen["fits"] else "; none fits, this one needs the least"
    return "\n".join([
        f"compiled   {len(plans)} meshes",
        _HEADING,
        *(_row(plan) for plan in plans),
        _flags(chosen) + verdict,
    ]) + "\n"


def estimate_text(found: dict) -> str:
    """One mesh by arithmetic."""
    memory, bound = {name: f"{size / _GIB:.2f}" for name, size in found["memory"].items()}, found["bound"]
    parts = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in bound["seconds"].items() if value)
    kinds = ", ".join(f"{name} {memory[name]}" for name in ("state", "batch", "gradients", "saved", "working"))
    verdict = "fits" if found["fits"] else "does not fit"
    sent = ", ".join(f"{axis} {size / 1e9:.2f}" for axis, size in found["traffic"]["wire_by_axis"].items())
    across = found["traffic"]["cross_slice"]
    return "\n".join([
        f"topology   {_place(found)}: {_mesh(found, ' ', ' x ')}",
        f"step       train on {found['rows']} rows of {found['length']} tokens in {found['microbatches']} "
        f"microbatch(es), {found['parameters']:,} parameters, remat {found['remat']}; by arithmetic, nothing compiled",
        *(f"note       {note}" for note in found["notes"]),
        *_legend(found, "interconnect"),
        f"memory     {memory['peak']} GiB of {found['available'] / _GIB:.2f}: {kinds}; {verdict}",
        f"travels    GB a device at least: {sent or 'nothing'}"
        + (f"; to other slices {across / 1e9:.3f}" if across else ""),
        f"bound      {bound['step']:.3f} s a step by {bound['slowest'].replace('_', ' ')} at public peaks (seconds "
        f"alone: {parts}); model FLOPs at most {100 * bound['mfu']:.0f}% of peak",
    ]) + "\n"


def budget_text(budget: dict) -> str:
    """Tokens a day and the time to the budget, at the bound and at the stated efficiency."""
    lines = [f"budget     {_amount(budget['tokens'])} tokens on {budget['chips']} chips: train.steps={budget['steps']}"]
    for name, share in (("at_bound", 1.0), ("at_efficiency", budget["efficiency"])):
        one = budget[name]
        lines.append(f"           at {100 * share:3.0f}% of the bound: {one['step']:.3f} s a step, "
                     f"{_amount(one['tokens_per_day'], 3)} tokens a day, {one['days']:.1f} days, "
                     f"{one['chip_hours']:,.0f} chip-hours")
    return "\n".join(lines) + "\n"


def _amount(number: float, digits: int = 4) -> str:
    """As launch.plan reads it: 300B."""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.{digits}g}{letter}"
    return f"{number:.{digits}g}"


def predicted_text(estimated: dict, compiled: dict) -> str:
    """Memory by arithmetic beside the compiler's."""
    predicted = estimated["memory"]["peak"]
    if not compiled["fits"]:
        return f"predicted  {predicted / _GIB:.2f} GiB; compiled does not fit: {compiled['needed'] / _GIB:.2f} GiB\n"
    peak = compiled["memory"]["peak"]
    return (f"predicted  {predicted / _GIB:.2f} GiB by arithmetic, {peak / _GIB:.2f} compiled "
            f"({predicted / peak:.2f} of it)\n")


def _legend(found: dict, name: str) -> list[str]:
    """What the seconds of interconnect are on GPUs, whose nodes are no slices."""
    if found["topology"].partition(":")[0] not in GPUS:
        return []
    return [f"note       {name}: NVLink inside a node, between nodes the network's adapters; no other column has them"]


def _place(found: dict) -> str:
    slices = f"{found['slices']} x " if found["slices"] > 1 else ""
    return f"{slices}{found['topology']}, {found['devices']} devices"


def _mesh(found: dict, equals: str, between: str) -> str:
    named = (f"{axis}{equals}{found['mesh'][axis]}" for axis in _NAMES if axis in found["mesh"])
    return between.join(named) or f"fsdp{equals}1"


def _flags(one: dict) -> str:
    right = backend_there(one["topology"], one["backend"])
    more = "" if right == one["backend"] else f" --config.model.backend={right}"
    return (f"flags      --config.train.mesh={_mesh(one, ':', ',')} --config.train.microbatches={one['microbatches']}"
            f"{more}")


def _row(one: dict) -> str:
    if "bound" not in one:  # compiled, and too large
        return f"{_mesh(one, ':', ','):<40}{one['microbatches']:>6}{one['needed'] / _GIB:>8.2f}  does not fit"
    seconds, bound = one["bound"]["seconds"], one["bound"]
    verdict = f"{bound['step']:>9.3f}{100 * bound['mfu']:>5.0f}%" if one["fits"] else "  does not fit"
    return (f"{_mesh(one, ':', ','):<40}{one['microbatches']:>6}{one['memory']['peak'] / _GIB:>8.2f}"
            f"{seconds['compute']:>9.3f}{seconds['memory']:>8.3f}{seconds['interconnect']:>8.3f}"
            f"{seconds['data_center']:>8.3f}{verdict}")
