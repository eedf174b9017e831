"""Cut images into squares of a model's size, and join them again."""

from __future__ import annotations

from torch import Tensor


def cut(x: Tensor, size: int) -> Tensor:
    """Return the squares of images, row by row.

    Shapes:
        x: `(batch, channels, height, width)`, multiples of `size`. Result: `(squares, channels, size, size)`.
    """
    squares = x.unfold(2, size, size).unfold(3, size, size)  # batch, channels, rows, columns, size, size
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()


def join(squares: Tensor, rows: int, columns: int) -> Tensor:
    """Invert `cut`, given the rows and columns of squares in an image."""
    images = squares.unflatten(0, (-1, rows, columns))  # batch, rows, columns, channels, size, size
    return images.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
