"""Tasks of the user's own: the TOML file, the class or number of a row of labels, and the messages for mistakes."""

from pathlib import Path
from typing import get_args

import pytest

from her2batch.errors import InputError
from her2batch.settings import Training
from her2batch.task_files import KEYS, read_tasks, training_with_tasks
from her2batch.tasks import CLASSES, STAINS, Task, task_applies, task_order

KI67 = """
[tasks.ki67-3way]
column = "ki67"
classes = ["low", "intermediate", "high"]
thresholds = ["> 5", ">= 30"]
stains = ["ki67"]
"""

NUMBER = """
[tasks.ki67-index]
column = "ki67"
target = "number"
limits = [0, 100]
unit = "%"
stains = ["ki67"]
"""

RULES = """
[tasks.her2-treatable]
classes = ["no", "yes"]
ordinal = false
stains = ["her2", "ihc"]
rules = [
    { class = "yes", her2 = ["1+", "3+"] },
    { class = "yes", her2 = "2+", ish = ["+", "-"] },
    { class = "no", her2 = "0" },
]
"""

GRADE = """
[tasks.grade]
column = "Nottingham grade"
classes = ["G1", "G2", "G3"]
values = { 1 = "G1", 2 = "G2", 3 = "G3", "grade 3" = "G3" }
missing = ["GX"]
stains = ["he"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "tasks.toml"
    path.write_text(text, encoding="utf-8")
    return path


def only(folder: Path, text: str) -> Task:
    (task,) = read_tasks(written(folder, text)).values()
    return task


def test_every_stain_can_be_named() -> None:
    assert get_args(get_args(Task.model_fields["stains"].annotation)[0]) == STAINS


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", "low"), ("5", "low"), ("5,0 %", "low"), ("5.1", "intermediate"), ("29.9", "intermediate"), ("30", "high"),
     ("100%", "high"), ("", None), ("n/a", None), (None, None)],
)  # fmt: skip
def test_thresholds_make_classes_of_an_index(tmp_path: Path, text: str | None, expected: str | None) -> None:
    """A threshold `> 5` leaves 5 in the class below, `>= 30` takes 30 into the class above."""
    assert only(tmp_path, KI67).truth({"ki67": text}) == expected


def test_a_number_is_read_with_point_comma_or_percent(tmp_path: Path) -> None:
    task = only(tmp_path, NUMBER)
    assert [task.truth({"ki67": text}) for text in ("12.5", "12,5", "12.5 %", "+12.5", "?")] == [12.5] * 4 + [None]
    assert (task.outputs, task.classes, task.is_number) == (1, (), True)


@pytest.mark.parametrize(
    ("row", "expected"),
    [({"her2": "2+", "ish": "-"}, "yes"), ({"her2": "2+", "ish": None}, None), ({"her2": "0", "ish": "+"}, "no"),
     ({"her2": "1+"}, "yes"), ({}, None)],
)  # fmt: skip
def test_the_first_rule_that_holds_gives_the_class(tmp_path: Path, row: dict[str, str], expected: str | None) -> None:
    task = only(tmp_path, RULES)
    assert task.truth(row) == expected
    assert task.columns == ("her2", "ish")


def test_a_rule_compares_numbers(tmp_path: Path) -> None:
    text = KI67.replace('column = "ki67"\n', "").replace('thresholds = ["> 5", ">= 30"]', "").strip()
    text += '\nrules = [{ class = "high", ki67 = ">= 30" }, { class = "low", ki67 = "<= 5" },'
    text += ' { class = "intermediate", ki67 = ["> 5", "hot spot"] }]\n'
    task = only(tmp_path, text)
    assert [task.truth({"ki67": cell}) for cell in ("31", "5", "17", "hot spot", "-")] == [
        "high", "low", "intermediate", "intermediate", None
    ]  # fmt: skip


@pytest.mark.parametrize(("cell", "expected"), [("1", "G1"), ("Grade 3", "G3"), ("g2", "G2"), ("GX", None)])
def test_words_of_the_laboratory_stand_for_classes(tmp_path: Path, cell: str, expected: str | None) -> None:
    assert only(tmp_path, GRADE).truth({"Nottingham grade": cell}) == expected


@pytest.mark.parametrize(
    ("text", "cell", "words"),
    [(KI67, "12-15", "ki67 is '12-15'; write a number"), (KI67, "<5", "ki67 is '<5'; write a number"),
     (NUMBER, "120", "it must lie between 0 and 100"),
     (GRADE, "4", "'4'; use one of 1, 2, 3, grade 3, G1, G2, G3, or leave it empty")],
)  # fmt: skip
def test_a_value_that_a_task_cannot_read_is_named(tmp_path: Path, text: str, cell: str, words: str) -> None:
    task = only(tmp_path, text)
    with pytest.raises(ValueError, match=r"^(ki67|Nottingham grade) is ") as caught:
        task.truth({"ki67": cell, "Nottingham grade": cell})
    assert words in str(caught.value)


MISTAKES = [
    (KI67.replace("column", "colum"), "[tasks.ki67-3way] colum: there is no such key"),
    (KI67.replace('column = "ki67"\n', ""), "[tasks.ki67-3way] column: name the column"),
    (KI67.replace('stains = ["ki67"]', ""), "[tasks.ki67-3way] stains: is missing"),
    (KI67.replace('["ki67"]', "[]"), "[tasks.ki67-3way] stains: name at least one"),
    (KI67.replace('["ki67"]', '["Ki-67"]'), "[tasks.ki67-3way] stains: 'Ki-67' is unknown; use her2, er, pr, ki67"),
    (KI67.replace('["ki67"]', '"ki67"'), "[tasks.ki67-3way] stains: "),
    (KI67.replace('"> 5"', '"5 %"'), "[tasks.ki67-3way] thresholds: '5 %' is no lower limit"),
    (KI67.replace('"> 5"', '"< 5"'), "[tasks.ki67-3way] thresholds: '< 5' is no lower limit"),
    (KI67.replace('"> 5"', "40"), "[tasks.ki67-3way] thresholds: the limits must increase"),
    (KI67.replace('"> 5", ', ""), "[tasks.ki67-3way] thresholds: 3 classes need 2 limits, here are 1"),
    (KI67.replace('"low", ', '"high", '), "[tasks.ki67-3way] classes: name at least two different"),
    (KI67.replace('"low", "intermediate", ', ""), "[tasks.ki67-3way] classes: name at least two"),
    (KI67.replace("classes", "unit = 1\nclasses"), "[tasks.ki67-3way] unit: Input should be a valid string, not 1"),
    (KI67 + "target = 'number'", "[tasks.ki67-3way] thresholds: a number has none"),
    (KI67 + 'values = { a = "low" }', "[tasks.ki67-3way] thresholds: a task has either values or thresholds"),
    (KI67 + "limits = [0, 100]", "[tasks.ki67-3way] limits, unit: only a number has them"),
    (NUMBER.replace("[0, 100]", "[100, 0]"), "[tasks.ki67-index] limits: the first must be smaller"),
    (NUMBER.replace("number", "score"), "[tasks.ki67-index] target: 'score' is unknown; use class, number"),
    (RULES.replace('"yes", her2 = "2+"', '"maybe", her2 = "2+"'), "[tasks.her2-treatable] rules: 'maybe' is none of"),
    (RULES.replace('{ class = "no", her2 = "0" },', ""), "[tasks.her2-treatable] rules: no rule gives the class 'no'"),
    (RULES.replace('"no", her2 = "0"', '"no"'), "[tasks.her2-treatable] rules: a rule names a class and at least one"),
    (GRADE.replace('2 = "G2"', '2 = "two"'), "[tasks.grade] values: 'two' is none of the classes G1, G2, G3"),
    (KI67.replace("ki67-3way", "er"), "[tasks.er]: her2batch itself has a task of this name, with the classes neg"),
    (KI67.replace("ki67-3way", '"Ki-67"'), "[tasks.Ki-67]: a name has lower-case letters"),
    ("tasks = 3", "has no task"), ("", "has no task"), ("[tasks]\ngrade = 3", "[tasks.grade]: is no table"),
    (KI67 + "\n[task.other]\n", "[task]: a file of tasks has tables [tasks.NAME] only"),
    ("[tasks.x", "is not valid TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_mistake_is_named_with_file_table_key_and_remedy(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_tasks(path)
    assert words in str(caught.value)
    assert caught.value.path == path
    assert caught.value.remedy


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tasks\.toml: can't be read \(No such file"):
        read_tasks(tmp_path / "tasks.toml")


def test_a_built_in_task_may_be_repeated_with_its_own_classes(tmp_path: Path) -> None:
    """Such a file can be used with releases that do not have the task yet."""
    text = '[tasks.er]\ncolumn = "er"\nclasses = ["negative", "positive"]\nstains = ["er"]\n'
    text += 'values = { "-" = "negative", "+" = "positive" }\n'
    assert only(tmp_path, text).is_builtin


def test_a_task_applies_to_the_stains_of_its_definition(tmp_path: Path) -> None:
    ki67, treatable = only(tmp_path, KI67), only(tmp_path, RULES)
    assert [stain for stain in (*STAINS, None) if task_applies(ki67, stain)] == ["ki67"]
    assert [stain for stain in (*STAINS, None) if task_applies(treatable, stain)] == ["her2", "ihc", None]


def test_a_run_trains_all_tasks_of_a_file_unless_it_names_some(tmp_path: Path) -> None:
    path = written(tmp_path, KI67 + NUMBER)
    trained = training_with_tasks(Training(), path)
    assert trained.tasks == ("ki67-3way", "ki67-index")
    assert [task.name for task in trained.definitions or ()] == ["ki67-3way", "ki67-index"]
    some = training_with_tasks(Training(tasks=("ki67-index", "er")), path)
    assert (some.tasks, [task.name for task in some.definitions or ()]) == (("ki67-index", "er"), ["ki67-index"])
    with pytest.raises(InputError, match=r"no task is called 'grade'; choose from her2-4way, .*ki67-index"):
        some.task("grade")


def test_built_in_tasks_come_first_in_every_order() -> None:
    assert task_order(["zzz", "er", "grade", "her2-4way"]) == ["her2-4way", "er", "grade", "zzz"]
    assert task_order(CLASSES) == list(CLASSES)


def test_docs_describe_every_key() -> None:
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    assert [key for key in KEYS if f"`{key}`" not in page] == []
