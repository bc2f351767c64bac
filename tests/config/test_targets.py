import re

import pytest

from ofq.config.targets import Targets
from ofq.errors import UserError


@pytest.fixture
def two_studies(checkout):
    """A checkout whose site builds one of its two studies."""
    (checkout / "config/studies/other.yaml").write_text("extends: tiny\nseeds: [7]\n")
    return checkout


def reports(files):
    return {found[1] for name in files if (found := re.search(r"reports/(\w+)/index", name))}


def test_site_s_studies_are_built_when_none_is_named(two_studies):
    assert reports(Targets(two_studies).unnamed_studies()) == {"tiny"}


def test_a_profile_may_name_others(two_studies):
    assert reports(Targets(two_studies, "other").unnamed_studies()) == {"other"}
    assert reports(Targets(two_studies, "other,tiny").unnamed_studies()) == {"other", "tiny"}


def test_unknown_study_of_a_profile_is_named(two_studies):
    with pytest.raises(UserError, match=r"studies=othr: unknown study 'othr' \(did you mean"):
        Targets(two_studies, "othr")


def test_report_depends_on_what_its_study_extends_and_on_methods(two_studies):
    files = [name.split("config/")[1] for name in Targets(two_studies).configs("other")]
    assert files[:2] == ["studies/other.yaml", "studies/tiny.yaml"]
    assert all(name.startswith("methods/") for name in files[2:])
    assert len(files) > 2


def test_mistake_in_an_unnamed_study_shows_only_if_no_other_is_named(two_studies):
    (two_studies / "config/studies/other.yaml").write_text("extends: tiny\nsedes: [7]\n")
    targets = Targets(two_studies, "other")
    with pytest.raises(UserError, match="sedes"):
        targets.check(["--cores", "2"])
    targets.check(["--cores", "2", "tiny"])


@pytest.mark.parametrize("key", ["results", "reports"])
def test_folder_with_braces_is_refused_since_snakemake_has_wildcards(checkout, key):
    (checkout / "config/config.yaml").write_text(f"studies: [tiny]\n{key}: 'a/{{x}}'\n")
    with pytest.raises(UserError, match=f"config.yaml: key '{key}' is .*wildcards"):
        Targets(checkout)
