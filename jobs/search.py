"""Hyperparameter search from one TOML file (settings.TuneJob), as `her2batch tune` does it; submitted to a cluster.

    ray job submit --submission-id search-1 --working-dir jobs -- python search.py /data/search.toml

Runtime environment: her2batch installed on every node, cohort and run on a shared disk. Resources: every trial uses
one CPU and the share of a GPU in resources.unit_gpus. The same command again resumes.
"""

import sys
from pathlib import Path

from her2batch.cli.app import guarded
from her2batch.cli.console_training import print_tuning_summary, unit_progress
from her2batch.experiments.train import training_request
from her2batch.experiments.tune import tune
from her2batch.job_settings import TuneJob, read_settings
from her2batch.task_files import training_with_tasks


def run(path: Path) -> int:
    """Run the search of a settings file; return the exit code."""
    job = read_settings(path, TuneJob)
    training = training_with_tasks(job.training, job.tasks)
    with unit_progress(quiet=False) as report:
        summary = tune(training_request(job), training, job.samples, job.outer, job.resources, report)
    print_tuning_summary(summary)
    return summary.exit_code


if __name__ == "__main__":
    guarded(lambda: run(Path(sys.argv[1])))
