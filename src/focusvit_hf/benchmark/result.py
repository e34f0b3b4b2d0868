"""The dictionary that a benchmark writes as JSON: read back and checked, and its records found by their setting."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.files import read_json


# (mode, resolution, batch size)
SettingKey = tuple[str, int, int]
_Check = Callable[[Any], bool]
_SMALLEST, _LARGEST = 1e-9, 1e15


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # Of numbers beyond these, which nobody measured, the ratios would be infinite.
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and (value == 0 or _SMALLEST <= abs(value) <= _LARGEST)


def _is_time(value: Any) -> bool:
    return _is_number(value) and value > 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _or_none(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


_PLACE: dict[str, _Check] = {
    "subject": _is_text,
    "mode": _is_text,
    "resolution": _is_count,
    "batch_size": _is_count,
}
# What is read of each record of the lists.
_RECORDS: dict[str, dict[str, _Check]] = {
    "rows": {
        **_PLACE,
        "part": _is_text,
        "median_ms": _is_time,
        "lower_quartile_ms": _is_time,
        "upper_quartile_ms": _is_time,
        "images_per_second": _is_time,
        "times_faster": _or_none(_is_time),
    },
    "memory": {**_PLACE, "peak_memory_mib": _or_none(_is_number), "share": _or_none(_is_number)},
    "costs": {
        "subject": _is_text,
        "resolution": _is_count,
        "parameters": _is_count,
        "flops": _is_count,
        "stages": _or_none(lambda value: isinstance(value, list)),
    },
    "failures": {**_PLACE, "what": _is_text, "error": _is_text},
}
_STAGE: dict[str, _Check] = {
    "stage": _is_text,
    "matmul_flops": _is_count,
    "element_operations": _is_count,
    "activation_bytes": _is_count,
    "weight_bytes": _is_count,
}
_SETTINGS: dict[str, _Check] = {
    "subjects": _are_texts,
    "baseline": _is_text,
    "compiled": _is_flag,
    "repeats": _is_count,
}
_ENVIRONMENT: dict[str, _Check] = {
    "commit": _or_none(_is_text),
    "date": _is_text,
    "device": _is_text,
    "dtype": _is_text,
    "threads": _is_count,
    "torch": _is_text,
    "transformers": _is_text,
}
# Earlier results lack them.
_LATER: dict[str, _Check] = {
    "processor": _or_none(_is_text),
    "cpu_capability": _or_none(_is_text),
    "image_processors": _are_texts,
}


def read_result(path: Path) -> dict[str, Any]:
    """
    Reads what `focusvit benchmark --out` wrote.

    Raises:
        ValueError: when it is no such file, with the first field that is not as it should be.
        OSError: when it cannot be read.
    """
    result = read_json(path)
    missing = [name for name in (*_RECORDS, "settings", "environment") if name not in result]
    if missing:
        raise ValueError(f"Expected the JSON of a benchmark in {path}, got one without {', '.join(missing)}.")
    for problem in _problems(result):
        raise ValueError(f"Expected the JSON of a benchmark in {path}, got {problem}.")
    return result


def _problems(result: Mapping[str, Any]) -> Iterator[str]:
    yield from _problems_of(result["settings"], "settings", _SETTINGS)
    yield from _problems_of(result["environment"], "environment", _ENVIRONMENT)
    for name, checks in _RECORDS.items():
        if not isinstance(result[name], list):
            yield f"{name} = {_short(result[name])} in the place of a list"
            continue
        for number, record in enumerate(result[name]):
            yield from _problems_of(record, f"{name}[{number}]", checks)
    for number, cost in enumerate(result["costs"]):
        for index, stage in enumerate(cost["stages"] or []):
            yield from _problems_of(stage, f"costs[{number}].stages[{index}]", _STAGE)


def _problems_of(record: Any, name: str, checks: Mapping[str, _Check]) -> Iterator[str]:
    if not isinstance(record, dict):
        yield f"{name} = {_short(record)} in the place of an object"
        return
    for field, check in checks.items():
        if field not in record:
            yield f"{name} without {field}"
        elif not check(record[field]):
            yield f"{name}.{field} = {_short(record[field])}"
    for field, check in _LATER.items():
        if field in record and not check(record[field]):
            yield f"{name}.{field} = {_short(record[field])}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def settings_of(result: Mapping[str, Any]) -> list[SettingKey]:
    """(mode, resolution, batch size) of each setting that has rows, in their order."""
    return list(dict.fromkeys((row["mode"], row["resolution"], row["batch_size"]) for row in result["rows"]))


def times_of(result: Mapping[str, Any], setting: SettingKey) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of a setting by subject and part."""
    times: dict[str, dict[str, dict[str, Any]]] = {}
    for row in _of_setting(result["rows"], setting):
        times.setdefault(row["subject"], {})[row["part"]] = row
    return times


def memory_of(result: Mapping[str, Any], setting: SettingKey) -> dict[str, dict[str, Any]]:
    """The memory of a setting by subject."""
    return {row["subject"]: row for row in _of_setting(result["memory"], setting)}


def _of_setting(rows: Sequence[dict[str, Any]], setting: SettingKey) -> Iterator[dict[str, Any]]:
    return (row for row in rows if (row["mode"], row["resolution"], row["batch_size"]) == setting)
