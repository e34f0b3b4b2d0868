import json

import pytest
import torch

from focusvit_hf.benchmark import run as benchmark_run
from focusvit_hf.benchmark.parts import PARTS
from focusvit_hf.benchmark.run import Plan, Setting, measure
from focusvit_hf.benchmark.subjects import Subject, find_subject, sample_images


@pytest.fixture
def subjects(tiny_config, tmp_path):
    """A tiny FocusViT, and a control that has no superpixels."""
    found = []
    for name, pooling in (("tiny", "superpixel"), ("control", "none")):
        tiny_config(patch_pooling=pooling).to_json_file(tmp_path / f"{name}.json")
        found.append(find_subject(str(tmp_path / f"{name}.json")))
    return found


@pytest.fixture
def no_processes(monkeypatch):
    """Memory of processes of their own has a test of its own."""
    asked = []

    def fixed(prepare, plan, setting, subject, device, forget):
        assert not forget
        prepare(plan, setting, subject)()
        asked.append((subject.name, setting))
        return 10.0 if subject.name == "control" else 5.0

    monkeypatch.setattr(benchmark_run, "peak_memory", fixed)
    return asked


def test_every_subject_setting_and_part_has_a_row(subjects, no_processes):
    settings = [Setting("inference", 32, 1), Setting("inference", 64, 2), Setting("training", 32, 2)]
    plan = Plan(subjects, settings, "control", repeats=2, warmup=1)
    result = json.loads(json.dumps(measure(plan, sample_images())))
    assert not result["failures"]
    rows = {
        (row["subject"], row["mode"], row["resolution"], row["batch_size"], row["part"]): row for row in result["rows"]
    }
    without = [part for part in PARTS if part not in ("superpixels", "model")]
    expected = [
        (name, mode, resolution, batch, part)
        for mode, resolution, batch in (("inference", 32, 1), ("inference", 64, 2), ("training", 32, 2))
        for name, parts in (("tiny", PARTS), ("control", without))
        for part in (parts if mode == "inference" else ["training_step"])
    ]
    assert list(rows) == expected
    for key, row in rows.items():
        assert 0 < row["p5_ms"] <= row["median_ms"] <= row["p95_ms"]
        assert row["images_per_second"] == pytest.approx(1000 / row["median_ms"])
        base = rows.get(("control", *key[1:]))
        assert row["times_faster"] == (pytest.approx(base["median_ms"] / row["median_ms"]) if base else None)
    # A single image takes next to nothing.
    assert no_processes == [
        ("tiny", settings[1]),
        ("control", settings[1]),
        ("tiny", settings[2]),
        ("control", settings[2]),
    ]
    assert [row["share"] for row in result["memory"]] == [0.5, 1.0] * 2
    costs = [(cost["subject"], cost["resolution"]) for cost in result["costs"]]
    assert costs == [("tiny", 32), ("control", 32), ("tiny", 64), ("control", 64)]
    assert result["settings"]["baseline"] == "control" and result["settings"]["subjects"] == ["tiny", "control"]
    assert result["environment"]["dtype"] == "float32" and result["environment"]["seed"] == 0
    assert result["settings"]["image_processors"] == ["FocusViTImageProcessor"]


