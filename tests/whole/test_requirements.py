"""What is said of the packages that an installation has."""

import json
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2] / "requirements"
# The project itself, and what builds packages, which no constraint pins.
UNPINNED = {"maury", "setuptools"}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(listed):
    """Names of all packages of an installation without extras, as far as its versions are listed.

    Another version needs others: a build of torch for an accelerator, say, its libraries.
    """
    found, left = set(), ["maury"]
    while left:
        name = plain(left.pop())
        if name in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or []
            if name != "maury" and version(name) != listed.get(name, version(name)):
                continue
        except PackageNotFoundError:
            continue
        wanted = map(Requirement, lines)
        left += [w.name for w in wanted if not w.marker or w.marker.evaluate({"extra": ""})]
    return found


def test_the_bill_of_materials_is_that_of_the_constraints():
    bill = json.loads((ROOT / "sbom.json").read_text("utf-8"))
    listed = {plain(one["name"]): one["version"] for one in bill["components"]}
    lines = (ROOT / "constraints.txt").read_text("utf-8")
    pinned = {plain(k): v for k, v in re.findall(r"^([\w.\-]+)==(\S+)", lines, re.MULTILINE)}
    # The builds of torch for processors have a local version.
    versions = {k: v.split("+")[0] for k, v in listed.items() if k not in UNPINNED}
    assert versions == {k: pinned.get(k) for k in versions}
    assert len(versions) > 50
    assert needed(listed) - UNPINNED <= set(listed)


def test_the_bill_of_materials_names_no_place_of_a_machine():
    text = (ROOT / "sbom.json").read_text("utf-8")
    assert "file:" not in text
    assert "timestamp" not in json.loads(text)["metadata"]
