import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", (REPO / "docs" / "compared_with_zoobot.md").read_text())))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_test_that_the_documentation_names_is_there(file, test):
    assert f"def {test}(" in (REPO / "tests" / file).read_text()


def test_documentation_links_to_what_is_there():
    for page in [REPO / "README.md", *(REPO / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
