"""The units of a run and the settings of its methods; what cannot be trained is refused by name."""

import pytest

from her2batch.errors import InputError
from her2batch.models.mil_registry import MIL_METHODS, Choice
from her2batch.settings import CountsSettings, ImageSettings, MilSettings, Training
from her2batch.store.training_run import FINAL_FOLD, Unit
from her2batch.tasks import COUNTS_METHODS, FUSION, NETWORK_METHODS
from her2batch.training.methods import (
    method_kind,
    method_names,
    method_settings,
    patches_per_edge,
    plan_units,
    search_space,
    units_of_cells,
)
from her2batch.training.recipes.profiles import PROFILE_SPACES


def cells(training: Training, encoders: tuple[str, ...] = ("stain",)) -> set[tuple[str, str, str]]:
    return {(unit.task, unit.method, unit.input) for unit in plan_units(training, encoders).units}


def test_units_are_tasks_times_methods_times_folds_and_a_final_one() -> None:
    training = Training(tasks=("her2-3way", "er"), methods=("clam-sb", "dtfd-afs"), folds=5)
    units = plan_units(training, ("stain",)).units
    assert len(units) == 2 * 2 * (5 + 1)
    assert {unit.fold for unit in units} == {0, 1, 2, 3, 4, FINAL_FOLD}


@pytest.mark.parametrize("method", [name for name in method_names() if name != FUSION])  # it reads the other methods
def test_every_method_has_a_default_input(method: str) -> None:
    planned = cells(Training(tasks=("her2-4way",), methods=(method,)), ("stain", "uni"))
    own = {input_name for _, name, input_name in planned if name == method}
    expected = (
        {"stain", "uni"}
        if method in MIL_METHODS
        else {"thumbnail-224"}
        if method in NETWORK_METHODS
        else {"patches-low"}
    )
    assert own == expected


def test_counts_are_planned_after_the_patch_networks_they_need() -> None:
    training = Training(methods=("svm", "majority-vote"), tasks=("her2-4way", "her2-binary"), inputs=("patches-high",))
    work = plan_units(training, ("stain",))
    assert cells(training) == {
        ("her2-4way", "convnext-small", "patches-high"), ("her2-4way", "svm", "patches-high"),
        ("her2-binary", "svm", "patches-high"), ("her2-4way", "majority-vote", "patches-high"),
    }  # fmt: skip
    kinds = [method_kind(unit.method, unit.input) for unit in work.units]
    assert kinds == sorted(kinds, key=["patch", "image", "mil", "counts"].index)
    assert len(work.of("patch")) == 11  # once for all tasks


def test_another_network_may_classify_the_patches_that_are_counted() -> None:
    training = Training(methods=("svm",), inputs=("patches-low",), patch_network="efficientnet-lite0")
    assert cells(training) == {
        ("her2-4way", "efficientnet-lite0", "patches-low"), ("her2-3way", "svm", "patches-low"),
    }  # fmt: skip


def test_any_network_of_timm_reads_thumbnails() -> None:
    assert cells(Training(methods=("timm:resnet18",))) == {("her2-3way", "timm:resnet18", "thumbnail-224")}
    assert Unit("her2-3way", "timm:resnet18", "thumbnail-224", 0).name == "her2-3way.timm-resnet18.thumbnail-224.00"
    with pytest.raises(InputError, match="reads none of the inputs patches-low"):
        plan_units(Training(methods=("timm:resnet18",), inputs=("patches-low",)), ())


def test_a_patch_network_alone_classifies_her2_patches() -> None:
    planned = cells(Training(methods=("convnext-small",), inputs=("patches-low", "thumbnail-512")))
    assert planned == {("her2-4way", "convnext-small", "patches-low"), ("her2-3way", "convnext-small", "thumbnail-512")}


