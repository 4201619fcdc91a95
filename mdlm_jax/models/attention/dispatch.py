"""``attend`` by backend name. All backends compute the same function; tests compare them, gradients included."""

import jax

from mdlm_jax.models.attention import xla
from mdlm_jax.models.attention.visibility import Visibility


def attend(backend: str, query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v with grouped key/value heads.

    Args:
      backend: xla | cudnn | splash.
      query: [B, Lq, N, H].
      key, value: [B, Lk, K, H], K divides N.
    Returns:
      [B, Lq, N, H] in the dtype of ``query``. What a query gets that sees nothing is finite and meaningless.
    Raises:
      ValueError: a backend that cannot run here, or cannot honour the visibility; it names the remedy.
    """
    if backend == "xla":
        return xla.attend(query, key, value, visibility.mask(query.shape[0], query.shape[1], key.shape[1]))
    if backend == "cudnn":
        from mdlm_jax.models.attention import cudnn

        return cudnn.attend(query, key, value, visibility)
    if backend == "splash":
        from mdlm_jax.models.attention import splash

        return splash.attend(query, key, value, visibility)
    raise ValueError(f"backend={backend!r}: choose one of xla, cudnn, splash")
