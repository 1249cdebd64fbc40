"""The JSON of the admin API: bodies in, answers out. Documented in `docs/admin-api.md`; stable: fields are added, never
renamed or removed. Times are seconds since the Unix epoch and end in `_unix_s`; sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from modelmesh.journal import Entry
from modelmesh.mesh.control import Page, Registration
from modelmesh.mesh.recollection import Happened
from modelmesh.mesh.views import CanaryView, CopyView, ModelView, SideView, State, VModelView
from modelmesh.registry import records
from modelmesh.registry.keep import PRIORITY_MAX, PRIORITY_MIN, KeepChange

FORCE: Final = "Register it also when no runtime here serves the type."
DAYS_S: Final = 30 * 86_400
UNCHANGED: Final = "Null: as it is, at first the default."


class Answer(BaseModel):
    """What is answered. Built from our own values, so it is not validated again."""


class Body(BaseModel):
    """What is asked. Unknown fields are refused: they can only be mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Failure(Answer):
    """A standing load failure: no new try before `expires_unix_s`."""

    reason: str
    code: str = Field(description="Name of the gRPC code.")
    at_unix_s: float
    expires_unix_s: float
    permanent: bool = Field(description="The artefact itself is bad.")
    count: int


class Copy(Answer):
    """A copy of a model in one instance, or a failure to make one."""

    instance: str
    state: State = Field(
        description="queued, loading, loaded or failed; others' queued copies are told as loading."
    )
    size_bytes: int = Field(description="0 until it is loaded.")
    requests_per_s: float = Field(description="The expected rate of this copy.")
    last_used_unix_s: float | None = Field(description="Null: never.")
    at_unix_s: float | None = Field(
        description="When it was wanted, or failed; null: another instance, which does not tell."
    )
    reason: str = Field(description="Why it failed, else empty.")

    @classmethod
    def of(cls, view: CopyView) -> Copy:
        return cls.model_construct(
            instance=view.instance,
            state=view.state,
            size_bytes=view.size_bytes,
            requests_per_s=view.requests_per_s,
            last_used_unix_s=view.last_used_wall_s or None,
            at_unix_s=view.at_wall_s or None,
            reason=view.reason,
        )


class Model(Answer):
    """A registered model, in the whole mesh. Totals, replicas and what is in flight or waits are of the instance that answers."""

    id: str
    names: Sequence[str] = Field(description="The vmodels that point at it.")
    type: str
    path: str
    state: State = Field(description="Of its best copy.")
    size_bytes: int = Field(description="In memory; 0 when unknown.")
    size_measured: bool
    load_s: float = Field(description="Learned duration of a load; 0 when unknown.")
    requests_per_s: float = Field(description="The expected rate, of all copies.")
    requests_total: int
    last_used_unix_s: float | None = Field(description="Null: never.")
    loads_total: int
    replicas: int
    in_flight: int
    waiting: int
    pinned_by: str = Field(description="Why it is held against eviction, else empty.")
    failure: Failure | None = Field(description="The one of this instance, else the newest elsewhere.")
    min_copies: int = Field(description="So many are kept loaded, as far as there are instances.")
    max_copies: int = Field(description="More are not made; 0: no bound.")
    pin: bool = Field(description="Once loaded, it is not evicted.")
    priority: float = Field(description="How much its waiting counts; 1: as of any other.")
    copies: Sequence[Copy] = Field(description="This instance's first.")

    @classmethod
    def of(cls, view: ModelView) -> Model:
        failure = view.failure and Failure.model_construct(
            reason=view.failure.reason,
            code=view.failure.code.name,
            at_unix_s=view.failure.at_wall_s,
            expires_unix_s=view.failure.expires_wall_s,
            permanent=view.failure.permanent,
            count=view.failure.count,
        )
        return cls.model_construct(
            id=view.id,
            names=list(view.names),
            type=view.type,
            path=view.path,
            state=view.state,
            size_bytes=view.size_bytes,
            size_measured=view.size_measured,
            load_s=view.load_s,
            requests_per_s=view.requests_per_s,
            requests_total=view.requests_total,
            last_used_unix_s=view.last_used_wall_s or None,
            loads_total=view.loads_total,
            replicas=view.replicas,
            in_flight=view.in_flight,
            waiting=view.waiting,
            pinned_by=view.pinned_by,
            failure=failure,
            min_copies=view.keep.min_copies,
            max_copies=view.keep.max_copies,
            pin=view.keep.pin,
            priority=view.keep.priority,
            copies=[Copy.of(copy) for copy in view.copies],
        )