@pytest.mark.parametrize(("training", "words"), [
    (Training(tasks=("her2-6way",)), "choose from her2-4way"), (Training(methods=("xgboost",)), "choose from clam-sb"),
    (Training(methods=("svm",), tasks=("er",)), "er has none"),
    (Training(methods=("resnet50",), inputs=("patches-low",)), "resnet50 reads none of the inputs patches-low"),
    (Training(options=("lr",)), "is not NAME=VALUE"), (Training(options=("rate=3",)), "names: .*lr"),
    (Training(options=("lr=-1",)), "--option lr=-1"), (Training(options=("dropout=much",)), "--option dropout=much"),
])  # fmt: skip
def test_unknown_names_and_inputs_are_refused_by_name(training: Training, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan_units(training, ("stain",))


def test_options_override_the_quick_profile_and_the_quick_profile_overrides_defaults() -> None:
    plain, quick = Training(), Training(quick=True, options=("epochs=3", "size=full"))
    assert method_settings("clam-sb", "mil", plain) == MilSettings()
    assert method_settings("dtfd-afs", "mil", plain) == MilSettings(weight_decay=1e-4)
    assert method_settings("clam-sb", "mil", quick).model_dump()["epochs"] == 3
    image = method_settings("resnet50", "image", quick)
    assert isinstance(image, ImageSettings)
    assert (image.epochs, image.size, image.pretrained) == (3, "full", "none")
    assert method_settings("svm", "counts", quick) == CountsSettings(search=False)
    assert method_settings("vit-base", "image", Training(options=("weight_decay=none",))) == ImageSettings()


def test_only_patches_of_the_low_resolution_overlap() -> None:
    training = Training(low_overlap=4)
    assert [patches_per_edge(training, f"patches-{name}") for name in ("low", "moderate", "high")] == [4, 1, 1]
    assert patches_per_edge(Training(), "patches-low") == 1


def test_a_profile_changes_image_networks_and_options_override_it() -> None:
    small = Training(profile="small-cohort", options=("epochs=5",))
    image = method_settings("efficientnet-lite0", "image", small)
    assert isinstance(image, ImageSettings)
    assert (image.epochs, image.ema > 0, image.frozen_epochs > 0, image.layer_decay < 1) == (5, True, True, True)
    assert method_settings("convnext-small", "patch", small) == image
    assert method_settings("clam-sb", "mil", Training(profile="small-cohort")) == MilSettings()
    assert method_settings("resnet50", "image", Training()) == ImageSettings()  # the paper's


@pytest.mark.parametrize("method", [name for name in method_names() if name != FUSION])  # it reads the other methods
def test_every_searched_setting_is_a_setting_of_the_method(method: str) -> None:
    for input_name in ("stain", "thumbnail-224", "patches-low"):
        if method in MIL_METHODS and input_name == "stain":
            assert search_space(method, "mil").keys() <= MIL_METHODS[method].settings.model_fields.keys()
            assert search_space(method, "mil")
        elif method in NETWORK_METHODS and input_name != "stain":
            assert search_space(method, "image").keys() <= ImageSettings.model_fields.keys()
            assert search_space(method, "patch") == search_space(method, "image") != {}
        elif method in COUNTS_METHODS:
            assert search_space(method, "counts") == {}


@pytest.mark.parametrize("profile", PROFILE_SPACES)
def test_a_profile_has_its_own_search_space(profile: str) -> None:
    space = search_space("efficientnet-lite0", "image", profile)
    assert space.keys() <= ImageSettings.model_fields.keys()
    assert space != search_space("efficientnet-lite0", "image")
    assert search_space("clam-sb", "mil", profile) == search_space("clam-sb", "mil")
    for name, domain in space.items():  # every value that can be drawn is valid
        values = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
        for value in values:
            method_settings("efficientnet-lite0", "image", Training(profile=profile, options=(f"{name}={value}",)))


def test_a_plan_of_chosen_cells_includes_the_patch_network() -> None:
    work = units_of_cells([("her2-3way", "svm", "patches-low")], [FINAL_FOLD])
    assert work.units == (
        Unit("her2-4way", "convnext-small", "patches-low", FINAL_FOLD),
        Unit("her2-3way", "svm", "patches-low", FINAL_FOLD),
    )  # fmt: skip
