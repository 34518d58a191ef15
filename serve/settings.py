"""What an operator may set: the typed arguments of `serve run serve.config name=value …`."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

TOKEN_VARIABLE, TOKENS_VARIABLE = "ADAMATCH_TOKEN", "ADAMATCH_TOKENS"
MEGABYTE = 1 << 20


class Settings(BaseModel):
    """Arguments of the application; every one has a default that suits a laptop."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(default="runs/phantom", description="artifacts of a finished pipeline, a local folder or s3://…")
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="device of every model")
    gpus_per_replica: float = Field(default=0.0, ge=0, description="share of a GPU that each model's replica reserves")
    threads: int = Field(default=1, ge=1, description="CPU threads of each replica")
    batch: int = Field(default=16, ge=1, description="most requests that go through a model together")
    max_requests: int = Field(
        default=64, ge=1, description="requests at work in an ingress replica; more are told to wait"
    )
    timeout_s: float = Field(default=120.0, gt=0, description="longest time an answer may take")
    decode_timeout_s: float = Field(default=20.0, gt=0, description="longest time the decoding of an upload may take")
    max_upload_mb: int = Field(default=32, ge=1, description="largest request body")
    max_megapixels: int = Field(default=50, ge=1, description="largest image; its size is read before it is decoded")
    max_report_chars: int = Field(default=4000, ge=1, description="longest report")
    index_split: str = Field(
        default="test", pattern="^(train|validate|test)$", description="split that /v1/retrieve searches"
    )
    index_studies: int = Field(default=256, ge=0, description="most studies in that index (0: no retrieval)")
    token: SecretStr = Field(default=SecretStr(""), description="bearer token; better set as ADAMATCH_TOKEN")
    tokens: SecretStr = Field(
        default=SecretStr(""), description="several, as 'NAME=TOKEN NAME=TOKEN …'; better set as ADAMATCH_TOKENS"
    )
    requests_per_minute: int = Field(
        default=0, ge=0, description="most requests of a token to the models, in an ingress replica (0: any number)"
    )
    archives: str = Field(
        default="",
        description="DICOMweb roots, separated by commas, whose studies /v1/report may name; no other is read",
    )

    @property
    def max_body(self) -> int:
        """Largest request body, bytes."""
        return self.max_upload_mb * MEGABYTE

    @property
    def max_pixels(self) -> int:
        """Largest image, pixels."""
        return self.max_megapixels * 1_000_000


def resolve(settings: Settings) -> Settings:
    """Settings that mean the same in any process: an absolute root, and the tokens of this process's environment."""
    root = settings.root if "://" in settings.root else str(Path(settings.root).resolve())
    token = settings.token.get_secret_value() or os.environ.get(TOKEN_VARIABLE, "")
    tokens = settings.tokens.get_secret_value() or os.environ.get(TOKENS_VARIABLE, "")
    return settings.model_copy(update={"root": root, "token": SecretStr(token), "tokens": SecretStr(tokens)})


def without_tokens(settings: Settings) -> Settings:
    """The same settings for those who need not know the tokens."""
    return settings.model_copy(update={"token": SecretStr(""), "tokens": SecretStr("")})