class Models(Answer):
    """A page of models. The next page starts with `after=<next_after>`; empty at the end."""

    models: Sequence[Model]
    next_after: str
    total: int = Field(description="All that match, on all pages.")

    @classmethod
    def of(cls, page: Page) -> Models:
        return cls.model_construct(
            models=[Model.of(view) for view in page.models], next_after=page.next_after, total=page.total
        )


class KeepModel(Body):
    """How a model is kept. What is not given, or null, stays as it is."""

    min_copies: int | None = Field(
        None, description=f"Keep so many loaded, as far as there are instances (0). {UNCHANGED}"
    )
    max_copies: int | None = Field(None, description=f"Make no more; 0: no bound (0). {UNCHANGED}")
    pin: bool | None = Field(None, description=f"Do not evict it once it is loaded (false). {UNCHANGED}")
    priority: float | None = Field(
        None,
        description=f"A second of waiting for it counts as so many of others', {PRIORITY_MIN:g} to {PRIORITY_MAX:g} (1). "
        + UNCHANGED,
    )

    def change(self) -> KeepChange:
        return KeepChange(self.min_copies, self.max_copies, self.pin, self.priority)


class RegisterModel(KeepModel):
    """A model to register under the id in the path."""

    type: str
    path: str = ""
    key: str = ""
    load: bool = Field(False, description="Start loading it at once.")
    wait: bool = Field(False, description="With `load`: answer when the load is done or has failed.")
    force: bool = Field(False, description=FORCE)


class BatchItem(KeepModel):
    """One registration of a batch."""

    id: str
    type: str
    path: str = ""
    key: str = ""
    force: bool = Field(False, description=FORCE)

    def registration(self) -> Registration:
        return Registration(self.id, self.type, self.path, self.key, keep=self.change())


class Problem(Answer):
    """What went wrong."""

    code: str = Field(description="Name of the gRPC code.")
    message: str
    model: str = Field(description="Empty when no model is concerned.")
    retry_after_s: float | None


class Error(Answer):
    """Every answer that is not a success."""

    error: Problem


class BatchResult(Answer):
    """The answer to one registration of a batch."""

    id: str
    error: Problem | None = Field(description="Null: registered.")


class BatchAnswer(Answer):
    """One result per registration, in order."""

    results: Sequence[BatchResult]
    registered: int
    failed: int


class CanarySide(Answer):
    """What happened to the requests of one model since a trial began, by whatever name they were asked for, at all instances."""

    requests: int
    errors: int
    execution_s: float = Field(description="Of one, on average, as its server reports; 0 when it does not.")

    @classmethod
    def of(cls, side: SideView | None) -> CanarySide | None:
        if side is None:
            return None
        return cls.model_construct(requests=side.requests, errors=side.errors, execution_s=side.execution_s)


class Canary(Answer):
    """A target that is tried out on a share of the requests."""

    share: float = Field(description="0 to 1")
    for_s: float = Field(description="How long it is tried, at least; 0: until it had its requests.")
    requests: int = Field(description="The least it must have served.")
    slower_max: float = Field(
        description="How many times longer than the active model it may take for a request; 0: not looked at."
    )
    since_unix_s: float = Field(description="When its trial began; 0: it is not loaded for it yet.")
    active: CanarySide | None = Field(description="Null when it is not on trial, as `target`.")
    target: CanarySide | None
    outlook: str = Field(description="How it stands, in a sentence; empty when it is not on trial.")

    @classmethod
    def of(cls, view: CanaryView | None) -> Canary | None:
        if view is None:
            return None
        return cls.model_construct(
            share=view.share,
            for_s=view.for_s,
            requests=view.requests,
            slower_max=view.slower_max,
            since_unix_s=view.since_wall_s,
            active=CanarySide.of(view.active),
            target=CanarySide.of(view.target),
            outlook=view.outlook,
        )


