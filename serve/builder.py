"""`config`: settings in, application out. The names of the deployments are those that config.yaml scales."""

from typing import Any

import click
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from adamatch_ray.storage import Root
from serve.artifacts import check
from serve.protocol import ModelsResponse
from serve.settings import Settings, resolve, without_tokens
from serve.tokens import read_tokens

CPUS = 0.1
"""What a replica reserves: the models share the machine's cores, and two of those are enough for all of them."""


def config(settings: Settings) -> Application:
    """The application on the artifacts of `settings.root`.

    Raises click.ClickException, which `serve run` prints as one line, where artifacts are missing or do not fit.
    """
    settings = resolve(settings)
    try:
        read_tokens(settings)
        models = check(Root(settings.root))
    except (ValueError, OSError) as error:
        raise click.ClickException(" ".join(str(error).split())) from None
    return build(settings, models)


def build(settings: Settings, models: ModelsResponse) -> Application:
    """Bind the deployments to each other: one matcher, one VQ-GAN, and a language model for each direction."""
    from serve.app import Ingress
    from serve.deployments import ImageTokens, LanguageModel, Matcher

    queue = settings.max_requests
    worker: dict[str, Any] = {
        "max_ongoing_requests": max(queue, settings.batch),
        "max_queued_requests": 2 * queue,
        "ray_actor_options": {"num_cpus": CPUS, "num_gpus": settings.gpus_per_replica},
        "health_check_timeout_s": 60,
        "logging_config": {"enable_access_log": False},  # the ingress has a line for each request
    }

    def deploy(kind: type, name: str, *arguments: object, **options: Any) -> Application:
        return ray_serve.deployment(name=name, **{**worker, **options})(kind).bind(*arguments)

    public = without_tokens(settings)  # only the ingress needs to know them
    return deploy(
        Ingress,
        "Ingress",
        settings,
        models,
        deploy(Matcher, "Matcher", public),
        deploy(ImageTokens, "ImageTokens", public),
        deploy(LanguageModel, "ReportWriter", public),
        deploy(LanguageModel, "ImageDrawer", public),
        # The ingress itself says 429 at `max_requests`, with a reason; this is for what it has no time to refuse.
        max_ongoing_requests=4 * queue,
        max_queued_requests=4 * queue,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        ray_actor_options={"num_cpus": CPUS},
    )
