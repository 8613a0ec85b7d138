"""A log file that a full disk ends with one line, not with a stack for every record."""

import logging
import sys

_LOGGER = logging.getLogger(__name__)


class LogFile(logging.FileHandler):
    """A FileHandler that stops, and says so once, when its file cannot be written."""

    _stopped = False

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, as long as the file takes any."""
        if not self._stopped:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Stops at an error of the disk; other errors are bugs of the caller and print as logging prints them."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._stopped = True
        _LOGGER.warning("Could not write %s: %s; it ends here.", self.baseFilename, error.strerror or error)

    def close(self) -> None:
        """Closes the file; what a full disk did not take was said already."""
        try:
            super().close()
        except OSError:
            if not self._stopped:
                raise
