"""The composed system behind one URL: `serve run serve.config [root=runs/phantom] [device=cpu] …`."""

from serve.builder import config

__all__ = ["config"]
