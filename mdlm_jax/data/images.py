"""Images as rows of codes, each with a class: scikit-learn's digits, and codes of images from files.

``digits`` is `sklearn.datasets.load_digits`, which comes with the package: 1797 images of 8 x 8 pixels with 17 grey
levels, read row by row. ``codes:PATH`` is how images of a VQ model come (LlamaGen: 16384 codes, 256 an image): an .npz
with ``tokens`` [N, L] and ``labels`` [N], a folder of such files, or a folder with tokens.npy and labels.npy.
"""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.config.data import DIGITS_LENGTH
from mdlm_jax.data.pipeline import Built, make_built, make_pipelines
from mdlm_jax.data.shuffle import permute
from mdlm_jax.data.tokenizers import CodeTokenizer, Tokenizer

GREYS = 17
_SPLIT = 0x1D16175  # the order of which the first images are held out
_PARTS = ("tokens", "labels")


@dataclasses.dataclass(frozen=True)
class Images:
    """tokens [N, L] integers in [0, codes), labels int32 [N] in [0, classes)."""

    tokens: np.ndarray
    labels: np.ndarray
    codes: int

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


def open_images(config: DataConfig) -> Images:
    """The images that ``config.source`` names.

    Raises:
      ConfigError: scikit-learn is missing; no such file, or one without the two arrays; arrays that do not belong
        together, codes beyond ``data.codes``, rows of another length than ``data.length``.
    """
    found = _digits() if config.source == "digits" else _codes(config)
    if found.tokens.shape[1] != config.length:
        raise ConfigError(f"data.length={config.length}: the images of {config.source} are rows of "
                          f"{found.tokens.shape[1]}; set it to that")
    return found


def held_out(number: int, fraction: float) -> np.ndarray:
    """bool [number]: which images are held out. The same for every run; a larger fraction holds the same ones too."""
    place = permute(np.arange(number), np.zeros(number, np.int64), number, _SPLIT)
    return place < min(number - 1, max(1, round(fraction * number)))


def build_images(config: DataConfig, batch_size: int, tokenizer: Tokenizer | None = None) -> Built:
    """`pipeline.build` for images: batches also have ``label`` int32 [b], ``info`` the number of ``classes``.

    Raises:
      ConfigError: as `open_images`; a checkpoint of other codes; fewer images than a batch.
    """
    images = open_images(config)
    own = CodeTokenizer(images.codes)
    if tokenizer is not None and not own.same_as(tokenizer):
        raise ConfigError(f"data.source={config.source!r}: has {images.codes} codes, but the tokenizer given is a "
                          f"{type(tokenizer).__name__} of {tokenizer.vocab_size} ids; use the source it was made for")
    valid = held_out(len(images.labels), config.valid_fraction)
    rows = {"train": images.tokens[~valid], "valid": images.tokens[valid]}
    labels = {"train": images.labels[~valid], "valid": images.labels[valid]}
    if len(rows["train"]) < batch_size:
        raise ConfigError(f"data.source={config.source!r}: {len(rows['train'])} training images are fewer than "
                          f"train.batch_size={batch_size}; lower it, or data.valid_fraction")
    info = {split: {"documents": len(x), "bytes": 0, "tokens": x.size, "bytes_per_token": None, "rows": len(x),
                    "dropped_tokens": 0, "classes": images.classes} for split, x in rows.items()}
    pipelines = make_pipelines(rows, config, batch_size, own, labels=labels)
    return make_built(config, pipelines, own, info, 0)


def check_images(config: DataConfig, classes: int) -> None:
    """ConfigError for what `open_images` refuses, and where a network with ``classes`` cannot be told the class of
    every image; 0: it is told none."""
    most = open_images(config).classes
    if 0 < classes < most:
        raise ConfigError(f"model.classes={classes}: the images of {config.source} have {most} classes; set it to "
                          "that, or to 0 to leave them out")


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("data.source='digits': needs scikit-learn, which brings the images along; "
                          "pip install 'mdlm_jax[images]'") from None
    found = load_digits()
    tokens = found.data.astype(np.uint16).reshape(-1, DIGITS_LENGTH)
    return Images(tokens, found.target.astype(np.int32), GREYS)


def _codes(config: DataConfig) -> Images:
    where = f"data.source={config.source!r}"
    pieces = [_checked(where, *piece) for piece in _read(where, Path(config.source.partition(":")[2]).expanduser())]
    lengths = {tokens.shape[1] for tokens, _ in pieces}
    if len(lengths) > 1:
        raise ConfigError(f"{where}: holds rows of {min(lengths)} and of {max(lengths)} codes; make them one length")
    largest = max(int(tokens.max()) for tokens, _ in pieces)
    codes = config.codes or largest + 1
    if largest >= codes:
        raise ConfigError(f"data.codes={config.codes}: {config.source} holds the code {largest}; set it to the size of "
                          "the codebook")
    dtype = np.uint16 if codes <= 1 << 16 else np.int32
    return Images(np.concatenate([tokens.astype(dtype) for tokens, _ in pieces]),
                  np.concatenate([labels.astype(np.int32) for _, labels in pieces]), codes)


def _read(where: str, path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The arrays of the file, of every .npz of the folder by name, or of its tokens.npy and labels.npy."""
    try:
        if path.is_file() and path.suffix == ".npz":
            return [_npz(where, path)]
        if path.is_dir() and (files := sorted(path.glob("*.npz"))):
            return [_npz(where, file) for file in files]
        if path.is_dir() and all((path / f"{name}.npy").is_file() for name in _PARTS):
            return [tuple(np.load(path / f"{name}.npy", allow_pickle=False) for name in _PARTS)]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{where}: cannot be read ({error}); write it again with numpy.savez") from None
    raise ConfigError(f"{where}: must be an .npz file, or a folder of them or with tokens.npy and labels.npy")


def _npz(where: str, file: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        if missing := [name for name in _PARTS if name not in arrays]:
            raise ConfigError(f"{where}: {file.name} has no array {missing[0]!r}; it holds {', '.join(arrays.files)}")
        return arrays["tokens"], arrays["labels"]


def _checked(where: str, tokens: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for name, array, axes in (("tokens", tokens, 2), ("labels", labels, 1)):
        if array.ndim != axes or not np.issubdtype(array.dtype, np.integer) or not array.size:
            raise ConfigError(f"{where}: {name} are {array.dtype}{list(array.shape)}; they must be integers "
                              f"{'[N, L]' if axes == 2 else '[N]'}")
        if array.min() < 0:
            raise ConfigError(f"{where}: {name} hold {array.min()}; they must not be negative")
    if len(tokens) != len(labels) or len(tokens) < 2:
        raise ConfigError(f"{where}: {len(tokens)} rows of tokens and {len(labels)} labels; there must be a label for "
                          "each, and two rows at least")
    return tokens, labels
