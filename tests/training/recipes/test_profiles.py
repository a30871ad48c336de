"""Profiles: what they give each method, and what they give the whole run."""

import pytest

from her2batch.models.nets import NETWORKS
from her2batch.settings import ImageSettings, MilSettings, Training
from her2batch.tasks import IMAGE_METHODS
from her2batch.training.methods import method_settings
from her2batch.training.recipes.profiles import profile_settings, with_run_defaults

LAPTOP = Training(profile="laptop")


@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_on_a_laptop_the_papers_networks_are_the_smallest_of_their_families(method: str) -> None:
    settings = method_settings(method, "image", LAPTOP)
    assert isinstance(settings, ImageSettings)
    assert (settings.size, settings.pretrained) == ("tiny", "none")
    assert NETWORKS[method].tiny


def test_on_a_laptop_efficientnet_is_whole_and_from_imagenet() -> None:
    settings = method_settings("efficientnet-lite0", "image", LAPTOP)
    assert isinstance(settings, ImageSettings)
    assert (settings.size, settings.pretrained) == ("full", "imagenet")


def test_options_override_a_profile() -> None:
    settings = method_settings("clam-sb", "mil", Training(profile="laptop", options=("epochs=200",)))
    assert isinstance(settings, MilSettings)
    assert settings.epochs == 200


def test_without_a_profile_the_settings_are_the_papers() -> None:
    assert profile_settings(None, "resnet50", "image") == {}
    assert profile_settings("small-cohort", "clam-sb", "mil") == {}
    assert profile_settings("laptop", "svm", "counts") == {}


def test_a_profile_limits_patches_unless_the_user_does() -> None:
    assert with_run_defaults(Training()) == Training()
    laptop = with_run_defaults(LAPTOP)
    assert (laptop.patches_per_slide, laptop.low_overlap) == (12, 4)
    assert with_run_defaults(laptop) == laptop
    assert with_run_defaults(Training(profile="laptop", patches_per_slide=3)).patches_per_slide == 3
    assert with_run_defaults(Training(quick=True)).patches_per_slide == 24
