"""The mirror: idempotent, never back in time, never stopped by a broken record."""

from __future__ import annotations

import random
import sys

from modelmesh.registry.keep import Keep
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import ModelRecord, VModelRecord
from modelmesh.store.protocol import Change, Revision

ROOT = "mm/tas-runtime/svc/"


def model(id: str, revision: int, record: ModelRecord | None) -> Change:
    return Change(f"{ROOT}registry/{id}", None if record is None else record.encode(), Revision(revision))


def vmodel(id: str, revision: int, record: VModelRecord | None) -> Change:
    return Change(f"{ROOT}vmodels/{id}", None if record is None else record.encode(), Revision(revision))


def test_it_answers_what_it_was_fed() -> None:
    mirror = Mirror(ROOT)
    iris, wine = ModelRecord("sklearn", "/iris", references=1), ModelRecord("onnx", "/wine")
    changed = mirror.apply(
        [model("iris", 3, iris), model("wine", 4, wine), vmodel("v", 5, VModelRecord("iris", "iris"))], 5
    )
    assert changed.models == {"iris", "wine"}
    assert changed.vmodels == {"v"}
    assert mirror.model("iris") == iris
    assert mirror.model_at("wine") == (4, wine)
    assert mirror.model("absent") is None
    assert mirror.model_at("absent") == (0, None)
    assert mirror.vmodel("v") == VModelRecord("iris", "iris")
    assert mirror.names_of("iris") == ["v"]
    assert mirror.names_of("wine") == []
    assert (mirror.n_models, mirror.n_vmodels, mirror.revision) == (2, 1, 5)


def test_it_knows_of_which_models_copies_are_kept() -> None:
    mirror = Mirror(ROOT)
    kept, free = ModelRecord("onnx", keep=Keep(min_copies=1)), ModelRecord("onnx", keep=Keep(pin=True))
    mirror.apply([model("a", 1, kept), model("b", 2, free), model("c", 3, kept)], 3)
    assert mirror.with_min_copies == {"a", "c"}
    mirror.apply([model("a", 4, free), model("b", 5, kept), model("c", 6, None)], 6)
    assert mirror.with_min_copies == {"b"}


def test_known_and_older_changes_are_no_news() -> None:
    mirror = Mirror(ROOT)
    mirror.apply([model("a", 7, ModelRecord("new"))])
    assert mirror.revision == 0, "our own commit does not say that nothing before it is missing"
    assert not mirror.apply([model("a", 6, ModelRecord("old")), model("a", 7, ModelRecord("new"))], 7)
    assert mirror.model("a") == ModelRecord("new")


def test_a_delete_ahead_of_the_watch_is_not_undone_by_it() -> None:
    mirror = Mirror(ROOT)
    mirror.apply([model("a", 5, ModelRecord("x"))], 5)
    assert mirror.apply([model("a", 9, None)]).models == {"a"}
    assert not mirror.apply([model("a", 8, ModelRecord("late"))], 8)
    assert mirror.model("a") is None
    assert not mirror.apply([model("a", 9, None)], 9)
    assert mirror.apply([model("a", 10, ModelRecord("again"))], 10).models == {"a"}
    assert mirror.model("a") == ModelRecord("again")


def test_names_follow_the_active_model() -> None:
    mirror = Mirror(ROOT)
    mirror.apply([vmodel("v", 1, VModelRecord("a", "a")), vmodel("u", 1, VModelRecord("a", "a"))], 1)
    assert mirror.names_of("a") == ["u", "v"]
    mirror.apply([vmodel("v", 2, VModelRecord("a", "b"))], 2)
    assert mirror.names_of("a") == ["u", "v"]
    assert mirror.unsettled == {"v"}
    mirror.apply([vmodel("v", 3, VModelRecord("b", "b"))], 3)
    assert (mirror.names_of("a"), mirror.names_of("b"), mirror.unsettled) == (["u"], ["v"], set())
    mirror.apply([vmodel("v", 4, None)], 4)
    assert mirror.names_of("b") == []


def test_the_names_that_an_id_tells_are_among_its_names() -> None:
    mirror = Mirror(ROOT)
    first, second = "iris:2@0a", "iris:2@0b"
    mirror.apply(
        [vmodel("iris", 1, VModelRecord(first, first)), vmodel("iris:2", 2, VModelRecord(first, first))]
    )
    mirror.apply(
        [vmodel("self", 3, VModelRecord("self", "self")), vmodel("a", 4, VModelRecord(first, first))]
    )
    assert mirror.names_of(first) == ["a", "iris", "iris:2"]
    assert (mirror.names_of(second), mirror.names_of("self")) == ([], ["self"])
    mirror.apply([vmodel("iris:2", 5, VModelRecord(second, second))])
    assert (mirror.names_of(first), mirror.names_of(second)) == (["a", "iris"], ["iris:2"])
    mirror.apply([vmodel("iris:2", 6, None), vmodel("a", 7, None)])
    assert (mirror.names_of(first), mirror.names_of(second)) == (["iris"], [])


def test_names_of_a_model_are_not_those_of_one_with_a_longer_id() -> None:
    mirror = Mirror(ROOT)
    mirror.apply([vmodel("v", 1, VModelRecord("a", "a")), vmodel("w", 1, VModelRecord("ab", "ab"))], 1)
    assert mirror.names_of("a") == ["v"]


