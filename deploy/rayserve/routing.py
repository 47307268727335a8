"""``HoldsTheWeights``: Serve's router that prefers a replica in whose memory the model is.

``serve.multiplexed`` would keep a count of models of its own; ours leave by the memory they take, so each
replica is asked what it really holds.
"""

import random
import time

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from deploy.rayserve.ranking import rank

SPILL_SECONDS = 2.0


class HoldsTheWeights(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """spill_seconds: for how long a request waits for room where its model is, before it goes where the
    model must be loaded first. Without anybody who holds it, it goes at once to who holds least."""

    def initialize_state(self, spill_seconds: float = SPILL_SECONDS) -> None:
        self._spill_seconds = spill_seconds

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return rank(dict.fromkeys(candidate_replicas, ()), "", 0.0, 0.0, random.sample)
        pending_request.routing_context.should_backoff = True
        return rank(
            {replica: tuple(replica.routing_stats.get("models", ())) for replica in candidate_replicas},
            pending_request.metadata.multiplexed_model_id,
            time.time() - pending_request.created_at,
            self._spill_seconds,
            random.sample,
        )
