"""A benchmark's dictionary with figures that are easy to recognise, for what prints, draws and compares it."""

from typing import Any


PARTS = {"decode": 1.0, "processor": 2.0, "superpixels": 0.5, "model": 4.0, "pixels_to_logits": 4.5, "whole_path": 8.0}
SETTINGS = (
    ("inference", 224, 1),
    ("inference", 224, 32),
    ("inference", 448, 8),
    ("inference", 896, 2),
    ("training", 224, 32),
)
ENVIRONMENT = {
    "command": "focusvit benchmark --repeats 9",
    "commit": "0" * 40,
    "date": "2026-01-02T03:04:05+00:00",
    "device": "cpu (x86_64)",
    "dtype": "float32",
    "python": "3.11.7",
    "seed": 0,
    "threads": 2,
    "torch": "2.13.0",
    "transformers": "5.23.0",
}


def benchmark_result(**speeds: float) -> dict[str, Any]:
    """Of ViT-Ti/16, the baseline, and of subjects that are so many times faster (underscores stand for hyphens)."""
    times_faster = {"ViT-Ti/16": 1.0, **{name.replace("_", "-"): speed for name, speed in speeds.items()}}
    result: dict[str, Any] = {
        "settings": {
            "subjects": list(times_faster),
            "baseline": "ViT-Ti/16",
            "images": 4,
            "compiled": False,
            "repeats": 9,
            "warmup": 2,
        },
        "environment": dict(ENVIRONMENT),
        "rows": [],
        "memory": [],
        "costs": [],
        "failures": [],
    }
    for subject, speed in times_faster.items():
        has_superpixels = subject.startswith("focusvit")
        stage = {"stage": "mlp", "matmul_flops": 10**9, "element_operations": 10**7, "activation_bytes": 2 * 10**6}
        cost = {"parameters": 5_700_000, "flops": 25 * 10**8, "stages": [{**stage, "weight_bytes": 8 * 10**6}]}
        result["costs"].append({"subject": subject, "resolution": 224, **cost})
        for mode, resolution, batch_size in SETTINGS:
            place = {"subject": subject, "mode": mode, "resolution": resolution, "batch_size": batch_size}
            parts = PARTS if mode == "inference" else {"training_step": 30.0}
            for part, milliseconds in parts.items():
                if part in ("superpixels", "model") and not has_superpixels:
                    continue
                median = milliseconds / speed * (resolution / 224) ** 2
                names = ("median_ms", "lower_quartile_ms", "upper_quartile_ms", "p5_ms", "p95_ms")
                is_comparable = part not in ("superpixels", "model")
                result["rows"].append(
                    {
                        **place,
                        "part": part,
                        **dict.fromkeys(names, median),
                        "images_per_second": 1000 / median,
                        "times_faster": speed if is_comparable else None,
                    }
                )
            if batch_size > 1:
                result["memory"].append({**place, "peak_memory_mib": 100 / speed, "share": 1 / speed})
    return result
