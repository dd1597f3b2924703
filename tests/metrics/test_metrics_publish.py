"""Published pages: figures, pictures and origin together, older figures under their date."""

import json

from glm_dist.metrics.provenance import provenance
from glm_dist.metrics.publish import publish


def test_a_page_shows_its_pictures_and_origin_and_older_figures_stay(tmp_path):
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"picture")
    origin = provenance()
    for date, loss in (("2026-01-02", 1.5), ("2026-03-04", 1.25)):
        figures = {"loss": loss, "origin": {**origin, "date": date}}
        page = publish(
            tmp_path / "docs", "run", "# Run\n\n![loss](loss.png)\n", figures, {"loss.png": picture}
        )
    text = page.read_text()
    assert "![loss](run-loss.png)" in text
    assert origin["commit"] in text
    assert "2026-03-04" in text
    assert (page.parent / "run-loss.png").read_bytes() == b"picture"
    assert json.loads((page.parent / "run.json").read_text())["loss"] == 1.25
    assert json.loads((page.parent / "run-2026-01-02.json").read_text())["loss"] == 1.5
