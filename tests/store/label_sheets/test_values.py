"""Values in the ways laboratories write them; what could mean two things is refused."""

from itertools import product

import pytest

from her2batch.store.label_sheets.values import (
    ACCEPTED,
    UnclearValueError,
    read_detail,
    read_her2,
    read_sign,
    read_stain,
)

PREFIXES = ("", "HER2 ", "HER-2: ", "her2/neu ", "IHC ", "Score ", "c-erbB-2 = ", "HER2 IHC score: ", "HercepTest ")
SCORE_FORMS = ("{0}", "{0}.0", "{0},0", "{0}.00", " {0} ", "({0})", "[{0}]", "{0} (90 %)", "{0}, >95%")
PLUS_FORMS = ("{0}+", "+{0}", "{0} +", "{0}+ (30%)", "({0}+)", "{0} plus", "{0}＋")


@pytest.mark.parametrize("score", ["0", "1", "2", "3"])
def test_a_score_is_read_in_every_spelling(score: str) -> None:
    expected = "0" if score == "0" else f"{score}+"
    forms = SCORE_FORMS if score == "0" else (*SCORE_FORMS, *PLUS_FORMS)
    for prefix, form in product(PREFIXES, forms):
        found = read_her2(prefix + form.format(score))
        assert found is not None
        assert (found.score, found.detail) == (expected, None), prefix + form.format(score)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("+++", "3+"),
        ("(++)", "2+"),
        ("positive (3+)", "3+"),
        ("3+ positive", "3+"),
        ("Negative 1+", "1+"),
        ("neg. (0)", "0"),
        ("equivocal (2+)", "2+"),
        ("low 1+", "1+"),
        ("HER2-low (1+)", "1+"),
        ("3+ (strong)", "3+"),
        ("weak 1+", "1+"),
        ("3-fach positiv", "3+"),
        ("stark positiv (3+)", "3+"),
        ("grenzwertig (2+)", "2+"),
        ("négatif (0)", "0"),
        ("positif : 3+", "3+"),
        ("équivoque (2+)", "2+"),
        ("negativo (1+)", "1+"),
        ("dudoso 2+", "2+"),
        ("++ (2+)", "2+"),
        ("complete 3+", "3+"),
    ],
)
def test_words_of_the_guideline_may_stand_beside_a_score(text: str, score: str) -> None:
    found = read_her2(text)
    assert found is not None
    assert found.score == score


@pytest.mark.parametrize(
    "text",
    [
        "2-3+",
        "1-2",
        "2+/3+",
        "0/1+",
        "1+ or 2+",
        "2.5",
        "4",
        "4+",
        "-1",
        "2++",
        "3++",
        "++ (3+)",
        "negativ (2+)",
        "schwach positiv (1+)",
        "stark positiv",
        "0+",
        "+",
        "-",
        "negative",
        "positive",
        "low",
        "equivocal",
        "negative (3+)",
        "positive 1+",
        "2+ FISH-",
        "amplified",
        "HER2",
        "90%",
        "Score",
        "NULL",
        "(null)",
        "3+?",
        "x",
        "02-Mar",
        "TRUE",
        "1e0",
    ],
)
def test_what_could_mean_two_things_is_no_score(text: str) -> None:
    with pytest.raises(UnclearValueError):
        read_her2(text)


@pytest.mark.parametrize(
    "text", ["", " ", "NA", "n/a", "#N/A", "nan", "?", "unknown", "not done", "[Not Evaluated]", "pending"]
)
def test_a_missing_value_is_none_in_every_column(text: str) -> None:
    assert read_her2(text) is None
    assert read_detail(text) is None
    assert read_stain(text) is None
    assert all(read_sign(text, column) == (None, False) for column in ("ish", "er", "pr"))


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("null", "null"),
        ("0 (null)", "null"),
        ("0 null", "null"),
        ("HER2 null", "null"),
        ("ultralow", "ultralow"),
        ("Ultra-low", "ultralow"),
        ("ultra low", "ultralow"),
        ("0 (ultralow)", "ultralow"),
        ("HER2-ultralow", "ultralow"),
        ("ultralow (0)", "ultralow"),
        ("0 - ultralow", "ultralow"),
    ],
)
def test_null_and_ultralow_are_sub_scores_of_0(text: str, detail: str) -> None:
    found = read_her2(text)
    assert found is not None
    assert (found.score, found.detail) == ("0", detail)
    assert read_detail(text) == found.detail


