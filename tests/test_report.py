"""The report: strict JSON, HTML that parses, figures that exist, nothing unescaped, the same bytes each time."""

import json
from datetime import date
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from smscale.errors import InputError
from smscale.evaluate import Figure, Table, figures, format_table, write_report
from smscale.evaluate.report import to_json

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest; collects attributes by tag, cells and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.cells, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th", "span") and self.cells:
            self.cells[-1][2] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def best(self):
        return [text for _, attrs, text in self.cells if "best" in attrs.get("class", "").split()]


ROWS = pd.DataFrame(
    {
        "source": ["smap", "rf", "gda_kriging"],
        "rmse": [0.06, 0.05, 0.0412],
        "cc": [0.5, 0.81, np.nan],
        "bias": [-0.02, 0.01, -0.00001],
        "n": [1200, 1200, 900],
    }
)


@pytest.fixture
def folder(tmp_path):
    figures.sample_flow({"cells": 10, "kept": 4}, tmp_path / "report" / "figures" / "flow 1.png")
    return tmp_path / "report"


def write(folder, **more):
    given = {
        "metrics": {"b": np.float32(0.5), "a": {"n": np.int64(3), "cc": np.nan}},
        "tables": [("Against stations", "Held out <30 %>", ROWS)],
        "figures": [("flow 1.png", "Samples", 'What was kept, "strict" & all')],
        "data_notes": [{"file": "<b>.hdf", "what": "truncated", "count": 2}],
        "provenance": {"versions": {"numpy": "2"}, "seed": 1},
    }
    return write_report(folder, "Sichuan <2017>", **(given | more))


def test_report_page_parses_and_its_figures_exist(folder):
    page = write(folder)
    assert page == folder / "index.html"
    parsed = Page(page.read_text(encoding="utf-8"))
    (image,) = parsed.all("img")
    assert image["src"] == "figures/flow%201.png"
    assert image["alt"] == "Samples"
    assert (int(image["width"]), int(image["height"])) == figures_size(folder / "figures" / "flow 1.png")
    anchors = {a["href"][1:] for a in parsed.all("a") if a["href"].startswith("#")}
    assert anchors == {s["id"] for s in parsed.all("section")} == {"scores", "figures", "data", "provenance"}
    assert {p.name for p in folder.iterdir()} == {"index.html", "metrics.json", "figures"}


def figures_size(path):
    import matplotlib.image

    height, width = matplotlib.image.imread(path).shape[:2]
    return width, height


def test_report_needs_nothing_from_elsewhere(folder):
    text = write(folder).read_text(encoding="utf-8")
    assert "http" not in text
    assert "<script" not in text
    assert not Page(text).all("link")


def test_report_escapes_what_it_is_given(folder):
    text = write(
        folder, summary="a < b & c", headline={"<key>": "<value>"}, method={"<step>": "<x>"}, recipe="a: <b>"
    ).read_text("utf-8")
    for raw in ("<2017>", "<30 %>", "<b>", "<key>", "<value>", "<step>", "<x>"):
        assert raw not in text
    parsed = Page(text)
    for raw in ("Sichuan <2017>", "Held out <30 %>", "<b>.hdf", "<key>", "<value>", "<step>", "a: <b>", "a < b & c"):
        assert raw in parsed.text


def test_best_scores_are_marked_per_column(folder):
    assert Page(write(folder).read_text("utf-8")).best() == ["0.810", "0.0412", "0.0000"]


def test_best_scores_are_marked_per_group(folder):
    rows = pd.DataFrame(
        {
            "source": ["a", "b", "a", "b", "c"],
            "split": ["time", "time", "space", "space", "alone"],
            "mae": [1, 2, 4, 3, 5.0],
        }
    )
    text = write(folder, tables=[Table("By split", "", rows, group="split")]).read_text("utf-8")
    assert Page(text).best() == ["1.0000", "3.0000"]


def test_ties_as_shown_are_all_best(folder):
    text = write(
        folder, tables=[("Ties", "", [{"source": "a", "rmse": 0.04121}, {"source": "b", "rmse": 0.04119}])]
    ).read_text("utf-8")
    assert Page(text).best() == ["0.0412", "0.0412"]


def test_tables_have_headers_units_and_readable_names(folder):
    parsed = Page(write(folder).read_text("utf-8"))
    heads = [text for tag, attrs, text in parsed.cells if tag == "th" and attrs.get("scope") == "col"]
    assert heads[:5] == ["source", "RMSEm³ m⁻³", "CC", "biasm³ m⁻³", "n"]
    rows = [text for tag, attrs, text in parsed.cells if tag == "th" and attrs.get("scope") == "row"]
    assert rows[:3] == ["SMAP 36 km", "random forest", "difference, kriging"]
    cells = [text for tag, _, text in parsed.cells if tag == "td"]
    assert cells[:4] == ["0.0600", "0.500", "−0.0200", "1\u2009200"]
    assert "–" in cells


def test_metrics_are_strict_sorted_json(folder):
    write(folder)
    text = (folder / "metrics.json").read_text("utf-8")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {"a": {"cc": None, "n": 3}, "b": 0.5}
    assert list(found) == ["a", "b"]


def test_json_takes_the_types_of_numpy_and_pandas():
    given = {
        "array": np.array([1.0, np.nan, np.inf]),
        "flags": np.array([True, False]),
        "times": np.array(["2017-06-10T06:00", "NaT"], dtype="datetime64[ns]"),
        "day": pd.Timestamp("2017-06-10"),
        "date": date(2017, 6, 10),
        "frame": pd.DataFrame({"source": ["rf"], "n": [3], "cc": [np.nan]}),
        "series": pd.Series({"lst": 0.5}),
        "nested": [(1, None), {"x": pd.NA}],
        3: {"b", "a"},
    }
    assert json.loads(to_json(given)) == {
        "array": [1.0, None, None],
        "flags": [True, False],
        "times": ["2017-06-10T06:00:00", None],
        "day": "2017-06-10",
        "date": "2017-06-10",
        "frame": [{"source": "rf", "n": 3, "cc": None}],
        "series": {"lst": 0.5},
        "nested": [[1, None], {"x": None}],
        "3": ["a", "b"],
    }


def test_report_is_the_same_bytes_each_time(folder):
    first = write(folder).read_bytes(), (folder / "metrics.json").read_bytes()
    assert (write(folder).read_bytes(), (folder / "metrics.json").read_bytes()) == first


def test_report_with_nothing_to_say(tmp_path):
    parsed = Page(write_report(tmp_path / "empty", "Empty", {}).read_text("utf-8"))
    assert "no problem was met" in parsed.text
    assert json.loads((tmp_path / "empty" / "metrics.json").read_text()) == {}


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([("none.png", "a", "b")], "none.png"),
        ([("flow 1.png", "a", "b")] * 2, "twice"),
        ([("../flow 1.png", "a", "b")], "without a folder"),
        ([Figure("notes.txt", "a", "b")], "not a PNG"),
    ],
)
def test_report_refuses_figures_that_are_not_there(folder, listed, message):
    (folder / "figures" / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=message):
        write(folder, figures=listed)
    assert not (folder / "index.html").exists()


def test_format_table_aligns_columns():
    assert format_table(ROWS) == (
        "source                 RMSE     CC     bias     n\n"
        "SMAP 36 km           0.0600  0.500  -0.0200  1200\n"
        "random forest        0.0500  0.810   0.0100  1200\n"
        "difference, kriging  0.0412      –   0.0000   900"
    )


def test_format_table_of_nothing():
    assert format_table([]) == ""
