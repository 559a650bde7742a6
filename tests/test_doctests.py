"""The examples in docstrings give what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import fbmem_core

ROOT = Path(str(fbmem_core.__file__)).parent
MODULES = sorted(
    ".".join(["fbmem_core", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_show(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, attempted = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert attempted > 0 and failed == 0


def test_an_example_that_gives_something_else_fails():
    [example] = doctest.DocTestFinder().find(type("Wrong", (), {"__doc__": ">>> 1 + 1\n3"}), "Wrong", module=False)
    with pytest.raises(doctest.DocTestFailure):
        doctest.DebugRunner().run(example)
