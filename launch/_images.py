"""Classes on the command line, and sampled images as files."""

import io
from pathlib import Path

import numpy as np

from mdlm_jax.config import ConfigError, RunConfig
from mdlm_jax.config.data import is_images

_SIDE, _GREYS = 8, 17  # of digits, `data.images`


def asked(flags: dict, config: RunConfig | None) -> list[int] | None:
    """The classes that --label or --labels ask for, -1 for none; without them all in turn. None: there are none.

    Raises:
      ConfigError: both of them, a network without classes, one that it does not have.
    """
    names = [name for name in ("label", "labels") if name in flags]
    classes = 0 if config is None else config.model.classes
    if not names:
        return list(range(classes)) if classes and "prompts" not in flags else None
    if len(names) > 1:
        raise ConfigError("--label, --labels: give one of them")
    name, text = names[0], str(flags[names[0]])
    if not classes:
        raise ConfigError(f"--{name}={text}: the network was trained without classes; leave it out")
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= set(map(str, range(-1, classes))):
        raise ConfigError(f"--{name}={text}: classes are 0..{classes - 1}, -1 is none; as in --labels=0,1,1")
    return [int(part) for part in parts]


def check_guidance(guidance: float, config: RunConfig) -> None:
    """ConfigError where the network was never left without its class."""
    if guidance and not config.train.class_dropout:
        raise ConfigError(f"--guidance={guidance}: guides away from no class, which a run with train.class_dropout=0 "
                          "has not learnt; leave it out")


def check_output(path: Path | None, config: RunConfig | None, length: int) -> None:
    """ConfigError where the name of a file asks for images that samples of ``length`` are not."""
    source = "" if config is None else config.data.source
    if path and path.suffix == ".png" and source != "digits":
        raise ConfigError(f"--output={path}: only samples of data.source=digits are drawn; for codes write an .npz, "
                          "for a picture of the denoising give --picture")
    if path and path.suffix == ".png" and length != _SIDE**2:
        raise ConfigError(f"--length={length}: an image of digits has {_SIDE**2} pixels; leave it out")
    if path and path.suffix == ".npz" and not is_images(source):
        raise ConfigError(f"--output={path}: arrays are written of images only; choose another ending")


def write_run(workdir: Path, source: str, tokens: np.ndarray, labels: np.ndarray, title: str) -> Path:
    """samples.png of digits, samples.npz of codes."""
    path = workdir / ("samples.png" if source == "digits" else "samples.npz")
    write(path, tokens, labels, title)
    return path


def write(path: Path, tokens: np.ndarray, labels: np.ndarray, title: str = "") -> None:
    """Images [N, L] of classes [N], -1 for none: drawn, or as the arrays that data.source=codes:PATH reads."""
    if path.suffix == ".png":
        from mdlm_jax.sampling.image_grid import images_png

        grey = np.where(tokens < _GREYS, tokens / (_GREYS - 1), np.nan)
        images_png(grey.reshape(-1, _SIDE, _SIDE), path, labels=labels, title=title)
        return
    from mdlm_jax.training.manifest import write_atomically

    file = io.BytesIO()
    np.savez(file, tokens=tokens, labels=labels)
    write_atomically(path, file.getvalue())
