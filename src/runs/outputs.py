"""What a run left, file by file, and whether it is still that."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from src.files import digest_file, digest_text, is_leftover

_LOCK = ".lock"  # and what processes leave beside it that were killed while they asked for it
# What other runs read of a run. Checkpoints, figures and logs may be removed to save space.
_RESULTS = (
    "export/*",
    "latents/all/**/*",
    "analysis/*",
    "analysis/patch_scores/*",
    "fitted_on*",
    "results.json",
)


@dataclass(frozen=True)
class Output:
    """A file that a run left: its path below the directory, size, time of change (ns), and digest of a result."""

    path: str
    bytes: int
    time: int
    digest: str


def describe_outputs(folder: Path, leave_out: Collection[Path] = ()) -> list[Output]:
    """Describes every file below a run directory, runs inside it left out; digests those that other runs may read."""
    results = {path for pattern in _RESULTS for path in folder.glob(pattern)}
    nested = {path.parent for path in folder.glob("*/manifest.json")}
    outputs = []
    for path in sorted(folder.rglob("*")):
        is_ours = path.is_file() and path not in leave_out and not is_leftover(path)
        if is_ours and nested.isdisjoint(path.parents) and not path.name.startswith(f"{_LOCK}."):
            status = path.stat()
            digest = digest_file(path) if path in results else ""
            outputs.append(Output(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns, digest))
    return outputs


def digest_outputs(outputs: Iterable[Output]) -> str:
    """Returns the digest of a run's results: that of equal results is equal, whenever they were made."""
    return digest_text("\n".join(f"{output.path} {output.digest}" for output in outputs if output.digest))


def changed_outputs(folder: Path, outputs: Iterable[Output]) -> list[str]:
    """Returns in words which of the results that a finished run left are gone, or hold something else now."""
    changes = []
    for output in outputs:
        path = folder / output.path
        if not output.digest:
            continue
        if not path.is_file():
            changes.append(f"its {output.path} is gone")
            continue
        status = path.stat()
        is_touched = (status.st_size, status.st_mtime_ns) != (output.bytes, output.time)
        if is_touched and digest_file(path) != output.digest:
            changes.append(f"its {output.path} was changed after it had ended")
    return changes
