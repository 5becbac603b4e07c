"""What `help` shows of the public functions of training: every argument explained in place."""

import inspect
import re

import pytest

import maury
from maury.training.comparison import compare
from maury.training.distillation import distil
from maury.training.transfer import transfer


@pytest.mark.parametrize("function", [maury.train, transfer, distil, compare])
def test_help_explains_every_argument_itself(function):
    text = inspect.getdoc(function).split("Parameters\n----------\n")[1]
    explained = {}
    for entry in re.split(r"\n(?=\S)", re.split(r"\n\n(?=\w+\n---)", text)[0]):
        names, _, rest = entry.partition("\n")
        for name in names.partition(" :")[0].split(","):
            explained[name.strip()] = rest.strip()
    for name in inspect.signature(function).parameters:
        assert len(explained.get(name, "")) > 10, name
        assert not re.match(r"(As|See) (of )?`", explained[name]), name