def test_a_broken_record_is_reported_once_and_absent() -> None:
    told: list[tuple[str, str]] = []
    mirror = Mirror(ROOT, lambda id, sentence: told.append((id, sentence)))
    broken = Change(f"{ROOT}registry/bad", b"{nonsense", Revision(2))
    mirror.apply([model("good", 1, ModelRecord("x")), broken, Change(f"{ROOT}vmodels/w", b"{}", Revision(2))])
    mirror.apply([broken], 2)
    assert [id for id, _ in told] == ["bad", "w"]
    assert "registry/bad" in told[0][1]
    assert mirror.model("bad") is None
    assert mirror.model_at("bad") == (2, None), "so that a compare-and-put can repair it"
    assert (mirror.n_models, mirror.n_vmodels) == (1, 0)
    mirror.apply([Change(f"{ROOT}registry/good", b"[]", Revision(3))], 3)
    assert mirror.model("good") is None
    assert mirror.apply([model("good", 4, ModelRecord("y"))], 4).models == {"good"}
    assert mirror.model("good") == ModelRecord("y")


def test_values_with_bytes_no_record_has_are_broken() -> None:
    told: list[str] = []
    mirror = Mirror(ROOT, lambda id, sentence: told.append(id))
    mirror.apply([Change(f"{ROOT}registry/zero", b'{"type":"a\x00b"}', Revision(1))], 1)
    mirror.apply([Change(f"{ROOT}registry/", b'{"type":"a"}', Revision(2))], 2)
    mirror.apply([Change(f"{ROOT}registry/a\x01b", b'{"type":"a"}', Revision(3))], 3)
    assert told == ["zero", "", "a\x01b"]
    assert mirror.n_models == 0


def test_other_keys_do_not_concern_it() -> None:
    mirror = Mirror(ROOT)
    assert not mirror.apply(
        [Change(f"{ROOT}members/x", b"?", Revision(1)), Change("elsewhere/registry/x", b"?", Revision(1))], 1
    )
    assert mirror.revision == 1


def test_pages() -> None:
    mirror = Mirror(ROOT)
    mirror.apply([model(f"{kind}/{n}", 1, ModelRecord("x")) for kind in "ab" for n in range(10)], 1)
    assert [id for id, _ in mirror.page("a/", limit=4)] == ["a/0", "a/1", "a/2", "a/3"]
    assert [id for id, _ in mirror.page("a/", "a/7", 4)] == ["a/8", "a/9"]
    assert [id for id, _ in mirror.page("", "a/8", 2)] == ["a/9", "b/0"]
    assert mirror.count("b/") == 10
    assert mirror.n_models == 20


def test_keys_between_covers_both_kinds() -> None:
    mirror = Mirror(ROOT)
    mirror.apply(
        [
            model("a", 1, ModelRecord("x")),
            model("b", 2, ModelRecord("x")),
            vmodel("v", 3, VModelRecord("a", "a")),
        ],
        3,
    )
    everything = [(f"{ROOT}registry/a", 1), (f"{ROOT}registry/b", 2), (f"{ROOT}vmodels/v", 3)]
    assert list(mirror.keys_between("", f"{ROOT}\U0010ffff")) == everything
    assert list(mirror.keys_between(everything[0][0], f"{ROOT}\U0010ffff")) == everything[1:]
    assert list(mirror.keys_between("", everything[1][0])) == everything[:2]
    assert list(mirror.keys_between(everything[1][0], f"{ROOT}\U0010ffff")) == everything[2:]
    assert list(mirror.keys_between(everything[2][0], f"{ROOT}\U0010ffff")) == []


def test_the_order_of_arrival_does_not_matter() -> None:
    """Own commits and the watch race; whatever the interleaving, the newest state wins."""
    for seed in range(200):
        rng = random.Random(seed)
        history = []
        for revision in range(1, 30):
            id = rng.choice("abc")
            record = None if rng.random() < 0.3 else ModelRecord(f"t{revision}")
            history.append(model(id, revision, record))
        final: dict[str, Change] = {change.key: change for change in history}
        mirror = Mirror(ROOT)
        position = 0
        while position < len(history):
            if rng.random() < 0.5:
                mirror.apply([history[rng.randrange(position, len(history))]])
            else:
                mirror.apply([history[position]], history[position].revision)
                position += 1
        for key, change in final.items():
            expected = None if change.value is None else ModelRecord.decode(change.value)
            assert mirror.model(key.rpartition("/")[2]) == expected, f"seed {seed}"


def test_memory_per_model_with_its_vmodel_is_bounded() -> None:
    mirror = Mirror()
    changes = []
    for number in range(5000):
        id = f"iris-{number:06d}@abcdef0123"
        record = ModelRecord(
            "sklearn", f"/home/u/models/iris-{number:06d}", "", 1, True, 1716999999000, 123456, 12
        )
        changes.append(Change(f"registry/{id}", record.encode(), Revision(7)))
        changes.append(
            Change(f"vmodels/iris-{number:06d}", VModelRecord(id, id, "folder").encode(), Revision(7))
        )
    mirror.apply(changes, 7)
    packed = [mirror._models, mirror._vmodels, mirror._names]
    total = sum(
        sys.getsizeof(part) for map in packed for parts in (map._blocks, map._firsts) for part in parts
    )
    assert total / 5000 < 350


def test_what_was_used_since_is_found_a_stretch_at_a_time() -> None:
    mirror = Mirror(ROOT)
    records = {f"m{index:02}": ModelRecord("sklearn", last_used_ms=index * 100) for index in range(30)}
    records["m05"] = ModelRecord("sklearn", 'a "lu":99999 in the path', last_used_ms=500)
    mirror.apply([model(id, 1, record) for id, record in records.items()])
    found, after = list[str](), ""
    for _ in range(4):
        used, after = mirror.used_since(2_500, after, 10)
        found += [id for id, record in used if record == records[id]]
    assert found == ["m25", "m26", "m27", "m28", "m29"]
    assert after == ""
