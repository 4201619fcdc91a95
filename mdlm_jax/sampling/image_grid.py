"""Sampled images as one PNG: a grid of them, matplotlib without its global state."""

from pathlib import Path

import numpy as np

_PIXELS = 56  # of an image on the page


def images_png(images: np.ndarray, path: str | Path, *, labels: np.ndarray | None = None, columns: int = 10,
               title: str = "") -> None:
    """Draws images row by row, ``columns`` in a row, in grey.

    Args:
      images: float [N, H, W], 0 black to 1 white; NaN, where nothing is written, is red.
      path: the .png file.
      labels: int [N]; shown above the columns where each has one label, else above each image.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number, (height, width) = len(images), images.shape[1:]
    columns, rows = min(columns, number), -(-number // columns)
    aligned = labels is None or all(labels[i] == labels[i % columns] for i in range(number))
    top = 0.32 if title else 0.06
    inches = (columns * _PIXELS / 100 + 0.1, rows * (_PIXELS / 100 + (0 if aligned else 0.16)) + top + 0.2)
    figure = Figure(figsize=inches, dpi=150)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, columns, left=0.02, right=0.98, bottom=0.02, top=1 - (top + 0.16) / inches[1],
                               wspace=0.06, hspace=0.06 if aligned else 0.36)
    colours = colormaps["gray"].with_extremes(bad="crimson")
    for i, image in enumerate(images):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        axes.imshow(image, cmap=colours, vmin=0.0, vmax=1.0, aspect=height / width)
        axes.set_axis_off()
        if labels is not None and (i < columns or not aligned):
            axes.set_title("no class" if labels[i] < 0 else str(labels[i]), fontsize=7, pad=2)
    if title:
        figure.text(0.02, 1 - 0.2 / inches[1], title, fontsize=7)
    figure.savefig(path)
