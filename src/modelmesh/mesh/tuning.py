"""The constants of behaviour, each with its reason. Not settings: the right values do not depend on the user."""

from __future__ import annotations

from dataclasses import dataclass

from modelmesh.policy.backoff import PERMANENT_S


@dataclass(frozen=True, slots=True)
class Tuning:
    """Tests and the simulator shorten some of them."""

    tick_s: float = 0.25
    """Usage is read and waiting re-assessed this often: a rate older than this changes no eviction."""
    look_s: float = 0.08
    """Copies that are busy are looked at this often where there are other instances: a model suddenly in demand has another copy
    asked for within 200 ms."""
    spare_s: float = 60.0
    """A copy that others do without stays for this long, and for ten load times at least."""
    usage_fresh_s: float = 0.05
    """An eviction reads usage anew when the last reading is older, so that what is in flight is known."""
    retire_timeout_s: float = 3.0
    """How long a victim may take to finish its requests before another is chosen."""
    retire_answer_s: float = 5.0
    """Beyond the timeout, the data plane's answer is given up after this."""
    estimate_timeout_s: float = 10.0
    estimates_max: int = 16
    """Estimates under way at once; they are cheap, a burst of thousands is not."""
    unload_timeout_s: float = 30.0
    unload_retry_s: float = 1.0
    """First pause after a failed unload; doubles up to a minute. The bytes stay charged meanwhile."""
    confirm_timeout_s: float = 5.0
    """How long the store may take to confirm that a name is unknown."""
    unknown_cache_s: float = 1.0
    """A refused name is remembered this long; a registration in another process shows after it."""
    failure_cache_s: float = 1.0
    """The data plane answers for a failed model on its own this long, then asks again."""
    failure_stands_s: float = PERMANENT_S
    """A bad artefact is looked at again after this. (The one constant that users of the predecessor set.)"""
    model_series_max: int = 0
    """Models with histograms of their own. (Opted into by users of the predecessor's per-model metrics.)"""
    set_aside_s: float = 3.0
    """A load that held models or stray memory keep out is refused after this: both often end by themselves."""
    lookahead: int = 16
    """Queued loads considered for passing a head that waits for memory."""
    announce_max: int = 256
    """With more models queued, a new one's place is looked at in the next tick only: it costs a look at all."""
    announce_step_s: float = 0.05
    announce_step_share: float = 0.1
    """A time of readiness is told again when it moved by more than both, the share being of the time until then."""
    queue_max: int = 20_000
    """Models that may wait for a load."""
    asked_patience_s: float = 10.0
    """A load that was asked for counts as urgent after this, so that urgent ones cannot starve it."""
    names_max: int = 100_000
    """Names the data plane is told; the oldest is forgotten beyond, and asked for again when needed."""
    histories_max: int = 100_000
    """Uses remembered of models that are not loaded."""
    failures_max: int = 10_000
