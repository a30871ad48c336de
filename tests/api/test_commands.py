"""The commands as functions of Python: their settings, and that they are those of the command line."""

import pytest

from her2batch.api.commands import _split
from her2batch.errors import InputError
from her2batch.settings import Plan, Resources, RunWindow


def test_settings_are_the_options_of_the_command() -> None:
    plan, resources, window = _split({"mpp": 0.25, "workers": 0}, Plan, Resources, RunWindow)
    assert (plan.mpp, resources.workers, window) == (0.25, 0, RunWindow())
    with pytest.raises(InputError, match="there is no setting 'magnification'"):
        _split({"magnification": 20}, Plan, Resources)
    with pytest.raises(InputError, match="mpp=99"):
        _split({"mpp": 99}, Plan)
