from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Unavailable
from wrenn_sandbox.image.debian import GuestApt, Mirror, mirror_from_targets, parse_depends, parse_uris

TARGETS = """\
http://mirror.example/debian/|trixie|Packages
http://mirror.example/debian/|trixie|DEP-11
http://other.example/nodejs/|nodistro|Packages
http://mirror.example/debian/|trixie-backports|Packages
http://mirror.example/debian-security/|trixie-security|Packages
"""


def test_the_hosts_mirrors_are_used_whatever_its_suite() -> None:
    mirror = mirror_from_targets(TARGETS, {})
    assert (mirror.archive, mirror.security) == (
        "http://mirror.example/debian/",
        "http://mirror.example/debian-security/",
    )
    suites = [line.split()[3] for line in mirror.sources().splitlines()]
    assert suites == ["bookworm", "bookworm-updates", "bookworm-security"]


def test_the_environment_comes_first() -> None:
    variables = {"WRENN_DEBIAN_MIRROR": "http://a.example/d", "WRENN_DEBIAN_SECURITY_MIRROR": "http://a.example/s"}
    mirror = mirror_from_targets(TARGETS, variables)
    assert (mirror.archive, mirror.security) == ("http://a.example/d", "http://a.example/s")


def test_without_a_security_archive_there_is_no_such_line() -> None:
    mirror = mirror_from_targets("http://m.example/|bookworm|Packages\n", {})
    assert "security" not in mirror.sources()


@pytest.mark.parametrize("targets", ["", "http://m.example/|nodistro|Packages\n", "nonsense\n|\n"])
def test_no_mirror_says_what_to_set(targets: str) -> None:
    with pytest.raises(Unavailable, match="WRENN_DEBIAN_MIRROR") as caught:
        mirror_from_targets(targets, {})
    assert caught.value.slug == "no_debian_mirror"


def test_uri_lines_give_sorted_file_names() -> None:
    output = (
        "Reading lists\n'http://m/b.deb' b_1%3a2_amd64.deb 10 SHA256:00\n'http://m/a.deb' a_1_all.deb 5 SHA256:11\n"
    )
    assert parse_uris(output) == ("a_1_all.deb", "b_1%3a2_amd64.deb")


def test_depends_are_the_plain_names_only() -> None:
    output = "linux-image-cloud\n  Depends: linux-image-6.1.0-1\n  Recommends: x\n |Depends: y\n  Depends: <virtual>\n"
    assert parse_depends(output) == ("linux-image-6.1.0-1", "y")


def test_the_private_apt_touches_nothing_of_the_hosts(tmp_path: Path) -> None:
    apt = GuestApt(tmp_path, Mirror("http://m.example/", ""))
    options = dict(word.split("=", 1) for word in apt._options() if word != "-o")
    for name in ("Dir::State", "Dir::State::status", "Dir::Cache", "Dir::Etc::sourcelist"):
        assert options[name].startswith(str(tmp_path))
    assert options["Dir::Etc::sourceparts"] == "-"  # apt.conf(5): no folder
