"""What a user can mend, told in a sentence and without a stack."""

import errno

# Of a folder for runs: read-only, or a file in its place.
_NO_PLACE = (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)


def describe_mistake(error: BaseException) -> str:
    """Returns the sentence that a user is shown for an error of the kinds that a user can mend."""
    if isinstance(error, OSError) and error.errno in _NO_PLACE and error.filename is not None:
        return f"Expected to be able to write {error.filename}, got: {error.strerror}. Give e.g. paths.runs=<folder>."
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return error.strerror  # ours, without a number in front
    return str(error)
