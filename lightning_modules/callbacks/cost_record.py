"""What a training cost, as the record that results keep; without torch, so that whoever reads results needs none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Totals over all attempts of a run; None where nothing was measured. Pairs and images count all devices.

    Args:
        tunable_parameters: That train.
        total_parameters: Of the network.
        adapter_parameters: Of the adapter.
        tunable_percent: Of those that are not the adapter's.
        peak_memory_bytes: As `memory_kind` says.
        memory_kind: What was measured: a device's allocator, or on a processor the sum of the next three.
        saved_activation_bytes: What backward keeps.
        gradient_bytes: Of all gradients.
        optimizer_state_bytes: Of the optimizer's moments and counters.
        saved_copy_bytes: Of `saved_activation_bytes` what is made of weights, which a larger batch leaves as it is.
        train_seconds: In training epochs, without validation.
        seconds_per_epoch: `train_seconds` / `epochs`.
        seconds_per_step_median: Between optimizer steps.
        pairs_per_second: While training.
        images_per_second: While training.
        epochs: In fractions.
        steps: Of the optimizer.
        batches: Of this process.
        pairs: Seen in training.
        images: Encoded in training; captions of one image share its encoding.
    """

    tunable_parameters: int | None = None
    total_parameters: int | None = None
    adapter_parameters: int | None = None
    tunable_percent: float | None = None
    peak_memory_bytes: int | None = None
    memory_kind: str | None = None
    saved_activation_bytes: int | None = None
    gradient_bytes: int | None = None
    optimizer_state_bytes: int | None = None
    saved_copy_bytes: int | None = None
    train_seconds: float | None = None
    seconds_per_epoch: float | None = None
    seconds_per_step_median: float | None = None
    pairs_per_second: float | None = None
    images_per_second: float | None = None
    epochs: float | None = None
    steps: int | None = None
    batches: int | None = None
    pairs: int | None = None
    images: int | None = None
