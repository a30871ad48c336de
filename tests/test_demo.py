"""The README's first command, in small: everything once, and what it leaves behind."""

from pathlib import Path

from her2batch.demo import demo
from her2batch.flow.session import Session
from her2batch.models.bundle import read_bundle


def test_the_demo_trains_and_scores_slides_it_has_not_seen(tmp_path: Path, ray_session: Session) -> None:
    found = demo(tmp_path / "demo", 18, 3, quiet=True)
    assert found.exit_code == 0
    bundle = read_bundle(tmp_path / "demo" / "run" / "bundle")
    assert {one.method for one in bundle.info.models} == {"clam-sb", "random-forest", "svm", "mlp", "convnext-small"}
    assert found.report == tmp_path / "demo" / "report.html"
    html = found.report.read_text()
    assert all(f'id="slide-{row["slide_id"]}"' in html for row in found.rows)
    assert "Training run" in html
    assert (tmp_path / "demo" / "run" / "report.html").is_file()
    assert found.rows
    for row in found.rows:
        assert {"membrane", "clam-sb", "random-forest", "svm", "mlp"} <= row.keys()
