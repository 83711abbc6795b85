from __future__ import annotations

from types import SimpleNamespace

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from wrenn_sandbox.core.errors import Exhausted
from wrenn_sandbox.hostagent.service.errors import ErrorTranslator, translated
from wrenn_sandbox.rpc.errors import from_connect

CONTEXT = SimpleNamespace(method=SimpleNamespace(name="Exec"))


def test_ours_keep_class_slug_and_words() -> None:
    for error in (Exhausted("no room", retry_after_s=3), ExceptionGroup("g", [Exhausted("no room", retry_after_s=3)])):
        back = from_connect(translated(error, "Exec"))
        assert isinstance(back, Exhausted)
        assert (back.slug, back.message, back.retry_after_s) == ("host_full", "no room", 3)


def test_the_librarys_own_pass() -> None:
    error = ConnectError(Code.CANCELED, "gone")
    assert translated(error, "Exec") is error


def test_anything_else_becomes_a_reference() -> None:
    error = translated(KeyError("secret detail"), "Exec")
    assert error.code is Code.INTERNAL and "reference" in error.message and "secret" not in error.message


def test_every_kind_of_call_is_translated(run) -> None:
    closed = []

    async def failing(request, ctx):
        raise Exhausted("no room")

    async def failing_stream(request, ctx):
        try:
            yield 1
            raise Exhausted("no room")
        finally:
            closed.append(True)

    async def work() -> None:
        translator = ErrorTranslator()
        for call in (translator.intercept_unary, translator.intercept_client_stream):
            with pytest.raises(ConnectError) as failed:
                await call(failing, None, CONTEXT)
            assert failed.value.code is Code.RESOURCE_EXHAUSTED
        seen = []
        with pytest.raises(ConnectError):
            async for answer in translator.intercept_server_stream(failing_stream, None, CONTEXT):
                seen.append(answer)
        assert seen == [1] and closed == [True]
        left = translator.intercept_server_stream(failing_stream, None, CONTEXT)
        await anext(left)
        await left.aclose()
        assert closed == [True, True], "leaving closes the handler too"

    run(work)
