import logging

import pytest

from src.runs.log_file import LogFile


@pytest.fixture
def logger():
    logger = logging.getLogger("src.some_task")
    yield logger
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, LogFile):
            logging.getLogger().removeHandler(handler)
            handler.close()


def test_a_full_disk_ends_the_log_with_one_line(logger, caplog, capsys):
    logging.getLogger().addHandler(LogFile("/dev/full"))
    for number in range(3):
        logger.warning("line %d", number)
    assert [record.getMessage() for record in caplog.records if record.name == "src.runs.log_file"] == [
        "Could not write /dev/full: No space left on device; it ends here."
    ]
    assert "Logging error" not in capsys.readouterr().err