@pytest.mark.parametrize("column", ["ish", "er", "pr"])
@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("+", "+"),
        ("pos", "+"),
        ("Positive", "+"),
        ("positiv", "+"),
        ("(+)", "+"),
        ("+ve", "+"),
        ("-", "-"),
        ("−", "-"),
        ("–", "-"),
        ("neg", "-"),
        ("NEGATIVE", "-"),
        ("négatif", "-"),
        ("(-)", "-"),
        ("-ve", "-"),
    ],
)
def test_a_result_is_read_in_every_spelling(column: str, text: str, sign: str) -> None:
    assert read_sign(text, column) == (sign, False)


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("amplified", "+"),
        ("Not amplified", "-"),
        ("non-amplified", "-"),
        ("FISH: negative", "-"),
        ("HER2 FISH positive", "+"),
        ("ISH+", "+"),
        ("SISH -", "-"),
        ("not amplified (ratio 1.2)", "-"),
        ("amplified (3,4)", "+"),
        ("ratio 3.2 (positive)", "+"),
        ("HER2/CEP17 2.4 amplified", "+"),
        ("negative; ratio 1.2; copy number 3.1", "-"),
        ("keine Amplifikation", "-"),
        ("amplifié", "+"),
        ("pas d'amplification", "-"),
        ("no amplificado", "-"),
        ("non amplificato (1,3)", "-"),
    ],
)
def test_results_of_ish_may_name_the_test_and_the_ratio(text: str, sign: str) -> None:
    assert read_sign(text, "ish") == (sign, False)


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("90%", "+"),
        ("90 %", "+"),
        ("1%", "+"),
        ("0%", "-"),
        ("0,5 %", "-"),
        ("<1%", "-"),
        (">90%", "+"),
        ("≥ 1 %", "+"),
        ("1-10%", "+"),
        ("80 % – 90 %", "+"),
        ("0-0.5 %", "-"),
        ("positive (80%)", "+"),
        ("weakly positive", "+"),
        ("ER positive", "+"),
        ("low positive", "+"),
    ],
)
def test_percentages_of_er_and_pr_are_divided_by_one_percent(text: str, sign: str) -> None:
    assert read_sign(text, "er") == (sign, False)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("2.1", "ish"),
        ("1", "ish"),
        ("yes", "ish"),
        ("TRUE", "er"),
        ("90%", "ish"),
        ("<10%", "er"),
        ("8/8", "er"),
        ("3", "pr"),
        ("120%", "er"),
        ("positive/negative", "ish"),
    ],
)
def test_ratios_numbers_and_open_bounds_are_no_result(text: str, column: str) -> None:
    with pytest.raises(UnclearValueError):
        read_sign(text, column)


@pytest.mark.parametrize("text", ["equivocal", "Indeterminate", "borderline", "FISH equivocal"])
def test_undecided_results_are_missing_and_reported(text: str) -> None:
    assert read_sign(text, "ish") == (None, True)


@pytest.mark.parametrize(
    ("text", "stain"),
    [
        ("HER2", "her2"),
        ("HER-2/neu", "her2"),
        ("c-erbB-2", "her2"),
        ("ER", "er"),
        ("PgR", "pr"),
        ("Ki-67", "ki67"),
        ("H&E", "he"),
        ("HE", "he"),
        ("ihc", "ihc"),
    ],
)
def test_stains_are_read_by_their_usual_names(text: str, stain: str) -> None:
    assert read_stain(text) == stain


def test_other_stains_are_refused() -> None:
    with pytest.raises(UnclearValueError):
        read_stain("PD-L1")


def test_every_column_says_what_it_accepts() -> None:
    assert ACCEPTED.keys() == {"her2", "her2_detail", "ish", "er", "pr", "stain"}
