"""A family's table, and the table bound to one configuration: which tensor of the files fills which part of a leaf."""

import dataclasses
import itertools
from collections.abc import Callable

from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf.layout import Layout
from mdlm_jax.models.shapes import shapes, stacks


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
      name: the tensor's name, with ``{layer}`` and ``{expert}`` where there is one tensor for each.
      path: our leaf; ``*`` stands for each stack of layers (``layers``, ``dense_layers``).
      pattern: see `layout`.
      sections, section: what shares the axis P, in letters (``"N K K"``), and which of them is this leaf.
    """

    name: str
    path: str
    pattern: str
    sections: str = ""
    section: int = 0


def fused(name: str, pattern: str, parts: dict[str, str]) -> list[Rule]:
    """The rules of a tensor that holds several leaves side by side: ``{path: letter of its share of P}``."""
    sections = " ".join(parts.values())
    return [Rule(name, path, pattern, sections, i) for i, path in enumerate(parts)]


@dataclasses.dataclass(frozen=True)
class Description:
    """What a ``config.json`` says: the network, and what stands beside it.

    Attributes:
      config: the network.
      family: name of the `Family` that read it.
      mask_id: the mask token, or None where the files do not say (autoregressive models have none).
      bos_id, eos_id, pad_id: or None.
      max_length: positions the model was made for; 0: not said.
      dtype: of the stored weights as the file says it; "" not said.
      delete_id, insert_id: columns of the head that say delete and insert, of networks that edit; or None.
    """

    config: TransformerConfig
    family: str
    mask_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    max_length: int = 0
    dtype: str = ""
    delete_id: int | None = None
    insert_id: int | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    Attributes:
      name: as in ``--family``.
      matches: whether a ``config.json`` is of this family.
      read: ``config.json`` -> `Description`; ConfigError names a field that asks for what we do not compute.
      write: the way back. `families.write_fields` checks that reading it gives the same network.
      tables: the tables for a network, one for each layout of the files in use; the first is the one we write.
      harmless: regular expressions of tensors that may be there and are not read.
      experts: whether its networks have any.
    """

    name: str
    matches: Callable[[dict], bool]
    read: Callable[[dict], Description]
    write: Callable[[Description], dict]
    tables: Callable[[TransformerConfig], list[list[Rule]]]
    harmless: tuple[str, ...] = ()
    experts: bool = False


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of ours and the tensors it is made of.

    Attributes:
      path, shape: of the leaf.
      stacked: leading axes that are no part of ``layout``: layers, or layers and experts.
      layout: of each tensor.
      name: of each tensor, with placeholders; ``first`` is the layer of index 0.
    """

    path: str
    shape: tuple[int, ...]
    stacked: int
    layout: Layout
    name: str
    first: int

    def tensor(self, index: tuple[int, ...]) -> str:
        """Name of the tensor at an index of the stacked axes."""
        layer, expert = (*index, None, None)[:2]
        return self.name.format(layer=None if layer is None else layer + self.first, expert=expert)

    def indices(self):
        """Every index of the stacked axes, in order."""
        return itertools.product(*(range(size) for size in self.shape[: self.stacked]))


def bind(config: TransformerConfig, table: list[Rule]) -> dict[str, Leaf]:
    """The leaves of a network by path, complete.

    Raises:
      ValueError: the table leaves a leaf out, names one that is not there, or gives it another shape: a fault of the
        table, which the tests find.
    """
    wanted, found = shapes(config), {}
    firsts = {name: first for name, _, first, _ in stacks(config)}
    for rule in table:
        for stack in [name for name in firsts if "*" in rule.path] or [""]:
            path = rule.path.replace("*", stack)
            if path not in wanted and "*" in rule.path:
                continue  # dense layers have no experts, and the other way round
            found[path] = _leaf(config, rule, path, wanted.get(path), firsts.get(path.split("/")[0], 0))
    if found.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        raise ValueError(f"table: must have rules for {missing}, and none for {extra}, which this network lacks")
    return {path: found[path] for path in wanted}


def _leaf(config: TransformerConfig, rule: Rule, path: str, shape, first: int) -> Leaf:
    stacked = ("{layer}" in rule.name) + ("{expert}" in rule.name)
    sizes = letters(config, path)
    sections = tuple(sizes[letter] for letter in rule.sections.split())
    layout = Layout(rule.pattern, tuple(sizes.items()), sections, rule.section)
    if shape is not None and shape[stacked:] != layout.leaf_shape:
        raise ValueError(f"table: {rule.name} gives {path} the shape {layout.leaf_shape}; it must be {shape[stacked:]}")
    return Leaf(path, shape or (), stacked, layout, rule.name, first)


def letters(config: TransformerConfig, path: str) -> dict[str, int]:
    """Sizes by letter: the README's alphabet; F is the width of this branch, G = N / K, W the head's columns."""
    c = config
    width = c.d_ff
    if "/moe/" in path and c.moe is not None:
        width = c.moe.shared_d_ff if "shared" in path else c.moe.d_ff
    return {
        "V": c.vocab_size, "W": c.head_size, "D": c.d_model, "F": width, "N": c.heads, "K": c.kv_heads,
        "H": c.head_dim, "G": c.heads // c.kv_heads, "X": c.moe.experts if c.moe else 0, "L": c.learned_positions,
        "C": c.condition_dim, "B": c.condition_dim, "T": c.time_features, "S": 6, "E": 2, "U": 1,
    }


def tensor_shapes(leaves: dict[str, Leaf]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a binding reads."""
    return {leaf.tensor(index): leaf.layout.file_shape for leaf in leaves.values() for index in leaf.indices()}


def differences(left: TransformerConfig, right: TransformerConfig) -> list[str]:
    """The fields in which two networks differ, each with both values."""
    return [
        f"{f.name} would be {getattr(left, f.name)!r} and not {getattr(right, f.name)!r}"
        for f in dataclasses.fields(TransformerConfig) if getattr(left, f.name) != getattr(right, f.name)
    ]
