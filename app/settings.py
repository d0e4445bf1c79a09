"""Every knob of the server, read once in `app.__main__` and passed down; no other module reads the environment.

Environment names are `SLIMSERVE_` plus the field's name in capitals; docs/settings.md lists them all.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "SLIMSERVE_"
# Read by the command line's clients and by the tests, not by the server.
_NAMES_OF_CLIENTS = frozenset({"url", "api_key"})
_PREFIX_OF_TESTS = "test_"


def default_data_dir() -> Path:
    """Where state lives unless told otherwise: the XDG data folder of the user."""
    return Path.home() / ".local" / "share" / "slimserve"


class UnknownSetting(ValueError):
    """An environment variable looks like one of ours and is none."""


class _StrictEnvironment(EnvSettingsSource):
    """The environment, in which a misspelt name is an error and not a knob that silently does nothing."""

    def __call__(self) -> dict[str, Any]:
        prefix = ENV_PREFIX.lower()
        ours = {name.removeprefix(prefix) for name in self.env_vars if name.startswith(prefix)}
        unknown = sorted(
            name
            for name in ours - set(self.settings_cls.model_fields) - _NAMES_OF_CLIENTS
            if not name.startswith(_PREFIX_OF_TESTS)
        )
        if unknown:
            names = ", ".join(f"{ENV_PREFIX}{name.upper()}" for name in unknown)
            raise UnknownSetting(f"{names}: no such setting; docs/settings.md lists them all")
        return super().__call__()


class Settings(BaseSettings):
    """One field per knob: default, unit in the name, bounds."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 picks a free one.")
    data_dir: Path = Field(default_factory=default_data_dir, description="Folder of the database, bases and variants.")
    models_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Folders, separated by ':', below which local models may be loaded."
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field((), description="Keys, separated by ','; none means open.")
    inference_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Keys, separated by ',', that open the inference routes and nothing else."
    )
    key_requests_per_minute: int | None = Field(
        None, ge=1, le=1_000_000, description="Inference requests per minute and key; none sets no limit."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names that clients may call the server by, separated by ','; `*` is any."
    )
    insecure_no_auth: bool = Field(False, description="Allow a public address without keys.")
    device: str = Field("auto", description="Device of workers and jobs that name none: auto, cpu, cuda, cuda:N.")
    num_threads: int | None = Field(
        None, ge=1, le=1024, description="torch threads per worker, while no other computes; none lets torch choose."
    )
    job_memory_bytes: int | None = Field(
        None, ge=2**29, le=2**50, description="Memory that a compression may take; none sets no limit."
    )
    auto_measure: str = Field(
        "all",
        pattern="^(off|quality|speed|all)$",
        description="Measured of each new variant: off, quality, speed, all.",
    )
    memory_bytes: int | None = Field(
        None, ge=2**26, le=2**50, description="Memory that workers may hold in all, per device; none: what is free."
    )
    autoload: bool = Field(True, description="Load a registered variant that is not loaded when a request names it.")
    autoload_wait_s: float = Field(60, ge=0, le=3600, description="Longest wait of a request for a load.")
    idle_unload_s: float = Field(
        0, ge=0, le=2_592_000, description="Time without requests after which a variant is unloaded; 0 is never."
    )
    max_body_bytes: int = Field(4 * 2**20, ge=1024, le=2**30, description="Largest request body.")
    max_num_seqs: int = Field(64, ge=1, le=4096, description="Sequences that run at once, per variant.")
    max_queue: int = Field(256, ge=1, le=100_000, description="Requests admitted at once, per variant.")
    queue_timeout_s: float = Field(60, gt=0, le=3600, description="Longest wait for a place in a step.")
    request_timeout_s: float = Field(600, gt=0, le=86_400, description="Longest life of one request.")
    first_token_wait_s: float = Field(10, gt=0, le=120, description="Wait for a first token before the 200 is sent.")
    ping_interval_s: float = Field(15, gt=0, le=300, description="Silence after which a stream gets a comment ping.")
    step_timeout_s: float = Field(180, gt=0, le=3600, description="A busy worker without a step for this long is hung.")
    load_timeout_s: float = Field(300, gt=0, le=86_400, description="A loading worker without progress for this long.")
    drain_timeout_s: float = Field(30, ge=0, le=3600, description="Time that running requests get at a stop or unload.")
    strict_params: bool = Field(False, description="Refuse unknown body fields instead of naming them in a header.")
    metrics_compat: Literal["none", "vllm"] = Field(
        "none", description="Other names under which `/metrics` tells its numbers too: none or vllm."
    )
    enable_echo: bool = Field(False, description="Let clients load `echo`, a stand-in model for load tests.")
    echo_ttft_s: float = Field(0, ge=0, le=3600, description="Time that `echo` takes for a first token.")
    echo_itl_s: float = Field(0, ge=0, le=3600, description="Time that `echo` takes for every other token.")
    faults: str | None = Field(None, description="Failures on purpose in child processes, for tests.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level that is logged.")

    @field_validator("data_dir")
    @classmethod
    def _resolve(cls, folder: Path) -> Path:
        """Once and for all: children have other working directories, and clients see paths below it."""
        return folder.expanduser().resolve()

    @field_validator("models_dirs", mode="before")
    @classmethod
    def _split_folders(cls, value: object) -> object:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @property
    def has_keys(self) -> bool:
        """Whether a request needs a key."""
        return bool(self.api_keys or self.inference_keys)

    @field_validator("api_keys", "inference_keys", "allowed_hosts", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment; no files."""
        return init_settings, _StrictEnvironment(settings_cls)
