"""Opens items of a reader for tests."""

import numpy as np


def look(reader, item_id):
    """Returns what the header and the coords of an item say."""
    return reader.open(item_id)


def read(reader, item_id):
    """Returns the rows of an item [n_rows, d_in] float32."""
    return np.concatenate(list(reader.open(item_id).pieces())).astype(np.float32, copy=False)
