"""A second ingest with another plan: which finished slides fit it, and which settings would replace their results.

Encoders and a bundle add tables to a slide and change no other, so that a slide that has more of them than the plan
names still fits it, and one that lacks an encoder gets it added. Every other setting decides values of the tables that
a slide has: a slide that was processed with another value must be processed again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, permutations
from typing import NamedTuple

from her2batch import settings
from her2batch.control_settings import Controls
from her2batch.errors import InputError
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort, Row, tables_of
from her2batch.store.pseudonyms import has_pseudonyms
from her2batch.store.training_run import encoder_folder

MAX_PERMUTED = 5
"""Number of encoders up to which every order of them is tried: 325 plans. A plan of more has its order, or a part."""


class PlanMatch(NamedTuple):
    """The plan with which a slide was processed, as far as its tables are those of the present plan.

    encoders, bundle: of its plan id.  algorithms: version of its plan id.  missing: encoders of the present plan that
    the slide has no embeddings of.  bundle_missing: the bundle of the present plan has not seen it.
    """

    encoders: tuple[str, ...]
    bundle: str | None
    algorithms: int
    missing: tuple[str, ...]
    bundle_missing: bool

    @property
    def is_current(self) -> bool:
        """Whether processing the slide again would change no table that it has."""
        return self.algorithms == settings.ALGORITHMS and not self.bundle_missing


class PlanChangedError(InputError):
    """A plan would replace the results of finished slides.

    changes: setting → (value of the cohort, new value).  slides: number of finished slides to process again.
    """

    def __init__(self, cohort: Cohort, changes: Mapping[str, tuple[object, object]], slides: int, remedy: str) -> None:
        listed = ", ".join(f"{name} {_text(old)} → {_text(new)}" for name, (old, new) in changes.items())
        again = "1 finished slide" if slides == 1 else f"{slides} finished slides"
        what = f"the plan has changed ({listed}), which would compute {again} again and replace their results"
        super().__init__(what, cohort.root, remedy)
        self.changes, self.slides = dict(changes), slides


def settle_plan(cohort: Cohort, wanted: Plan, replan: bool = False, exact: bool = False) -> Plan:
    """The plan of an ingest into a cohort: a setting that is not among `wanted.model_fields_set` is as stored.

    Encoders are added to those of the cohort, unless no slide is finished yet. With `exact` or `replan` they are those
    that are given, if any are. The bundle is always the given one.  replan: finished slides may be processed again.
    Raises PlanChangedError when they would be without it. Reads only; a folder that is no cohort yet takes any plan.
    """
    if not cohort.settings.is_file():
        return Plan.model_validate(dict(wanted))
    stored = cohort.plan()
    kept = {name: getattr(stored, name) for name in Plan.model_fields if name not in wanted.model_fields_set}
    plan = wanted.model_copy(update={**kept, "bundle": wanted.bundle})
    changed = [name for name in Plan.model_fields if getattr(stored, name) != getattr(plan, name)]
    if not changed:
        return plan
    finished = [row for row in cohort.rows().values() if row["status"] == "done"]
    if finished and not replan and not exact:
        added = [name for name in plan.encoders if name not in stored.encoders]
        plan = plan.model_copy(update={"encoders": (*stored.encoders, *added)})
    if not replan:
        _refuse_change(cohort, stored, plan, finished)
    return plan


def _refuse_change(cohort: Cohort, stored: Plan, plan: Plan, finished: Sequence[Row]) -> None:
    """Raise PlanChangedError if a changed setting would process finished slides again."""
    values = {name: (getattr(stored, name), getattr(plan, name)) for name in Plan.model_fields if name != "encoders"}
    changes = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    if plan.bundle is None:
        changes.pop("bundle", None)
    if not changes:
        return
    matches = [match_plan(plan, row) for row in finished]
    again = sum(match is None or match.bundle_missing for match in matches)
    if not again:
        return
    options = ", ".join(option_of(name) for name in changes)
    remedy = f"omit {options} to go on with the settings of the cohort, or add --replan to compute them again"
    if changes.keys() == {"bundle"}:
        remedy = f"to score them from their tables: her2batch score {cohort.root} --bundle DIR; else {remedy}"
    raise PlanChangedError(cohort, changes, again, remedy)


def check_pseudonyms(cohort: Cohort, has_key: bool) -> None:
    """Refuse to add slides with names to a pseudonymized cohort, and the reverse. Raises InputError."""
    rows = cohort.rows(("slide_id", "path")) if cohort.settings.is_file() else {}
    pseudonyms = has_pseudonyms(rows.values())
    if rows and pseudonyms != has_key:
        what = "has pseudonyms" if pseudonyms else "has no pseudonyms"
        remedy = "give --pseudonymize KEYFILE" if pseudonyms else "omit --pseudonymize, or ingest into another --out"
        raise InputError(what, cohort.root, remedy)


def option_of(setting: str) -> str:
    """The command-line option of a setting of the plan; repeatable ones are in the singular."""
    is_list = isinstance(Plan.model_fields[setting].default, tuple)
    return "--" + (setting.removesuffix("s") if is_list else setting).replace("_", "-")


def option_with_value(setting: str, value: object) -> str:
    """The part of a command line that gives a setting a value; empty where no option can."""
    value = "FILE" if isinstance(value, Controls) and not value.auto else value
    values = value if isinstance(value, tuple) else () if value in (None, False) else (value,)
    option = option_of(setting)
    return " ".join(option if each is True else f"{option} {shlex.quote(str(each))}" for each in values)


def match_plan(plan: Plan, row: Row) -> PlanMatch | None:
    """Find the plan of a slide's row; None if it differs from `plan` in more than encoders, bundle and algorithms.

    row: of the slides table.
    """
    folders = [name.partition("/")[2] for name in tables_of(row, "embeddings")]
    encoders = tuple(dict.fromkeys([*plan.encoders, *(name for folder in folders for name in _encoder_names(folder))]))
    bundles = {name.partition("/")[2] for name in tables_of(row, "predictions")}
    found = _find_plan(
        plan.for_slide(row["mpp_source"], row.get("mpp")), row["plan_id"], encoders, (None, *sorted(bundles))
    )
    if found is None:
        return None
    missing = tuple(name for name in plan.encoders if name not in found[0] and encoder_folder(name) not in folders)
    return PlanMatch(*found, missing, plan.bundle not in (None, found[1], *bundles))


def _encoder_names(folder: str) -> Iterator[str]:
    """Encoders whose embeddings may lie in a folder; see `encoder_folder`."""
    yield folder
    if folder.startswith("timm-"):
        yield folder.replace("-", ":", 1)


@lru_cache(maxsize=4096)
def _find_plan(
    plan: Plan, plan_id: str, encoders: tuple[str, ...], bundles: tuple[str | None, ...]
) -> tuple[tuple[str, ...], str | None, int] | None:
    """Encoders, bundle and version of the algorithms of a plan id; None if no combination of them has this id."""
    for version in range(settings.ALGORITHMS, 0, -1):
        for bundle in dict.fromkeys([plan.bundle, *bundles]):
            for chosen in (plan.encoders, *_arrangements(encoders)):
                candidate = plan.model_copy(update={"encoders": chosen, "bundle": bundle})
                if candidate.id_of_version(version) == plan_id:
                    return chosen, bundle, version
    return None


def _arrangements(names: Sequence[str]) -> Iterable[tuple[str, ...]]:
    arrange = permutations if len(names) <= MAX_PERMUTED else combinations
    return (chosen for count in range(len(names), 0, -1) for chosen in arrange(names, count))


def plan_id_of(plan: Plan, row: Row, match: PlanMatch) -> str:
    """The plan id of a slide to which the missing encoders of its match were added."""
    own = (*match.encoders, *match.missing)
    same = set(own) == set(plan.encoders)
    grown = plan.model_copy(update={"encoders": plan.encoders if same else own, "bundle": match.bundle})
    return grown.for_slide(row["mpp_source"], row.get("mpp")).id_of_version(match.algorithms)


def _text(value: object) -> str:
    return "none" if value in (None, ()) else ", ".join(value) if isinstance(value, tuple) else str(value)
