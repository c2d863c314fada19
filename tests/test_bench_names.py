"""`python -m benchmarks`: names, their sizes, and which run only by name."""

from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """benchmarks.__main__ with two short benchmarks and a long one, and what they were called with."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import __main__ as command

    called: list[tuple[str, int, float]] = []

    def module(name: str) -> SimpleNamespace:
        return SimpleNamespace(main=lambda n=10, share=0.5: called.append((name, n, share)))

    modules = {f"benchmarks.{name}": module(name) for name in ("lm", "season", "terrain")}
    monkeypatch.setattr(command, "names", lambda: ["lm", "season", "terrain"])
    monkeypatch.setattr(command, "import_module", modules.__getitem__)
    return SimpleNamespace(run=command.run, called=called, long=command.LONG)


def test_without_a_name_all_but_the_long_ones_run(command: SimpleNamespace) -> None:
    assert command.run([]) == 0
    assert command.called == [("lm", 10, 0.5), ("terrain", 10, 0.5)]
    for name in command.long:
        assert (ROOT / "benchmarks" / f"{name}.py").exists()


def test_a_name_may_have_sizes(command: SimpleNamespace) -> None:
    assert command.run(["season", "n=3", "lm", "terrain", "share=0.25", "n=4"]) == 0
    assert command.called == [("season", 3, 0.5), ("lm", 10, 0.5), ("terrain", 4, 0.25)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none"], "no benchmark none; there are lm, season, terrain"),
        (["n=3"], "n=3: name a benchmark before its sizes"),
        (["lm", "rows=3"], "lm has no size rows; it has n, share"),
        (["lm", "n=many"], "lm n=many: expected a number, as 10"),
        (["terrain", "lm", "n="], "lm n=: expected a number, as 10"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line_before_anything_runs(
    command: SimpleNamespace, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(words) == 2
    assert capsys.readouterr().err == told + "\n"
    assert command.called == []
