import asyncio
from pathlib import Path

import pytest

from wrenn_sandbox.core.errors import Invalid, Unavailable
from wrenn_sandbox.image.build import Build, Options, build_all
from wrenn_sandbox.image.debian import GuestApt, Mirror
from wrenn_sandbox.image.recipe import Product, Recipe
from wrenn_sandbox.image.store import Made, Store


class Apt(GuestApt):
    """Candidates as a test wants them."""

    candidates: tuple[str, ...] = ("a_1.deb",)

    async def resolve(self, packages: object) -> tuple[str, ...]:
        return self.candidates


class Bench:
    """A store, a recipe whose runs are counted, and the lines shown."""

    def __init__(self, root: Path) -> None:
        self.store, self.lines, self.runs = Store(root), [], 0
        self.apt = Apt(root / "apt", Mirror("http://m.example/", ""))
        self.failure: Exception | None = None

    def recipe(self, key: str = "k", name: str = "tools") -> Recipe:
        return Recipe(name, "things", "making", key, ("a",), self._make)

    async def _make(self, scratch: Path) -> Product:
        self.runs += 1
        if self.failure:
            (scratch / "half").write_text("x")
            raise self.failure
        (scratch / "product").mkdir()
        (scratch / "product" / "file").write_text("x")
        return Product(scratch / "product", "d1", {"release": "6.1"})

    def follow(self, recipe: Recipe, options: Options | None = None) -> Made:
        return asyncio.run(Build(self.store, self.lines.append, options or Options(), self.apt).follow(recipe))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_same_inputs_are_built_once(bench: Bench) -> None:
    first = bench.follow(bench.recipe())
    assert bench.follow(bench.recipe()) == first
    assert bench.runs == 1
    assert (bench.store.root / "things" / "d1" / "file").read_text() == "x"
    assert [line.split()[1] for line in bench.lines] == ["…", "built", "current"]


def test_other_inputs_are_built_and_going_back_is_free(bench: Bench) -> None:
    for key in ("one", "two", "one"):
        bench.follow(bench.recipe(key))
    assert bench.runs == 2


def test_an_artefact_that_was_deleted_is_made_again(bench: Bench) -> None:
    bench.follow(bench.recipe())
    (bench.store.root / "things" / "d1" / "file").unlink()
    (bench.store.root / "things" / "d1").rmdir()
    bench.follow(bench.recipe())
    assert bench.runs == 2


def test_force_builds_all_or_the_one_named(bench: Bench) -> None:
    bench.follow(bench.recipe())
    bench.follow(bench.recipe(), Options(force=True))
    bench.follow(bench.recipe(), Options(force=True, only="tools"))
    bench.follow(bench.recipe(), Options(force=True, only="rootfs"))
    assert bench.runs == 3


def test_a_refresh_builds_only_when_there_are_newer_packages(bench: Bench) -> None:
    bench.follow(bench.recipe())
    bench.follow(bench.recipe(), Options(refresh=True))
    assert bench.runs == 1
    bench.apt.candidates = ("a_2.deb",)
    bench.follow(bench.recipe())  # without a refresh nobody looks
    assert bench.runs == 1
    bench.follow(bench.recipe(), Options(refresh=True))
    assert bench.runs == 2


def test_a_failed_step_says_so_and_leaves_nothing(bench: Bench) -> None:
    bench.failure = Unavailable("no gcc", slug="tool_missing")
    with pytest.raises(Unavailable):
        bench.follow(bench.recipe())
    assert bench.lines[-1].split()[:2] == ["tools", "failed"]
    assert list((bench.store.root / ".building").iterdir()) == []
    assert not (bench.store.root / "inputs").exists()


def test_a_cancelled_step_leaves_nothing(bench: Bench) -> None:
    async def cancelled() -> None:
        started = asyncio.Event()

        async def forever(scratch: Path) -> Product:
            (scratch / "half").write_text("x")
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

        recipe = Recipe("tools", "things", "making", "k", (), forever)
        build = Build(bench.store, bench.lines.append, Options(), bench.apt)
        task = asyncio.get_running_loop().create_task(build.follow(recipe))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert list((bench.store.root / ".building").iterdir()) == []


def test_an_unknown_step_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        asyncio.run(build_all(tmp_path / "images", print, only="kitchen"))
    assert caught.value.slug == "invalid_step"
    assert not (tmp_path / "images").exists()
