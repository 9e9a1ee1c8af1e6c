"""The position grid in numpy, for what draws without torch; embed.py has it in torch, and a test holds them equal."""

import numpy as np


def sincos_positions(rows: int, columns: int, width: int, base_size: int, scale: float) -> np.ndarray:
    """Fixed 2-D sine-cosine positions, (rows · columns, width) float32; see `pixart.model.embed.sincos_positions`."""

    def one_axis(count: int) -> np.ndarray:
        places = np.arange(count, dtype=np.float32) / np.float32(count / base_size) / np.float32(scale)
        exponents = np.arange(width // 4, dtype=np.float64) / (width / 4)
        angles = np.outer(places, 1 / 10000**exponents)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (count, width / 2)

    row = np.broadcast_to(one_axis(rows)[:, None], (rows, columns, width // 2))
    column = np.broadcast_to(one_axis(columns)[None], (rows, columns, width // 2))
    return np.concatenate([column, row], axis=-1).reshape(rows * columns, width).astype(np.float32)
