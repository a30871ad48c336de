"""Nightly run from one TOML file (job_settings.NightlySettings), like `her2batch overnight`; submitted to a cluster.

    ray job submit --submission-id night-$(date +%F) --working-dir jobs -- python overnight.py /etc/her2batch/night.toml

Runtime environment: her2batch installed on every node. Resources: the driver hardly needs a CPU; its workers need one
CPU each, as set in [resources] of the file. The same command again resumes.
"""

import sys
from pathlib import Path

from her2batch.cli.app import guarded
from her2batch.cli.commands.slides import overnight

if __name__ == "__main__":
    guarded(lambda: overnight(settings=Path(sys.argv[1])))
