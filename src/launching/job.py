"""What a SLURM job does: one command in its own process, and the same again when SLURM has interrupted it."""

import os
import runpy
import signal
import sys
from collections.abc import Sequence

from submitit.helpers import DelayedSubmission


class StartRun:
    """Runs `python -m src.run <arguments>` inside a job of submitit.

    submitit asks for `checkpoint` on SIGUSR2, which SLURM sends before a job's time ends and, where the site has set
    it so, at preemption; it then puts the job back into the queue. The run saves nothing at that moment: it resumes
    from its last checkpoint. Other ends (scancel, preemption that requeues by itself, a node that fails) need nothing
    of submitit: SLURM starts the same command again.
    """

    def __call__(self, arguments: Sequence[str]) -> None:
        """Runs the command; ends the process with its exit code when that is not 0."""
        # submitit ignores SIGTERM; the run then ends in order, as anywhere else.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = ["src.run", *arguments]
        runpy.run_module("src.run", run_name="__main__", alter_sys=True)

    def checkpoint(self, arguments: Sequence[str]) -> DelayedSubmission | None:
        """Returns what the job does when it starts again; nothing in processes that were forked from it."""
        if os.environ.get("SLURM_TASK_PID", str(os.getpid())) != str(os.getpid()):
            return None
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the requeue sends while the run notes its end
        return DelayedSubmission(self, arguments)