class VModel(Answer):
    """A stable name. Settled when `target` equals `active`."""

    id: str
    owner: str
    active: str
    target: str
    target_failed: bool
    reason: str = Field(description="Why the target failed, else empty.")
    canary: Canary | None = Field(
        None, description="While the target is tried out, and after that failed; else null."
    )

    @classmethod
    def of(cls, view: VModelView) -> VModel:
        return cls.model_construct(
            id=view.id,
            owner=view.owner,
            active=view.active,
            target=view.target,
            target_failed=view.target_failed,
            reason=view.reason,
            canary=Canary.of(view.canary),
        )


class VModels(Answer):
    """A page of vmodels, by id. The next page starts with `after=<next_after>`; empty at the end."""

    vmodels: Sequence[VModel]
    next_after: str


class SetCanary(Body):
    """Try a target out on a share of the requests first. It takes over when no more of its requests fail than of the active
    model's, else it is given up."""

    share: float = Field(gt=0, le=1, description="0 to 1")
    for_s: float = Field(
        600.0, ge=0, le=DAYS_S, description="How long, at least; 0: until it had its requests."
    )
    requests: int = Field(50, ge=0, description="The least it must have served.")
    slower_max: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="How many times longer than the active model it may take for a request, 1 or more; 0: as long as it likes.",
    )

    def terms(self) -> records.Canary:
        return records.Canary(self.share, round(self.for_s * 1000), self.requests, self.slower_max)


class SetVModel(Body):
    """Where a vmodel shall point. With `type` the target is registered as well, or must be registered just so."""

    target: str
    type: str = ""
    path: str = ""
    key: str = ""
    auto_delete_target: bool = Field(
        False, description="Unregister the target when no vmodel points at it any more."
    )
    load: bool = Field(False, description="Load the target even when the active model is not loaded.")
    wait: bool = Field(
        False, description="Answer when the switch is done or has failed, or the canary is on trial."
    )
    force: bool = Field(False, description="Switch at once.")
    expected_target: str = Field("", description="Refuse unless this is the target now.")
    owner: str = ""
    update_only: bool = Field(False, description="Refuse when the vmodel does not exist.")
    canary: SetCanary | None = Field(
        None,
        description="Null: the target takes over once it is loaded. A target that is tried out already goes on by these terms; "
        "one that failed is tried again.",
    )


class JournalEntry(Answer):
    """One decision, with the numbers it was taken on."""

    sequence: int
    at_unix_s: float
    did: str
    model: str = Field(description="Empty: about the instance.")
    reason: str
    numbers: Mapping[str, float | int | str]

    @classmethod
    def of(cls, entry: Entry) -> JournalEntry:
        return cls.model_construct(
            sequence=entry.sequence,
            at_unix_s=entry.wall_s,
            did=str(entry.did),
            model=entry.model,
            reason=entry.reason,
            numbers=dict(entry.numbers),
        )


class JournalPage(Answer):
    """Entries after `since`, oldest first. The next page starts with `since=<next_since>`."""

    entries: Sequence[JournalEntry]
    next_since: int


class StoryEntry(JournalEntry):
    """A decision of one instance of the mesh. `sequence` counts within that instance."""

    instance: str

    @classmethod
    def told(cls, happened: Happened) -> StoryEntry:
        entry = happened.entry
        return cls.model_construct(
            sequence=entry.sequence,
            at_unix_s=entry.wall_s,
            did=entry.did,
            model=entry.model,
            reason=entry.reason,
            numbers=dict(entry.numbers),
            instance=happened.instance,
        )


class Unanswered(Answer):
    """An instance that could not be asked."""

    instance: str
    reason: str


class Story(Answer):
    """What happened to a model and why, in all instances, by time. Their clocks may differ."""

    name: str = Field(description="What was asked for.")
    model: Model | None = Field(description="Null when it is not registered any more, or never was.")
    vmodel: VModel | None = Field(description="The vmodel of that name, if there is one.")
    now: str = Field(description="How it stands, in one sentence.")
    entries: Sequence[StoryEntry]
    answered: Sequence[str] = Field(description="The instances whose journals are in it.")
    unanswered: Sequence[Unanswered] = Field(description="Instances whose part is missing.")
    cut: bool = Field(description="There is more, which is older.")


def described(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of one of these, as used by the OpenAPI document."""
    return kind.model_json_schema(ref_template="#/components/schemas/{model}")
