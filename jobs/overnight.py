"""The nightly job from one TOML file (settings.NightlySettings): what `her2batch overnight` does, for a cluster to be given.

    ray job submit --submission-id night-$(date +%F) --working-dir jobs -- python overnight.py /etc/her2batch/night.toml

Runtime environment: her2batch installed on every node. Resources: this driver needs a CPU for moments at a time; its
workers, one CPU each, are asked for as [resources] in the file says. The same command again goes on.
"""

import sys
from pathlib import Path

from her2batch.cli.app import guarded
from her2batch.cli.commands.slides import overnight

if __name__ == "__main__":
    guarded(lambda: overnight(settings=Path(sys.argv[1])))
