"""What a control plane is told when it starts: flags, or environment variables named WRENN_<FLAG>."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from wrenn_sandbox.core.errors import Invalid


class Settings(BaseSettings):
    """One control plane. A flag wins over its environment variable."""

    model_config = SettingsConfigDict(env_prefix="WRENN_", extra="ignore")

    database_url: str = Field("sqlite:////var/lib/wrenn/wrenn.db", description="sqlite:///PATH or postgresql://...")
    listen: str = Field("127.0.0.1:8080", description="HOST:PORT; port 0 = any free one")
    agent_url: str = Field("http://127.0.0.1:50051", description="where the host agent answers")
    agent_token_file: Path = Field(Path("/var/lib/wrenn/agent.token"), description="the token shared with the agent")
    ready_file: Path | None = Field(None, description="written when the API answers")
    domain: str = Field("localhost", description="domain of the names {port}-{sandbox}.DOMAIN")
    bootstrap_key_file: Path | None = Field(None, description="where the first API key is written")
    log_level: str = Field("info", description="debug, info, warning or error")

    @field_validator("listen")
    @classmethod
    def _has_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ValueError("must be HOST:PORT")
        return value

    @field_validator("agent_url")
    @classmethod
    def _without_slash(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @classmethod
    def from_flags(cls, arguments: Sequence[str]) -> Self:
        """Read the command line. Raises Invalid (``invalid_option``)."""
        parser = argparse.ArgumentParser(prog="wrenn_sandbox.controlplane", description=__doc__)
        for name, field in cls.model_fields.items():
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, help=field.description)
        given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            flag = str(first["loc"][0]).replace("_", "-")
            raise Invalid(f"--{flag}: {first['msg'].removeprefix('Value error, ')}.", slug="invalid_option") from error

    def agent_token(self) -> str:
        """The token shared with the host agent. Raises Invalid (``invalid_option``)."""
        try:
            return self.agent_token_file.read_text().strip()
        except OSError as error:
            raise Invalid(f"--agent-token-file: {error.strerror}: {self.agent_token_file}.", slug="invalid_option")
