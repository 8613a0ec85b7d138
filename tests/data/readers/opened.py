"""Opens items of a reader for tests."""


def look(reader, item_id):
    """Returns what the header and the coords of an item say; its rows cannot be read."""
    with reader.open(item_id) as item:
        return item


def read(reader, item_id):
    """Returns the rows of an item [n_rows, d_in] float32."""
    with reader.open(item_id) as item:
        return item.read()
