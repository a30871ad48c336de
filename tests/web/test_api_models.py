"""The models of the API have the columns of the tables."""

from her2batch.store import schemas
from her2batch.web.api_models import NewReview, Prediction, ReviewEntry, SlideRow


def test_columns_and_descriptions_come_from_the_tables() -> None:
    for model, columns in ((SlideRow, schemas.SLIDE_COLUMNS), (Prediction, schemas.PREDICTION_COLUMNS)):
        known = {one.name: one.description for one in columns}
        assert all(
            field.description == known.get(name, field.description) for name, field in model.model_fields.items()
        )
    assert SlideRow.model_fields.keys() == {one.name for one in schemas.SLIDE_COLUMNS} - {"files"}


def test_reviews_are_returned_without_their_salt() -> None:
    assert not {"salt", "body_sha256"} & ReviewEntry.model_fields.keys()
    assert NewReview.model_fields["label"].default is None
