"""Groups of images that must not be in different splits, such as the frames of one video."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headstart.params import GroupBy

PIXEL_SIDE = 16  # pixels: the side of the gray images by which near-duplicates are found
MIN_CORRELATION = 0.95  # of the gray images of near-duplicates
MIN_CONTRAST = 1.0  # standard deviation of gray values, of 255; a small gray image with less is blank
BLOCK = 1_000  # images that are compared with all others at once


def group_images(images: np.ndarray, paths: Sequence[Path], group_by: GroupBy) -> np.ndarray:
    """Return a group number for each image, int64 [N].

    Args:
        images: uint8 [N, 3, height, width]; only near-duplicates use them.
        paths: of the files, relative to the folder of their class.
        group_by: "folder" for files in the same subfolder of a class folder; "prefix" for files whose names differ only
            in the final number; "near-duplicates" for images that look alike. Equal names in different classes are one
            group.
    """
    if group_by == "near-duplicates":
        return _group_similar(images)
    keys = [str(path.parent) if group_by == "folder" else prefix(path) for path in paths]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def prefix(path: Path) -> str:
    """Return the name of a file without the number at its end: ``cat`` for ``cat-012.jpg``.

    A name that is only a number is returned as it is.
    """
    stem = os.fsencode(path.stem).decode(errors="replace")
    return re.sub(r"[-_. ()]*\d+\)?$", "", stem) or stem


def _group_similar(images: np.ndarray) -> np.ndarray:
    """Group images whose small gray images are correlated, directly or through others."""
    rows = gray_pixels(images)
    groups = np.arange(len(rows))
    for start in range(0, len(rows), BLOCK):
        first, second = np.nonzero(rows[start : start + BLOCK] @ rows.T >= MIN_CORRELATION)
        representatives = np.unique(groups, return_index=True)[1][groups]
        groups = group_pairs(len(rows), [*(first + start), *range(len(rows))], [*second, *representatives])
    return groups


def gray_pixels(images: np.ndarray) -> np.ndarray:
    """Return small gray images as rows with unit norm, float64 [N, pixels].

    The dot product of two rows is the correlation of the images, after each image is standardized and the mean image is
    subtracted. Blank images have zero rows.

    Args:
        images: uint8 [N, height, width] or [N, 3, height, width].
    """
    import torch  # imports slowly, and Fashion-MNIST has no groups
    import torch.nn.functional as F

    batches = torch.from_numpy(images if images.ndim == 4 else images[:, None]).split(BLOCK)
    small = [F.adaptive_avg_pool2d(batch.double().mean(1, keepdim=True), PIXEL_SIDE).flatten(1) for batch in batches]
    rows = torch.cat(small).numpy()
    rows = rows - rows.mean(1, keepdims=True)
    is_blank = rows.std(1) < MIN_CONTRAST  # what remains of a blank image would be the mean image
    rows = normalize(rows)
    rows = normalize(rows - rows[~is_blank].mean(0)) if not is_blank.all() else rows
    return np.where(is_blank[:, None], 0, rows)


def normalize(rows: np.ndarray) -> np.ndarray:
    """Scale rows to unit norm; zero rows are unchanged."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def group_pairs(n: int, first: Sequence[int], second: Sequence[int]) -> np.ndarray:
    """Return a group number for each of ``n`` images, int64 [n], so that images of a pair have the same number.

    Args:
        first: of each pair.
        second: of each pair.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)
