"""What a run has to do follows from its settings; what can't be done is refused by name."""

import pytest

from her2batch.errors import InputError
from her2batch.settings import CountsSettings, ImageSettings, MilSettings, Training
from her2batch.store.training_run import FINAL_FOLD, Unit
from her2batch.tasks import COUNTS_METHODS, IMAGE_METHODS, METHODS, MIL_METHODS
from her2batch.training.methods import SPACES, method_kind, method_settings, plan_units, units_of_cells


def cells(training: Training, encoders: tuple[str, ...] = ("stain",)) -> set[tuple[str, str, str]]:
    return {(one.task, one.method, one.input) for one in plan_units(training, encoders).units}


def test_units_are_tasks_times_methods_times_folds_and_a_final_one() -> None:
    training = Training(tasks=("her2-3way", "er"), methods=("clam-sb", "dtfd-afs"), folds=5)
    units = plan_units(training, ("stain",)).units
    assert len(units) == 2 * 2 * (5 + 1)
    assert {one.fold for one in units} == {0, 1, 2, 3, 4, FINAL_FOLD}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_something_to_read(method: str) -> None:
    found = cells(Training(tasks=("her2-4way",), methods=(method,)), ("stain", "uni"))
    own = {given for _, name, given in found if name == method}
    expected = (
        {"stain", "uni"} if method in MIL_METHODS else {"thumbnail-224"} if method in IMAGE_METHODS else {"patches-low"}
    )
    assert own == expected


def test_counts_bring_the_patch_nets_they_stand_on_and_come_last() -> None:
    training = Training(methods=("svm", "majority-vote"), tasks=("her2-4way", "her2-binary"), inputs=("patches-high",))
    work = plan_units(training, ("stain",))
    assert cells(training) == {
        ("her2-4way", "convnext-small", "patches-high"), ("her2-4way", "svm", "patches-high"),
        ("her2-binary", "svm", "patches-high"), ("her2-4way", "majority-vote", "patches-high"),
    }  # fmt: skip
    kinds = [method_kind(one.method, one.input) for one in work.units]
    assert kinds == sorted(kinds, key=["patch", "image", "mil", "counts"].index)
    assert len(work.of("patch")) == 11  # once for all tasks


def test_a_patch_net_alone_is_a_patch_classifier_of_her2() -> None:
    found = cells(Training(methods=("convnext-small",), inputs=("patches-low", "thumbnail-512")))
    assert found == {("her2-4way", "convnext-small", "patches-low"), ("her2-3way", "convnext-small", "thumbnail-512")}


@pytest.mark.parametrize(("training", "words"), [
    (Training(tasks=("her2-5way",)), "choose from her2-4way"), (Training(methods=("xgboost",)), "choose from clam-sb"),
    (Training(methods=("svm",), tasks=("er",)), "er has none"),
    (Training(methods=("resnet50",), inputs=("patches-low",)), "none of the inputs patches-low suits resnet50"),
    (Training(options=("lr",)), "is not NAME=VALUE"), (Training(options=("rate=3",)), "names: .*lr"),
    (Training(options=("lr=-1",)), "--option lr=-1"), (Training(options=("dropout=much",)), "--option dropout=much"),
])  # fmt: skip
def test_what_can_not_be_is_refused_by_name(training: Training, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan_units(training, ("stain",))


def test_settings_are_the_methods_own_then_the_profiles_then_the_options() -> None:
    plain, quick = Training(), Training(quick=True, options=("epochs=3", "size=full"))
    assert method_settings("clam-sb", "mil", plain) == MilSettings()
    assert method_settings("dtfd-afs", "mil", plain) == MilSettings(weight_decay=1e-4)
    assert method_settings("clam-sb", "mil", quick).model_dump()["epochs"] == 3
    image = method_settings("resnet50", "image", quick)
    assert isinstance(image, ImageSettings)
    assert (image.epochs, image.size, image.pretrained) == (3, "full", "none")
    assert method_settings("svm", "counts", quick) == CountsSettings(search=False)
    assert method_settings("vit-base", "image", Training(options=("weight_decay=none",))) == ImageSettings()


def test_what_is_searched_is_a_setting() -> None:
    models = {"mil": MilSettings, "image": ImageSettings, "patch": ImageSettings}
    for kind, space in SPACES.items():
        assert set(space) <= set(models[kind].model_fields)
    assert not set(SPACES) & set(COUNTS_METHODS)


def test_work_of_chosen_cells() -> None:
    work = units_of_cells([("her2-3way", "svm", "patches-low")], [FINAL_FOLD])
    assert work.units == (
        Unit("her2-4way", "convnext-small", "patches-low", FINAL_FOLD),
        Unit("her2-3way", "svm", "patches-low", FINAL_FOLD),
    )  # fmt: skip
