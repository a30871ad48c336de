"""Folds × methods × tasks from one TOML file (settings.FoldsJob): what `her2batch train` does, for a cluster.

    ray job submit --submission-id folds-1 --working-dir jobs -- python train_folds.py /data/folds.toml

Runtime environment: her2batch installed on every node, cohort and run on a shared disk. Resources: every unit (a fold
of a method) holds a CPU, and as much of a GPU as resources.unit_gpus says. The same command again resumes.
"""

import sys
from pathlib import Path

from her2batch.cli.app import guarded
from her2batch.cli.console_training import print_training_summary, unit_progress
from her2batch.experiments.train import train, training_request
from her2batch.settings import TrainJob, read_settings


def run(path: Path) -> int:
    """One run, as the file says."""
    job = read_settings(path, TrainJob)
    with unit_progress(quiet=False) as report:
        found = train(training_request(job), job.training, job.resources, report)
    print_training_summary(found)
    return found.exit_code


if __name__ == "__main__":
    guarded(lambda: run(Path(sys.argv[1])))
