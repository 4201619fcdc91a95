"""Public peaks of TPU generations, and of GPUs in nodes of eight.

TPU: the pages of Google Cloud, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}: bf16 compute, HBM capacity
and bandwidth, bidirectional interchip bandwidth (ICI) and data-center bandwidth (DCN), each of one chip. v5e gives
6.4 Tbit/s for a pod of 256; v4's DCN is not on its page and is taken to be v5e's.

GPU: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and DGX B200: dense bf16 (half of "with sparsity"), HBM,
NVLink of both directions as ``ici``; and one adapter a GPU of DGX A100 (200 Gbit/s), DGX H100/H200 and DGX B200
(400 Gbit/s) as ``dcn``.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: bf16, a second; hbm: bytes; hbm_bandwidth, ici, dcn: bytes a second; torus axes (GPU: 1); XLA devices."""

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici: float
    dcn: float
    axes: int
    devices: int = 1

    @property
    def ring(self) -> float:
        """Bytes a second that a device sends around a ring along one axis of the torus, both ways together."""
        return self.ici / 2 / self.axes / self.devices


_GIB, _GBIT = 2**30, 1e9 / 8
CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1228e9, 600e9, 25 * _GBIT, 3),
    "v5e": Chip(197e12, 16 * _GIB, 819e9, 400e9, 25 * _GBIT, 2),
    "v5p": Chip(459e12, 95 * _GIB, 2765e9, 1200e9, 50 * _GBIT, 3),
    "v6e": Chip(918e12, 32 * _GIB, 1638e9, 800e9, 100 * _GBIT, 2),
    "tpu7x": Chip(2307e12, 192 * _GIB, 7380e9, 1200e9, 100 * _GBIT, 3, devices=2),
}
GPUS = {
    "a100": Chip(312e12, 80e9, 2039e9, 600e9, 200 * _GBIT, 1),
    "h100": Chip(989e12, 80e9, 3350e9, 900e9, 400 * _GBIT, 1),
    "h200": Chip(989e12, 141e9, 4800e9, 900e9, 400 * _GBIT, 1),
    "b200": Chip(2250e12, 180e9, 8000e9, 1800e9, 400 * _GBIT, 1),
}
ALL = CHIPS | GPUS


def backend_there(topology: str, backend: str) -> str:
    """The attention backend to take on ``topology`` in place of one that does not run there."""
    wrong, right = ("splash", "cudnn") if topology.partition(":")[0] in GPUS else ("cudnn", "splash")
    return right if backend == wrong else backend
