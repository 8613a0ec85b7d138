import threading

import pytest
import torch

from src.inference import Inference, choose_device


def reads_of(*batches):
    return [lambda batch=batch: batch for batch in batches]


def test_results_come_in_order_without_gradients():
    weight = torch.ones(2, requires_grad=True)
    batches = torch.arange(12.0).view(6, 2).split(4)
    found = list(Inference().run(lambda rows: rows * weight, reads_of(*batches)))
    assert [tuple(rows.shape) for rows in found] == [(4, 2), (2, 2)]
    torch.testing.assert_close(torch.cat(found), torch.arange(12.0).view(6, 2))
    assert not found[0].requires_grad


def test_the_next_batch_is_read_while_the_function_runs():
    second_is_read = threading.Event()

    def read_second():
        second_is_read.set()
        return torch.zeros(1)

    def wait(rows):
        assert second_is_read.wait(10)
        return rows

    assert len(list(Inference().run(wait, [lambda: torch.zeros(1), read_second]))) == 2


def test_batches_are_halved_when_memory_runs_out_and_stay_so(caplog):
    sizes, inference = [], Inference()

    def at_most_three(rows):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.cuda.OutOfMemoryError
        return rows

    assert torch.cat(list(inference.run(at_most_three, reads_of(torch.arange(10.0))))).tolist() == list(range(10))
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert torch.cat(list(inference.run(at_most_three, reads_of(torch.arange(3.0))))).tolist() == [0, 1, 2]
    assert sizes[7:] == [2, 1]
    assert [record.message for record in caplog.records if "Out of GPU memory" in record.message] == [
        f"Out of GPU memory: going on with batches of {n} rows." for n in (5, 2)
    ]


def test_a_row_that_does_not_fit_is_an_error():
    def never(rows):
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(Inference().run(never, reads_of(torch.zeros(4))))


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_the_precision_is_the_trainers(precision, dtype):
    (found,) = Inference("cpu", precision).run(lambda rows: rows @ rows.T, reads_of(torch.ones(2, 2)))
    assert found.dtype == dtype
    assert not torch.is_autocast_enabled("cpu")


def test_batches_are_moved_to_the_device():
    (found,) = Inference("meta").run(lambda rows: rows + 1, reads_of(torch.ones(2, 2)))
    assert found.device.type == "meta"


@pytest.mark.parametrize(
    ("accelerator", "devices", "has_cuda", "expected"),
    [
        ("auto", 1, True, "cuda:0"),
        ("gpu", [2, 3], True, "cuda:2"),
        ("cuda", "auto", True, "cuda:0"),
        ("cpu", 1, True, "cpu"),
        ("auto", 1, False, "cpu"),
    ],
)
def test_the_device_is_the_trainers(monkeypatch, accelerator, devices, has_cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert str(choose_device(accelerator, devices)) == expected
