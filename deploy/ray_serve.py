"""The fleet under Ray Serve: ``serve run deploy.ray_serve:application``; see docs/ray-serve.md.

What a replica and the ingress do is set by the environment, as for a standalone server; on what they run by
the arguments; how many replicas there are by ``autoscaling_config`` in a Serve config file.
"""

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

import settings
from deploy.rayserve.ingress import Ingress
from deploy.rayserve.replica import Replica
from deploy.rayserve.routing import HoldsTheWeights

HTTP_REQUESTS = 1000  # open at once in one ingress, as connections in a standalone server


class Fleet(BaseModel):
    """``args`` of the application. gpus, cpus: of each replica; a replica drives one device."""

    model_config = ConfigDict(extra="forbid")

    gpus: float = Field(1, ge=0, le=1)
    cpus: float = Field(1, gt=0)
    ingresses: int = Field(1, ge=1)
    ingress_cpus: float = Field(1, gt=0)


def application(fleet: Fleet) -> Application:
    """Raises ``settings.BadSettings``."""
    config = settings.load()
    batch = config.batch_size
    replicas = serve.deployment(
        Replica,
        name="Replica",
        # One batch runs and the next one waits beside it: with fewer, every second batch is half full,
        # and with more, requests wait where no other replica can take them.
        max_ongoing_requests=2 * batch,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 8,
            # Running and queued requests, those that wait before all replicas included, for each replica.
            "target_ongoing_requests": batch,
            "upscale_delay_s": 5,
            "downscale_delay_s": 300,  # weights take long to load
        },
        request_router_config={
            "request_router_class": HoldsTheWeights,
            "request_routing_stats_period_s": 1,
            # How soon a place that came free is seen; two batches deep, a replica does not run dry meanwhile.
            "initial_backoff_s": 0.01,
            "max_backoff_s": 0.1,
        },
        ray_actor_options={"num_gpus": fleet.gpus, "num_cpus": fleet.cpus},
        graceful_shutdown_timeout_s=config.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=10,
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=fleet.ingresses,
        max_ongoing_requests=HTTP_REQUESTS,
        ray_actor_options={"num_cpus": fleet.ingress_cpus},
        # After the replicas' own, so that what they finish can still be handed on.
        graceful_shutdown_timeout_s=config.drain_seconds + 10,
        graceful_shutdown_wait_loop_s=0.5,
    )
    return ingress.bind(replicas.bind())
