"""Metrics, trials and the paper's rows fit a terminal; excluded slides are counted with examples."""

import io

import pytest
from rich.console import Console

from her2batch.cli.console_training import count_progress, print_excluded, print_gain, print_metrics, print_trials

ROW = {"task": "her2-3way", "method": "majority-vote", "input": "patches-moderate", "n": 72}
METRICS = {f"{name}_{kind}": value for name in ("auc", "f1", "accuracy", "kappa")
           for kind, value in (("mean", 97.83), ("sd", 1.62))}  # fmt: skip


def screen(width: int) -> tuple[io.StringIO, Console]:
    file = io.StringIO()
    return file, Console(file=file, width=width, force_terminal=True, color_system=None, highlight=False)


def test_metrics_fit_80_columns_without_the_least_important() -> None:
    file, console = screen(80)
    print_metrics(console, [ROW | METRICS])
    lines = file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[2].split() == ["her2-3way", "majority-vote", "patches-moderate", *["97.83±1.62"] * 3]
    assert "kappa, n" in lines[-1]


def test_metrics_have_every_column_where_there_is_room() -> None:
    file, console = screen(10_000)
    print_metrics(console, [ROW | METRICS | {"kappa_mean": None}])
    assert file.getvalue().splitlines()[2].split()[-2:] == ["–", "72"]


def test_an_auc_of_few_slides_is_not_printed() -> None:
    file, console = screen(10_000)
    print_metrics(console, [ROW | METRICS | {"too_few": True, "auc_mean": None, "auc_sd": None}])
    row = file.getvalue().splitlines()[2].split()
    assert row[3:] == ["too", "few", *["97.83±1.62"] * 3, "72"]


def test_excluded_slides_are_counted_with_five_examples() -> None:
    file, console = screen(10_000)
    rows = [{"task": "er", "reason": "needs-ish", "words": f"S{k} is 2+ without ISH"} for k in range(7)]
    rows.append({"task": "er", "reason": "no-label", "words": "S9 has no er"})
    print_excluded(console, rows)
    first, second = file.getvalue().splitlines()
    assert first == "left out of er: 7 × needs-ish (" + "; ".join(row["words"] for row in rows[:5]) + "; and 2 more)"
    assert second == "left out of er: 1 × no-label"


def test_progress_counts_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with count_progress("slides", quiet=False) as report:
        report(1, 2)
    assert capsys.readouterr().err == "1/2 slides\n"


def gain(metric: str, difference: float, sd: float | None) -> dict:
    folds = 1 if sd is None else 3
    return {"metric": metric, "tuned": 0.9 + difference, "untuned": 0.9, "difference": difference, "sd": sd,
            "better": folds, "worse": 0, "folds": folds}  # fmt: skip


def test_the_gain_of_a_search_is_printed_with_the_spread_of_the_folds() -> None:
    out, console = screen(80)
    print_gain(console, [gain("auc", 0.05, 0.01), gain("accuracy", 0.01, 0.04), gain("kappa", 0.01, 0.04)], False)
    text = out.getvalue()
    assert "AUC, % 95.00 90.00 +5.00±1.00 3 better, 0 worse" in [" ".join(line.split()) for line in text.splitlines()]
    assert "improved by more than the folds differ: AUC\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_search_without_a_gain_says_so() -> None:
    out, console = screen(80)
    print_gain(console, [gain("auc", 0.05, 0.01), gain("accuracy", 0.01, 0.04)], True)
    assert "no metric is improved by more than the folds differ" in out.getvalue()
    assert "AUC" not in out.getvalue()  # too few slides of a class


def test_one_outer_fold_shows_no_gain() -> None:
    out, console = screen(80)
    print_gain(console, [gain("accuracy", 0.05, None)], False)
    assert "one outer fold cannot show" in out.getvalue()
    assert "improved by more" not in out.getvalue()


def test_the_best_trials_of_every_fold_are_listed() -> None:
    out, console = screen(80)
    trials = [{"fold": fold, "trial": f"t{fold}-{k}", "val_loss": 1 - k / 20, "epochs": 3, "settings": "{}"}
              for fold in range(3) for k in range(20)]  # fmt: skip
    print_trials(console, [*trials, {"fold": 0, "trial": "failed", "val_loss": None}])
    shown = out.getvalue()
    assert [shown.count(f"t{fold}-") for fold in range(3)] == [3, 3, 3]
    assert "t0-19" in shown
    assert "failed" not in shown
