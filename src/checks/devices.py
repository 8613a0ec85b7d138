"""How many devices a configuration asks for."""

from collections.abc import Sequence


def n_devices(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """Returns how many devices `trainer.accelerator` and `trainer.devices` ask for, in Lightning's forms."""
    if devices in ("auto", "-1", -1):
        import torch  # the other forms are counted without it

        return max(torch.cuda.device_count(), 1) if accelerator != "cpu" else 1
    if isinstance(devices, str) and "," in devices:
        return len([device for device in devices.split(",") if device])
    return int(devices) if isinstance(devices, int | str) else len(devices)
