"""The mesh of a run, as text. Axes and what they split: `models.sharding`."""

from mdlm_jax.errors import require

MESH_AXES = ("replica", "fsdp", "expert", "context", "tensor")
BATCH_AXES = ("replica", "fsdp", "expert")  # those that split the rows of a batch


def parse_mesh(spec: str) -> dict[str, int]:
    """``"fsdp:-1,tensor:2"`` as a size for each of `MESH_AXES`; one -1 takes the devices left over.

    Examples:
      >>> parse_mesh("fsdp:-1,tensor:2")
      {'replica': 1, 'fsdp': -1, 'expert': 1, 'context': 1, 'tensor': 2}
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in spec.split(","):
        axis, _, size = part.partition(":")
        require(axis in MESH_AXES, "train.mesh", spec, f"axes are {', '.join(MESH_AXES)}, as in 'fsdp:-1,tensor:2'")
        require(size.lstrip("-").isdigit() and (int(size) > 0 or int(size) == -1), "train.mesh", spec,
                 "sizes must be positive integers, or -1 for the devices left over")
        sizes[axis] = int(size)
    require(list(sizes.values()).count(-1) <= 1, "train.mesh", spec, "gives the devices left over to several axes; "
                                                                     "let one be -1")
    return sizes
