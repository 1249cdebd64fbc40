from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FollowRequest(_message.Message):
    __slots__ = ("follower", "epoch", "sequence")
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    follower: str
    epoch: int
    sequence: int
    def __init__(self, follower: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("epoch", "sequence", "begins", "complete", "held", "failed", "load", "goodbye")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BEGINS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sequence: int
    begins: bool
    complete: bool
    held: _containers.RepeatedCompositeFieldContainer[Held]
    failed: _containers.RepeatedCompositeFieldContainer[Failed]
    load: Load
    goodbye: bool
    def __init__(self, epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., begins: _Optional[bool] = ..., complete: _Optional[bool] = ..., held: _Optional[_Iterable[_Union[Held, _Mapping]]] = ..., failed: _Optional[_Iterable[_Union[Failed, _Mapping]]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., goodbye: _Optional[bool] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("model", "loaded", "loading", "size_bytes", "load_ms", "rate_per_s", "last_used_wall_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_WALL_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    loaded: bool
    loading: bool
    size_bytes: int
    load_ms: int
    rate_per_s: float
    last_used_wall_ms: int
    def __init__(self, model: _Optional[str] = ..., loaded: _Optional[bool] = ..., loading: _Optional[bool] = ..., size_bytes: _Optional[int] = ..., load_ms: _Optional[int] = ..., rate_per_s: _Optional[float] = ..., last_used_wall_ms: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("model", "code", "message", "permanent", "expires_in_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    code: int
    message: str
    permanent: bool
    expires_in_ms: int
    def __init__(self, model: _Optional[str] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., permanent: _Optional[bool] = ..., expires_in_ms: _Optional[int] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("capacity_bytes", "free_bytes", "price", "rate_per_s", "busyness", "load_queue_s", "draining", "cordoned", "copies", "loads_running", "loads_queued", "loads_total", "evictions_total", "tallies")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    BUSYNESS_FIELD_NUMBER: _ClassVar[int]
    LOAD_QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    LOADS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    LOADS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    LOADS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TALLIES_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    free_bytes: int
    price: float
    rate_per_s: float
    busyness: float
    load_queue_s: float
    draining: bool
    cordoned: bool
    copies: int
    loads_running: int
    loads_queued: int
    loads_total: int
    evictions_total: int
    tallies: _containers.RepeatedCompositeFieldContainer[Tally]
    def __init__(self, capacity_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., price: _Optional[float] = ..., rate_per_s: _Optional[float] = ..., busyness: _Optional[float] = ..., load_queue_s: _Optional[float] = ..., draining: _Optional[bool] = ..., cordoned: _Optional[bool] = ..., copies: _Optional[int] = ..., loads_running: _Optional[int] = ..., loads_queued: _Optional[int] = ..., loads_total: _Optional[int] = ..., evictions_total: _Optional[int] = ..., tallies: _Optional[_Iterable[_Union[Tally, _Mapping]]] = ...) -> None: ...

class Tally(_message.Message):
    __slots__ = ("vmodel", "since_ms", "requests", "errors", "execution_ms", "canary_requests", "canary_errors", "canary_execution_ms")
    VMODEL_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_MS_FIELD_NUMBER: _ClassVar[int]
    CANARY_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CANARY_ERRORS_FIELD_NUMBER: _ClassVar[int]
    CANARY_EXECUTION_MS_FIELD_NUMBER: _ClassVar[int]
    vmodel: str
    since_ms: int
    requests: int
    errors: int
    execution_ms: int
    canary_requests: int
    canary_errors: int
    canary_execution_ms: int
    def __init__(self, vmodel: _Optional[str] = ..., since_ms: _Optional[int] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., execution_ms: _Optional[int] = ..., canary_requests: _Optional[int] = ..., canary_errors: _Optional[int] = ..., canary_execution_ms: _Optional[int] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("asker", "model", "need", "why", "rate_per_s", "last_used_wall_ms", "tried", "hops", "until_used", "suspicion", "copies", "worth_s", "execution_s")
    ASKER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NEED_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_WALL_MS_FIELD_NUMBER: _ClassVar[int]
    TRIED_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_USED_FIELD_NUMBER: _ClassVar[int]
    SUSPICION_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    WORTH_S_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_S_FIELD_NUMBER: _ClassVar[int]
    asker: str
    model: str
    need: int
    why: str
    rate_per_s: float
    last_used_wall_ms: int
    tried: _containers.RepeatedScalarFieldContainer[str]
    hops: int
    until_used: bool
    suspicion: bool
    copies: int
    worth_s: float
    execution_s: float
    def __init__(self, asker: _Optional[str] = ..., model: _Optional[str] = ..., need: _Optional[int] = ..., why: _Optional[str] = ..., rate_per_s: _Optional[float] = ..., last_used_wall_ms: _Optional[int] = ..., tried: _Optional[_Iterable[str]] = ..., hops: _Optional[int] = ..., until_used: _Optional[bool] = ..., suspicion: _Optional[bool] = ..., copies: _Optional[int] = ..., worth_s: _Optional[float] = ..., execution_s: _Optional[float] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("number", "deadline_ms", "provide", "load", "withdrawn")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    PROVIDE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    number: int
    deadline_ms: int
    provide: AskRequest
    load: AskRequest
    withdrawn: bool
    def __init__(self, number: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., provide: _Optional[_Union[AskRequest, _Mapping]] = ..., load: _Optional[_Union[AskRequest, _Mapping]] = ..., withdrawn: _Optional[bool] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("number", "provided", "refused")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PROVIDED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    number: int
    provided: Provided
    refused: Refused
    def __init__(self, number: _Optional[int] = ..., provided: _Optional[_Union[Provided, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("kind", "code", "message", "retry_after_s")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    kind: str
    code: int
    message: str
    retry_after_s: float
    def __init__(self, kind: _Optional[str] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class Provided(_message.Message):
    __slots__ = ("holder", "epoch", "sequence")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    holder: str
    epoch: int
    sequence: int
    def __init__(self, holder: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("asker", "model", "why")
    ASKER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    asker: str
    model: str
    why: str
    def __init__(self, asker: _Optional[str] = ..., model: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class UnloadReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RecallRequest(_message.Message):
    __slots__ = ("asker", "names", "limit")
    ASKER_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    asker: str
    names: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    def __init__(self, asker: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ...) -> None: ...

class RecallReply(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Remembered]
    def __init__(self, entries: _Optional[_Iterable[_Union[Remembered, _Mapping]]] = ...) -> None: ...

class Remembered(_message.Message):
    __slots__ = ("sequence", "wall_s", "did", "model", "reason", "numbers")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    DID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    wall_s: float
    did: str
    model: str
    reason: str
    numbers: _containers.RepeatedCompositeFieldContainer[Number]
    def __init__(self, sequence: _Optional[int] = ..., wall_s: _Optional[float] = ..., did: _Optional[str] = ..., model: _Optional[str] = ..., reason: _Optional[str] = ..., numbers: _Optional[_Iterable[_Union[Number, _Mapping]]] = ...) -> None: ...

class Number(_message.Message):
    __slots__ = ("name", "whole", "real", "text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    whole: int
    real: float
    text: str
    def __init__(self, name: _Optional[str] = ..., whole: _Optional[int] = ..., real: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class OrderRequest(_message.Message):
    __slots__ = ("asker", "order")
    ASKER_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    asker: str
    order: str
    def __init__(self, asker: _Optional[str] = ..., order: _Optional[str] = ...) -> None: ...

class OrderReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