def test_models_are_the_same_in_every_run_and_leave_no_trace(subjects, no_processes):
    plan = Plan(subjects[:1], [Setting("inference", 32, 1)], "tiny")
    state = torch.get_rng_state()
    models = [benchmark_run._build(plan, plan.settings[0], subjects[0])[0] for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(first, second)


def test_only_the_parts_that_were_asked_for(subjects, no_processes):
    plan = Plan(subjects, [Setting("inference", 32, 1)], "tiny", parts=["whole_path", "decode"], repeats=1, warmup=1)
    assert [row["part"] for row in measure(plan, sample_images())["rows"]] == ["decode", "whole_path"] * 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory left"), RuntimeError("can't allocate\nmemory")])
def test_what_cannot_run_is_recorded_and_the_rest_goes_on(error, subjects, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    broken = Subject("broken", subjects[1].configure, fails, subjects[1].process)
    monkeypatch.setattr(benchmark_run, "peak_memory", fails)
    plan = Plan([broken, subjects[0]], [Setting("inference", 32, 2)], "broken", repeats=1, warmup=1)
    result = measure(plan, sample_images())
    text = " ".join(str(error).split())
    where = {"mode": "inference", "resolution": 32, "batch_size": 2, "error": text}
    assert result["failures"] == [
        {"subject": "broken", "what": "time", **where},
        {"subject": "broken", "what": "memory", **where},
        {"subject": "tiny", "what": "memory", **where},
    ]
    assert {row["subject"] for row in result["rows"]} == {"tiny"} and not result["memory"]
    assert all(row["times_faster"] is None for row in result["rows"])


def test_what_fails_while_it_is_timed_is_recorded_and_the_rest_goes_on(subjects, no_processes, monkeypatch):
    real, runs = benchmark_run._parts, []

    def parts(plan, setting, model, image_processor, batch):
        def whole_path():
            runs.append(setting)
            if len(runs) == 3:
                raise torch.OutOfMemoryError("no memory left")

        found = real(plan, setting, model, image_processor, batch)
        return found if model.config.patch_pooling == "superpixel" else {**found, "whole_path": whole_path}

    monkeypatch.setattr(benchmark_run, "_parts", parts)
    settings = [Setting("inference", 32, 1), Setting("inference", 64, 1)]
    plan = Plan(subjects, settings, "control", ["whole_path", "decode"], repeats=3, warmup=1)
    result = measure(plan, sample_images())
    where = {"subject": "control", "mode": "inference", "resolution": 32, "batch_size": 1}
    assert result["failures"] == [{**where, "what": "time", "error": "no memory left"}]
    rows = [(row["resolution"], row["subject"], row["part"]) for row in result["rows"]]
    assert rows == [
        *((32, "tiny", part) for part in ("decode", "whole_path")),
        *((64, subject, part) for subject in ("tiny", "control") for part in ("decode", "whole_path")),
    ]
    assert [row["times_faster"] is None for row in result["rows"]] == [True] * 2 + [False] * 4


def test_an_error_of_the_program_still_ends_the_run(subjects, monkeypatch):
    def fails(subjects, *args, failed, **options):
        failed(next(iter(subjects)), TypeError("a bug"))

    monkeypatch.setattr(benchmark_run, "interleaved", fails)
    plan = Plan(subjects, [Setting("inference", 32, 1)], "tiny", ["decode"], repeats=1, warmup=1)
    with pytest.raises(TypeError, match="a bug"):
        measure(plan, sample_images())


def test_the_device_of_the_plan_is_waited_for(subjects, monkeypatch):
    seen = []

    def fixed(subjects, *args, device, **options):
        seen.append(device)
        return {name: [1.0] for name in subjects}

    monkeypatch.setattr(benchmark_run, "interleaved", fixed)
    measure(Plan(subjects, [Setting("inference", 32, 1)], "tiny", ["decode"], repeats=1, warmup=1), sample_images())
    assert seen == [torch.device("cpu")]


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_memory_of_a_compiled_model_is_that_of_a_later_call(mode, subjects, monkeypatch):
    events, models = [], []
    real = benchmark_run._model_call

    def prepared(plan, setting, model, image_processor):
        models.append(model)
        call = real(plan, setting, model, image_processor)
        return lambda: events.append("call") or call()

    def peak(prepare, *arguments, device, forget):
        call = prepare(*arguments)
        events.append(f"forget={forget}")
        # As at the first step.
        assert mode == "inference" or all(parameter.grad is not None for parameter in models[0].parameters())
        call()
        return 10.0

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(benchmark_run, "_model_call", prepared)
    monkeypatch.setattr(benchmark_run, "peak_memory", peak)
    plan, failures = Plan(subjects[:1], [Setting(mode, 32, 2)], "tiny", compiled=True), []
    assert benchmark_run._memory(plan, plan.settings[0], failures)[0]["peak_memory_mib"] == 10 and not failures
    assert events == ["call", "forget=True", "call"]


def test_memory_can_be_left_out(subjects, no_processes):
    setting = Setting("inference", 32, 2)
    plan = Plan(subjects, [setting], "tiny", parts=["decode"], memory=False, repeats=1, warmup=1)
    assert measure(plan, sample_images())["memory"] == [] and no_processes == []


def test_half_precision_and_compilation_reach_the_models(subjects, no_processes, monkeypatch):
    seen = []
    real = benchmark_run.split_subjects

    def split(model, image_processor, images, compiled):
        seen.append((model.dtype, compiled))
        return real(model, image_processor, images)

    monkeypatch.setattr(benchmark_run, "split_subjects", split)
    monkeypatch.setattr(benchmark_run, "_memory", lambda *args: [])
    setting = Setting("inference", 32, 1)
    plan = Plan(subjects, [setting], "tiny", dtype=torch.bfloat16, compiled=True, repeats=1, warmup=1)
    result = measure(plan, sample_images())
    assert seen == [(torch.bfloat16, True)] * 2
    assert result["environment"]["dtype"] == "bfloat16" and result["settings"]["compiled"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ["decode", "guess"]}, "Expected parts from decode, .* got guess"),
        ({"parts": []}, "got none"),
        ({"baseline": "ViT-Ti/16"}, "Expected the baseline among the subjects tiny, control, got ViT-Ti/16"),
        ({"repeats": 0}, "Expected repeats >= 1 and warmup >= 1, got 0 and 2"),
        ({"warmup": 0}, "got 7 and 0"),
        ({"settings": [Setting("inference", 33, 1)]}, "tiny does not work at 33 pixels"),
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_measured(changes, message, subjects):
    given = {"subjects": subjects, "settings": [Setting("inference", 32, 1)], "baseline": "tiny"}
    with pytest.raises(ValueError, match=message):
        Plan(**{**given, **changes})


def test_a_subject_that_stands_twice_is_refused(subjects):
    with pytest.raises(ValueError, match="Expected every subject once, got tiny, tiny"):
        Plan([subjects[0]] * 2, [Setting("inference", 32, 1)], "tiny")
