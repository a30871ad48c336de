"""Training run from one TOML file (job_settings.TrainJob), as `her2batch train` does it; submitted to a cluster.

    ray job submit --submission-id folds-1 --working-dir jobs -- python train_folds.py /data/folds.toml

Runtime environment: her2batch installed on every node, cohort and run on a shared disk. Resources: every unit (a fold
of a method) uses one CPU and the share of a GPU in resources.unit_gpus. The same command again resumes.
"""

import sys
from pathlib import Path

from her2batch.cli.app import guarded
from her2batch.cli.console_training import print_training_summary, unit_progress
from her2batch.experiments.train import train, training_request
from her2batch.job_settings import TrainJob, read_settings
from her2batch.task_files import training_with_tasks


def run(path: Path) -> int:
    """Train the run of a settings file; return the exit code."""
    job = read_settings(path, TrainJob)
    training = training_with_tasks(job.training, job.tasks)
    with unit_progress(quiet=False) as report:
        summary = train(training_request(job), training, job.resources, report)
    print_training_summary(summary)
    return summary.exit_code


if __name__ == "__main__":
    guarded(lambda: run(Path(sys.argv[1])))
