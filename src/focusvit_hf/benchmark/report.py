"""What a benchmark's dictionary says, as text: a table for each setting, costs, and a comparison with another run."""

from collections.abc import Mapping, Sequence
from typing import Any

from .result import SettingKey, memory_of, settings_of, times_of


# Columns of a table, in the order of the path, with their heads.
PART_NAMES = {
    "decode": "decode",
    "processor": "processor",
    "superpixels": "superpixels",
    "model": "model",
    "pixels_to_logits": "pixels→logits",
    "whole_path": "JPEG→class",
    "training_step": "step",
}
# Ratios of the others would compare the same work, or have nothing to compare with.
COMPARED_PARTS = ("pixels_to_logits", "whole_path", "training_step")
# What makes two results hard to compare where it differs; earlier results lack some of it.
_COMPARED_ENVIRONMENT = ("device", "processor", "cpu_capability", "threads", "dtype", "torch", "transformers")
_COMPARED_SETTINGS = ("baseline", "compiled", "image_processors")


def machine(place: Mapping[str, Any]) -> str:
    """The device of an `environment`; of a CPU, where they are known, its model and the instructions torch uses."""
    known = [place[name] for name in ("processor", "cpu_capability") if place.get(name)]
    return f"cpu ({', '.join(known)})" if known and place["device"].startswith("cpu") else place["device"]


def report(result: Mapping[str, Any]) -> str:
    """Tables of milliseconds an image, times faster than the baseline and memory; then costs; then failures."""
    settings, place = result["settings"], result["environment"]
    compiled = ", compiled" if settings["compiled"] else ""
    lines = [
        f"{machine(place)}, {place['threads']} threads, {place['dtype']}{compiled}",
        f"torch {place['torch']}, transformers {place['transformers']}, {place['date']}",
        f"milliseconds an image, medians of {settings['repeats']} (times faster than {settings['baseline']}); "
        "peak memory of a batch (share)",
    ]
    for setting in settings_of(result):
        lines += ["", *_setting_table(result, setting)]
    lines += ["", *_cost_table(result)]
    lines += [f"failed: {describe_failure(failure)}" for failure in result["failures"]]
    return "\n".join(lines)


def describe_failure(failure: Mapping[str, Any]) -> str:
    """A line for a record of `failures`."""
    where = f"{failure['mode']}, {failure['resolution']} px, batch {failure['batch_size']}"
    return f"{failure['what']} of {failure['subject']} ({where}): {failure['error']}"


def _setting_table(result: Mapping[str, Any], setting: SettingKey) -> list[str]:
    times, memory = times_of(result, setting), memory_of(result, setting)
    parts = [part for part in PART_NAMES if any(part in rows for rows in times.values())]
    mode, resolution, batch_size = setting
    table = [[f"{mode}, {resolution} px, batch {batch_size}", *(PART_NAMES[part] for part in parts), "memory"]]
    for subject in result["settings"]["subjects"]:
        cells = [_time_cell(times.get(subject, {}).get(part)) for part in parts]
        table.append([subject, *cells, _memory_cell(memory.get(subject))])
    return aligned(table)


def _time_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    ratio = row["times_faster"]
    is_compared = row["part"] in COMPARED_PARTS and ratio is not None
    return f"{row['median_ms']:.2f} ({ratio:.2f}×)" if is_compared else f"{row['median_ms']:.2f}"


def _memory_cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["peak_memory_mib"] is None:
        return "–"
    share = "" if row["share"] is None else f" ({row['share']:.0%})"
    return f"{row['peak_memory_mib']:.0f} MiB{share}"


def _cost_table(result: Mapping[str, Any]) -> list[str]:
    """Millions of parameters, operations and bytes of an image; elements and bytes where they are counted."""
    table = [["cost of an image, in millions", "parameters", "FLOPs", "element operations", "bytes moved"]]
    for cost in result["costs"]:
        stages = cost["stages"]
        counted = [
            "–" if stages is None else f"{sum(stage[name] for stage in stages) / 1e6:.1f}"
            for name in ("element_operations", "activation_bytes")
        ]
        figures = [f"{cost['parameters'] / 1e6:.2f}", f"{cost['flops'] / 1e6:.0f}"]
        table.append([f"{cost['subject']}, {cost['resolution']} px", *figures, *counted])
        for stage in stages or []:
            values = (stage["matmul_flops"], stage["element_operations"], stage["activation_bytes"])
            table.append([f"  {stage['stage']}", f"{stage['weight_bytes'] / 4e6:.2f}", f"{values[0] / 1e6:.0f}"])
            table[-1] += [f"{value / 1e6:.1f}" for value in values[1:]]
    return aligned(table)


def compare(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """
    Ratios new / old of medians and of memory, row by row; below 1 is an improvement. Rows of one run are named, and
    so is what differs between the runs.
    """
    keys = ("subject", "mode", "resolution", "batch_size")
    lines = [f"new / old (below 1 is better); old: {old['environment']['commit']}, {old['environment']['date']}"]
    for place, names in (("environment", _COMPARED_ENVIRONMENT), ("settings", _COMPARED_SETTINGS)):
        for name in names:
            values = [_shown(run[place].get(name)) for run in (new, old)]
            if values[0] != values[1]:
                lines.append(f"differs: {name}: {' / '.join(values)}")
    table = []
    for records, value, part_of in (
        ("rows", "median_ms", lambda row: row["part"]),
        ("memory", "peak_memory_mib", lambda row: "memory"),
    ):
        runs = [
            {(*(row[key] for key in keys), part_of(row)): row[value] for row in run[records] if row[value] is not None}
            for run in (new, old)
        ]
        for key in dict.fromkeys((*runs[0], *runs[1])):
            subject, mode, resolution, batch_size, part = key
            row = [subject, f"{mode}, {resolution} px, batch {batch_size}", part]
            if key in runs[0] and key in runs[1]:
                first, second = runs[0][key], runs[1][key]
                ratio = f"{first / second:.2f}" if second else "–"
                table.append([*row, ratio, f"{first:.2f} / {second:.2f}"])
            else:
                table.append([*row, "–", "only new" if key in runs[0] else "only old"])
    return "\n".join([*lines, *aligned(table)])


def _shown(value: Any) -> str:
    if value is None:
        return "not known"
    return ", ".join(value) if isinstance(value, list) else str(value)


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column flush left, the others flush right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))] if table else []
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
