import pytest

from src.data.feeding.shared_blocks import SharedBlocks
from src.lockstep import Lockstep

SPANS = [(start, start + 4) for start in range(0, 20, 4)]


class _Stream:
    """Blocks that say where they are from, and a count of how often each was read."""

    def __init__(self):
        self.reads = []
        self.n_closed = 0

    def __call__(self, positions, spans):
        try:
            for span in spans:
                self.reads.append((positions, span))
                yield (positions, span)
        finally:
            self.n_closed += 1


def _training(shared, epochs, seen):
    def job():
        for epoch, spans in epochs:
            for block in shared.read(epoch, f"epoch {epoch}", spans):
                seen.append(block)

    return job


@pytest.mark.parametrize("n_trainings", [1, 2, 5])
def test_each_block_is_read_once(n_trainings):
    lockstep, stream = Lockstep(), _Stream()
    shared = SharedBlocks(stream, lockstep.take_turn)
    seen = [[] for _ in range(n_trainings)]
    epochs = [(0, SPANS), (1, SPANS)]
    assert lockstep.run([_training(shared, epochs, mine) for mine in seen]) == [None] * n_trainings
    expected = [(f"epoch {epoch}", span) for epoch, spans in epochs for span in spans]
    assert all(mine == expected for mine in seen)
    assert stream.reads == expected
    assert shared.n_read == len(expected)


def test_one_that_resumes_behind_the_others_reads_what_it_missed():
    lockstep, stream = Lockstep(), _Stream()
    shared = SharedBlocks(stream, lockstep.take_turn)
    ahead, behind = [], []
    lockstep.run([_training(shared, [(0, SPANS[3:])], ahead), _training(shared, [(0, SPANS)], behind)])
    assert [span for _, span in behind] == SPANS
    assert [span for _, span in ahead] == SPANS[3:]
    assert [span for _, span in stream.reads] == SPANS


def test_one_that_ends_early_leaves_the_others_running():
    lockstep, stream = Lockstep(), _Stream()
    shared = SharedBlocks(stream, lockstep.take_turn)
    short, long = [], []
    lockstep.run([_training(shared, [(0, SPANS)], short), _training(shared, [(0, SPANS), (1, SPANS)], long)])
    assert len(short) == len(SPANS)
    assert len(long) == 2 * len(SPANS)
    assert len(stream.reads) == 2 * len(SPANS)


def test_closing_ends_the_reading():
    stream = _Stream()
    shared = SharedBlocks(stream, lambda _: None)
    reading = shared.read(0, "epoch 0", SPANS)
    next(reading)
    shared.close()
    assert stream.n_closed == 1
